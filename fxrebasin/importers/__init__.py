"""What other formats hold, as PyTorch modules."""
