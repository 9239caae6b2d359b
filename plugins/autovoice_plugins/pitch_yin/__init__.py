"""PitchYin: audio to F0 and periodicity."""

from __future__ import annotations

from autovoice_plugins.pitch_yin.reference import pitch_yin_reference
from autovoice_plugins.pitch_yin.torch_op import pitch_yin

__all__ = ["pitch_yin", "pitch_yin_reference"]
