"""Hugging Face folders of image classifiers: what their two descriptions say, and the network that is built of them."""
