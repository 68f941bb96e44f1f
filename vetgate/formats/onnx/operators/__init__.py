"""What operators mean in torch, a kind a file: those that came after maps, windows and shapes."""
