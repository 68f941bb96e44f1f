"""`vetgate scan`: what it takes and how what was found is shown."""
