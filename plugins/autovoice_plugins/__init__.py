"""The custom ops of AutoVoice, one room each: NumPy reference, torch op, ONNX function."""
