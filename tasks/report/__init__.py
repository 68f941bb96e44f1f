"""The page about one vetting."""
