"""Pitch trackers under one signature, each with what it needs imported only when it is made."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pitch_metrics import Array
from speech import FloatArray
from world import load_pyworld

from autovoice import VoiceConversionPipeline

F0_MIN, F0_MAX = 50.0, 1100.0
HOP_S = 0.01
CREPE_VOICED = 0.21
"""Periodicity from which torchcrepe's own documentation calls a frame voiced."""
SWIFT_VOICED = 0.5
"""Confidence from which swift-f0's documentation calls a frame voiced."""

Track = tuple[Array, Array]


@dataclass(frozen=True)
class Tracker:
    """A pitch tracker.

    Attributes:
        name: in the tables.
        sample_rate: of the audio it wants, Hz.
        track: audio [T] to the times of its frames in seconds [F] and F0 in Hz [F], 0 where unvoiced.
    """

    name: str
    sample_rate: int
    track: Callable[[FloatArray], Track]


def autovoice(pipeline: VoiceConversionPipeline) -> Tracker:
    """PitchYin: the pitch extractor of the repository, run by the embedded engine."""

    def track(audio: FloatArray) -> Track:
        f0 = pipeline.extract_f0(audio, pipeline.sample_rate)
        return (np.arange(f0.size) + 0.5) * HOP_S, f0.astype(np.float64)

    return Tracker("PitchYin", pipeline.sample_rate, track)


def dio() -> Tracker:
    """WORLD's fast tracker, refined by StoneMask."""
    world = load_pyworld()

    def track(audio: FloatArray) -> Track:
        samples = audio.astype(np.float64)
        f0, times = world.dio(samples, 24000, f0_floor=F0_MIN, f0_ceil=F0_MAX, frame_period=1e3 * HOP_S)
        return times, world.stonemask(samples, f0, times, 24000)

    return Tracker("dio+stonemask", 24000, track)


def harvest() -> Tracker:
    """WORLD's careful tracker."""
    world = load_pyworld()

    def track(audio: FloatArray) -> Track:
        f0, times = world.harvest(
            audio.astype(np.float64), 24000, f0_floor=F0_MIN, f0_ceil=F0_MAX, frame_period=1e3 * HOP_S
        )
        return times, f0

    return Tracker("harvest", 24000, track)


def pyin() -> Tracker:
    """Probabilistic YIN of librosa, with its own defaults for everything but range and hop."""
    import librosa

    def track(audio: FloatArray) -> Track:
        f0, _, _ = librosa.pyin(audio, fmin=F0_MIN, fmax=F0_MAX, sr=24000, hop_length=240, fill_na=0.0)
        return np.arange(f0.size) * HOP_S, f0

    return Tracker("pyin", 24000, track)


def swift_f0() -> Tracker:
    """swift-f0: a small network on 16 kHz audio."""
    from swift_f0 import SwiftF0

    detector = SwiftF0(threads=1, spin=False)

    def track(audio: FloatArray) -> Track:
        found = detector.detect(audio, 16000, fmin=F0_MIN, fmax=F0_MAX)
        return found.timestamps, np.where(found.confidence >= SWIFT_VOICED, found.pitch_hz, 0.0)

    return Tracker("swift-f0", 16000, track)


def crepe(model: str) -> Callable[[], Tracker]:
    """torchcrepe, `"tiny"` or `"full"`, with its usual filtering and threshold of the periodicity."""

    def make() -> Tracker:
        _stand_in_for_torchaudio()
        import torch
        import torchcrepe

        torch.set_num_threads(1)

        def track(audio: FloatArray) -> Track:
            f0, periodicity = torchcrepe.predict(
                torch.from_numpy(audio)[None],
                16000,
                hop_length=160,
                fmin=F0_MIN,
                fmax=F0_MAX,
                model=model,
                return_periodicity=True,
                batch_size=512,
                device="cpu",
            )
            voiced = torchcrepe.filter.median(periodicity, 3)[0] >= CREPE_VOICED
            found = torch.where(voiced, f0[0], 0.0).numpy().astype(np.float64)
            return np.arange(found.size) * HOP_S, found

        return Tracker(f"crepe-{model}", 16000, track)

    return make


def _stand_in_for_torchaudio() -> None:
    """Lets torchcrepe be imported where torchaudio is missing.

    torchcrepe imports it at the top and calls it only to read files, which is not done here; torchaudio's
    wheel must match PyTorch's build exactly, so asking for it would keep CREPE from most machines.
    """
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError):
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")


PEERS: dict[str, tuple[Callable[[], Tracker], str]] = {
    "dio": (dio, "pip install pyworld 'setuptools<81'"),
    "harvest": (harvest, "pip install pyworld 'setuptools<81'"),
    "pyin": (pyin, "pip install librosa"),
    "swift-f0": (swift_f0, "pip install swift-f0"),
    "crepe-tiny": (crepe("tiny"), "pip install --no-deps torchcrepe resampy, beside torch and librosa"),
    "crepe-full": (crepe("full"), "pip install --no-deps torchcrepe resampy, beside torch and librosa"),
}
"""Peers by name: how to make one, and how to install what it needs."""


def make_peer(name: str) -> Tracker:
    """Returns a peer.

    Raises:
        ImportError: saying what to install.
    """
    make, remedy = PEERS[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()
    except ImportError as error:
        raise ImportError(f"{error}; {remedy}") from error
