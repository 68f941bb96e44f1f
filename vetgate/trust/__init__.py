"""Whose signature is believed for what: keys, envelopes, statements, verdicts and waivers."""
