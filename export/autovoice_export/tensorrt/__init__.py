"""From the ONNX files of a repository to TensorRT plans that Triton serves with ``configs/tensorrt.pbtxt``.

Nothing here imports TensorRT before a plan is built or loaded: it is no package of the build tools but comes
with NVIDIA's images. Nothing imports PyTorch either, which those images would not need otherwise.
"""
