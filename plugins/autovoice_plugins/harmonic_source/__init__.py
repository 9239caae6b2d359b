"""HarmonicSource: F0 to excitation."""

from __future__ import annotations

from autovoice_plugins.harmonic_source.reference import harmonic_source_reference
from autovoice_plugins.harmonic_source.torch_op import harmonic_source

__all__ = ["harmonic_source", "harmonic_source_reference"]
