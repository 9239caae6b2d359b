"""Recordings for tests, in the formats that FFmpeg writes and soundfile does not."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def murmur(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """Mono float32 audio with some of speech's envelope, all below 3 kHz; the same for any rate."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    levels = rng.uniform(0.1, 1, int(seconds * 10) + 3)
    envelope = np.interp(time, 0.1 * np.arange(levels.size), levels)
    tones = sum(
        np.sin(2 * np.pi * f * time + p) for f, p in zip(rng.uniform(150, 1500, 6), range(6), strict=True)
    )
    return (0.08 * envelope * tones).astype(np.float32)


def encode(
    path: Path,
    audio: np.ndarray,
    rate: int,
    codec: str,
    *,
    container: str | None = None,
    layout: str = "mono",
    bit_rate: int | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
) -> Path:
    """Write audio [T] or [channels, T] at `rate` with an encoder of FFmpeg's."""
    with av.open(str(path), "w", format=container, options=container_options or {}) as file:
        file.metadata.update(tags or {})
        stream = file.add_stream(codec, rate=rate, options=options or {}, layout=layout)
        if bit_rate:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(np.atleast_2d(audio).astype(np.float32).copy(), "fltp", layout)
        frame.sample_rate = rate
        converted = av.AudioResampler(stream.format, layout, rate)
        queue = av.AudioFifo()
        for piece in converted.resample(frame) + converted.resample(None):
            queue.write(piece)
        size, position = stream.codec_context.frame_size or 1024, 0
        while piece := queue.read(size) or queue.read(size, partial=True):
            piece.pts, piece.time_base = position, Fraction(1, rate)
            position += piece.samples
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return path
