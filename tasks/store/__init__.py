"""The object store, and what is built on its conditional writes."""
