"""Sizes of what an embedding holds, for those who do without PyTorch; see `autovoice_export.stages.voice`."""

IDENTITY_SIZE = 256
PHONES = 41
ENVELOPE_SIZE = 24
