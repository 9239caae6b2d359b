"""PyTorch stages to ONNX files: export, composition, verification, FP16."""
