"""Sizes of what an embedding holds, without PyTorch; see `autovoice_export.base.stages.voice`."""

IDENTITY_SIZE = 256
PHONES = 41
ENVELOPE_SIZE = 24
