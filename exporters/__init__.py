"""What leaves PyTorch: proof that two models compute the same, and ONNX files."""
