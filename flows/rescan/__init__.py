"""The nightly rescan: what in production has an outdated verdict is vetted again."""
