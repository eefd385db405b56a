"""Proof that two models compute the same, in PyTorch and on onnxruntime."""
