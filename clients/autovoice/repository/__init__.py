"""The model repository: configs, files and TensorRT plans."""
