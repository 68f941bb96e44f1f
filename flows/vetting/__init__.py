"""One vetting from what was handed in to a signed verdict, and what starts it."""
