"""What a file is, told from its bytes alone, and whether it would run code in who loads it.

Nothing here imports torch, numpy or onnx, and nothing is unpickled: a scan starts fast and runs in little memory.
"""
