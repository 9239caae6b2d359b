"""The sizes that the ops of the base family agree on."""

from __future__ import annotations

SAMPLE_RATE = 24000
"""Hz."""
HOP = 240
"""Samples per frame: 10 ms."""
PITCH_STATE_SIZE = 4 * HOP
"""The audio that PitchYin keeps: four blocks."""
SOURCE_STATE_SIZE = 2
"""Previous F0 and phase of HarmonicSource."""
BANDS = 80
"""Points of a filter, evenly spaced in mel from 0 Hz to Nyquist."""
FFT_SIZE = 4 * HOP
"""Length of a filtered segment: 240 samples of excitation and up to 720 of response."""
FILTER_FLOOR = -16.0
"""Natural log magnitude below which a filter is silent (-139 dB)."""
SYNTH_STATE_SIZE = 2 * BANDS + FFT_SIZE - HOP
"""Two filters above the floor and the tail of the overlap-add."""
