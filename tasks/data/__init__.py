"""Reference data: registered under DVC, split by purpose, read at a resolved commit."""
