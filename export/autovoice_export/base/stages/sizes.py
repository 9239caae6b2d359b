"""Sizes of what an embedding holds, without PyTorch; see `autovoice_export.base.stages.voice`."""

IDENTITY_SIZE = 256
TOKENS = 192
KEY_SIZE = 24
ENVELOPE_SIZE = 40
PHONES = 41
