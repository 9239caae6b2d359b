"""Rates and sizes that all RVC voices share."""

from __future__ import annotations

SOURCE_RATE = 16000
"""Samples per second of what goes in."""

FRAME = 160
"""Samples of the source per F0 frame: 10 ms."""

GRID = 2 * FRAME
"""Samples of the source per content frame: 20 ms. Audio is cut and padded on this grid only."""

FRAMES_PER_SECOND = SOURCE_RATE // FRAME

F0_MIN = 50.0
F0_MAX = 1100.0
"""The pitch range, Hz, of both trackers and of the coarse pitch."""

OUTPUT_RATES = (32000, 40000, 48000)
"""Samples per second that voices speak at."""
