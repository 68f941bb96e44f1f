"""From the message of an ONNX file to a graph of the operators that are built: types, files beside it, and forms."""
