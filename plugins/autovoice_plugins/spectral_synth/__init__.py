"""SpectralSynth: excitation and envelopes to audio."""

from __future__ import annotations

from autovoice_plugins.spectral_synth.reference import spectral_synth_reference
from autovoice_plugins.spectral_synth.torch_op import spectral_synth

__all__ = ["spectral_synth", "spectral_synth_reference"]
