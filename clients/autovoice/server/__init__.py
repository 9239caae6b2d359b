"""Running NVIDIA Triton Inference Server over a model repository: `autovoice serve`."""
