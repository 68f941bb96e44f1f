"""The service: its parts on one machine, what keeps them running, and who serves requests."""
