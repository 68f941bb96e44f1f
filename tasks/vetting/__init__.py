"""The steps of one vetting, each of which runs on bytes that were taken in and writes its result once."""
