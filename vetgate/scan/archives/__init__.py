"""Archives and compressed streams: their members one by one, under limits, and every byte accounted for."""
