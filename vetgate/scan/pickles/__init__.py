"""Pickles, read opcode by opcode and never run: what they import, what they call, and the data that is left."""
