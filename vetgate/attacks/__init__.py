"""Attacks, one a file: for tests, calibration and the benchmark only."""
