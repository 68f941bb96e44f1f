"""Commands for what comes before a vetting: the description of a model, and the images that models are vetted on."""
