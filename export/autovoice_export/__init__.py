"""Build time: PyTorch stages, their export to ONNX, and the model repository."""
