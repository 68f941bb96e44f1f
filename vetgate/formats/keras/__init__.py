"""Keras models of layers that map exactly onto operators of ONNX: what the file says, its weights, and the graph."""
