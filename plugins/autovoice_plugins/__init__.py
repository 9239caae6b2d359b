"""The custom ops of AutoVoice, one folder each: NumPy reference, torch op, ONNX function."""
