"""What a batch size does and why: measurements in plain tensors and numbers."""
