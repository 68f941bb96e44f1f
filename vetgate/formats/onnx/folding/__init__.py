"""What operators make of constants before any image is there, by ONNX's own rules."""
