"""How late the stages of the base family speak."""

from __future__ import annotations

from autovoice_plugins.geometry import HOP

FEATURE_DELAY_FRAMES = 2
"""On receipt of block j, content encoder and pitch extractor describe frame j - 2."""

LOOKAHEAD = FEATURE_DELAY_FRAMES * HOP + HOP // 2
"""Samples by which the synthesizer's audio is late: frames are centred in their block."""
