"""ONNX files: a graph as a module that interprets it, and files written back with other weights."""
