"""From evidence to a verdict: calibrated, closed when in doubt, and pure."""
