"""Networks that a submission names: built by a library, given the tensors of its file, and written as ONNX."""
