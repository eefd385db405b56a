"""ONNX files of models."""
