"""Everything that leaves PyTorch: ONNX, onnxruntime checks, checkpoints."""
