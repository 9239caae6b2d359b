"""Voice conversion served by Triton, and the same model repository on ONNX Runtime in process."""
