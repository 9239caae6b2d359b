"""PyTorch stages to ONNX files, chained where one model is to hold several, and held to their originals."""
