"""The benchmark: the bank scored, in tables, pictures and a page."""
