"""The clock, sizes and ranges that the three ops share.

Times are counted in samples of `SAMPLE_RATE`; a block (frame) is `HOP` samples. Every op also takes
these values as attributes, so that another voice family can run at another rate; these are the defaults
and the values of the base family.
"""

from __future__ import annotations

SAMPLE_RATE = 24000
"""Samples per second of the base family."""

HOP = 240
"""Samples per frame: 10 ms."""

F0_MIN = 50.0
"""Lowest pitch searched for, Hz. `SAMPLE_RATE / F0_MIN` may not exceed two hops."""

F0_MAX = 1100.0
"""Highest pitch searched for, Hz."""

PITCH_BLOCKS_OF_STATE = 6
"""Blocks of past audio that PitchYin carries: four of its five-block window, one for the correlation
that reaches two blocks back from the window's second block, one for the prefilter."""

PITCH_YIN_STATE_SIZE = PITCH_BLOCKS_OF_STATE * HOP
"""Floats in the state of PitchYin for the base family."""

HARMONIC_SOURCE_STATE_SIZE = 2
"""Floats in the state of HarmonicSource: previous F0 in Hz, phase in cycles."""

PHASE_GRID = 2**24
"""Phase advances are whole multiples of 1/PHASE_GRID cycle: such a phase in [0, 1) is a float32 exactly."""

FFT_SIZE = 960
"""Length of the DFT that SpectralSynth filters with: one block and a response of three more."""

BANDS = 80
"""Points of a spectral envelope, equally spaced on the mel scale from 0 Hz to Nyquist."""

FLOOR = -16.0
"""Lowest natural-log magnitude of a filter (-139 dB): what a zero state means."""

TAIL_SIZE = FFT_SIZE - HOP
"""Samples of response that SpectralSynth still owes after a block."""

SPECTRAL_SYNTH_STATE_SIZE = 2 * BANDS + TAIL_SIZE
"""Floats in the state of SpectralSynth for the base family: both filters above FLOOR, then the tail."""
