"""ONNX: read to the last byte into a graph of plain data, built in torch, and written back."""
