"""The model bank: reference networks, what methods find on them, and the calibration made of that."""
