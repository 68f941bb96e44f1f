"""The sandbox: the only place where a submitted file is opened and a submitted model is run."""
