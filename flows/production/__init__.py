"""What production holds: how a version gets in, is verified, served and taken back."""
