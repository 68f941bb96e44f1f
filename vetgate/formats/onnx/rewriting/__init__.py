"""A graph of any accepted opset written anew in one: constants folded, shapes settled, every default spelled out."""
