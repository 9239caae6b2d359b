"""Signals whose F0 is known because it was put there, clean and in noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pitch_metrics import Array
from speech import FloatArray
from world import FRAME_MS, load_pyworld

SAMPLE_RATE = 24000
TRUTH_HZ = 1000
"""The truth is kept once a millisecond."""
UNSETTLED_S = 0.015
"""Within this of a change of voicing either answer is right: the frame holds both."""
PEAK = 0.5
VOICED_BELOW_LOUDEST_DB = 40.0
SMOOTHING_FRAMES = 15
"""Of 5 ms: a Hann window of 75 ms, half of that between its half-power points."""
NOISES = ("white", "pink")

_Voice = Callable[[Array, Array, np.random.Generator], Array]


@dataclass(frozen=True)
class KnownPitch:
    """Audio and its F0.

    Attributes:
        name: of the signal.
        material: what kind it is: `"tones"`, `"harmonics"` or `"speech"`.
        audio: [T] at 24 kHz.
        f0: F0 at every millisecond in Hz, 0 where there is none, [ceil(T / 24)].
    """

    name: str
    material: str
    audio: FloatArray
    f0: Array

    def at(self, times: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
        """F0 at some instants, and which of them are inside the signal and away from changes of voicing.

        Args:
            times: seconds, [F].
        """
        place = np.rint(times * TRUTH_HZ).astype(int)
        inside = (place >= 0) & (place < self.f0.size)
        place = place.clip(0, self.f0.size - 1)
        changes = np.flatnonzero(np.diff(self.f0 > 0)) + 0.5
        near = np.zeros(place.shape, bool)
        if changes.size:
            after = np.searchsorted(changes, place).clip(0, changes.size - 1)
            before = (after - 1).clip(0)
            distance = np.minimum(np.abs(changes[after] - place), np.abs(changes[before] - place))
            near = distance <= UNSETTLED_S * TRUTH_HZ
        return self.f0[place], inside & ~near


def tones(pitches: Sequence[float], seconds: float) -> KnownPitch:
    """Sines of constant pitch, one after another, with pauses of half their length."""
    return _sequence("sines", "tones", [np.full(_samples(seconds), hz) for hz in pitches], _sine)


def complexes(pitches: Sequence[float], seconds: float) -> KnownPitch:
    """The same with all harmonics up to Nyquist, falling by 6 dB an octave, in random phase."""
    return _sequence("complexes", "harmonics", [np.full(_samples(seconds), hz) for hz in pitches], _complex)


def telephone(pitches: Sequence[float], seconds: float) -> KnownPitch:
    """The same with the harmonics from 300 to 3400 Hz only: low voices lack their fundamental."""
    return _sequence("telephone", "harmonics", [np.full(_samples(seconds), hz) for hz in pitches], _telephone)


def glides(lowest: float, highest: float, seconds: float) -> KnownPitch:
    """All harmonics, gliding up and down, with a vibrato of half a semitone."""
    time = np.arange(_samples(seconds)) / SAMPLE_RATE
    up = np.log(lowest) + np.log(highest / lowest) * time / seconds
    vibrato = 0.5 * np.log(2) / 12 * np.sin(2 * np.pi * 5.5 * time)
    return _sequence("glides", "harmonics", [np.exp(up + vibrato), np.exp(up[::-1] + vibrato)], _complex)


def resynthesised(name: str, audio: FloatArray, transposition: float) -> KnownPitch:
    """A recording rebuilt by WORLD from an F0 curve that is then known exactly.

    The curve is the recording's own, smoothed and multiplied; the envelope stays. Without the smoothing it
    would hold the analysis's own jitter from frame to frame, which no tracker with a window can follow.
    Frames more than 40 dB below the loudest are made unvoiced, so that no frame counts as voiced that nobody
    could hear.

    Args:
        name: of the recording.
        audio: [T] at 24 kHz.
        transposition: factor on F0.
    """
    world = load_pyworld()
    samples = audio.astype(np.float64)
    f0, times = world.dio(samples, SAMPLE_RATE, frame_period=FRAME_MS)
    f0 = world.stonemask(samples, f0, times, SAMPLE_RATE)
    envelope = world.cheaptrick(samples, f0, times, SAMPLE_RATE)
    # A threshold of 0: D4C otherwise turns frames that it finds aperiodic into noise whatever the F0.
    aperiodicity = world.d4c(samples, f0, times, SAMPLE_RATE, threshold=0.0)
    level = 10 * np.log10(envelope.sum(axis=1))
    voiced = (f0 > 0) & (level > level.max() - VOICED_BELOW_LOUDEST_DB)
    f0 = np.where(voiced, _smoothed(f0, voiced) * transposition, 0.0)
    aperiodicity[~voiced] = 1.0
    rebuilt = world.synthesize(f0, envelope, aperiodicity, SAMPLE_RATE, FRAME_MS)[: audio.size]
    grid = np.arange(-(-rebuilt.size * TRUTH_HZ // SAMPLE_RATE)) / TRUTH_HZ
    # Linear between voiced frames, as WORLD's synthesis does it; the voicing is that of the nearest frame.
    curve = np.interp(grid, times[voiced], f0[voiced])
    nearest = np.rint(grid * 1000 / FRAME_MS).astype(int).clip(0, f0.size - 1)
    truth = np.where(voiced[nearest], curve, 0.0)
    return KnownPitch(name, "speech", _scaled(rebuilt), truth)


def with_noise(signal: KnownPitch, colour: str, snr_db: float, seed: int) -> FloatArray:
    """The signal's audio [T] with noise added.

    Args:
        signal: what to add to.
        colour: `"white"` or `"pink"` (3 dB less an octave).
        snr_db: power of the voiced part over that of the noise.
        seed: of the noise.
    """
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(signal.audio.size))
    if colour == "pink":
        spectrum /= np.sqrt(np.maximum(np.arange(spectrum.size), 1))
        spectrum[0] = 0
    noise = np.fft.irfft(spectrum, signal.audio.size)
    voiced = signal.f0[np.arange(signal.audio.size) * TRUTH_HZ // SAMPLE_RATE] > 0
    power = np.mean(np.square(signal.audio[voiced], dtype=np.float64))
    gain = np.sqrt(power / np.mean(noise**2) / 10 ** (snr_db / 10))
    return (signal.audio + gain * noise).astype(np.float32)


def with_hum(signal: KnownPitch, hz: float, below_db: float) -> FloatArray:
    """The signal's audio [T] with a tone at the frequency of the mains.

    Args:
        signal: what to add to.
        hz: 50 or 60.
        below_db: RMS of the whole signal over that of the tone.
    """
    time = np.arange(signal.audio.size) / SAMPLE_RATE
    power = np.mean(np.square(signal.audio, dtype=np.float64))
    amplitude = np.sqrt(2 * power / 10 ** (below_db / 10))
    return (signal.audio + amplitude * np.sin(2 * np.pi * hz * time + 1.0)).astype(np.float32)


def _smoothed(f0: Array, voiced: npt.NDArray[np.bool_]) -> Array:
    """The curve [F] through the voiced frames, its logarithm averaged over `SMOOTHING_FRAMES`."""
    frames = np.arange(f0.size)
    curve = np.interp(frames, frames[voiced], np.log(f0[voiced]))
    window = np.hanning(SMOOTHING_FRAMES + 2)[1:-1]
    padded = np.pad(curve, SMOOTHING_FRAMES // 2, mode="edge")
    return np.exp(np.convolve(padded, window / window.sum(), mode="valid"))


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def _sequence(name: str, material: str, curves: Sequence[Array], voice: _Voice) -> KnownPitch:
    """One sound per F0 curve (Hz at every sample), with 10 ms fades and pauses between them."""
    audio, pitch = [], []
    for number, curve in enumerate(curves):
        phase = np.concatenate(([0.0], np.cumsum(curve[:-1]))) / SAMPLE_RATE
        sound = voice(phase, curve, np.random.default_rng(number))
        fade = np.minimum(np.arange(curve.size) / (0.01 * SAMPLE_RATE), 1.0)
        pause = np.zeros(curve.size // 2)
        audio += [sound * fade * fade[::-1] / np.sqrt(np.mean(sound**2)), pause]
        pitch += [curve, pause]
    joined = np.concatenate(audio)
    return KnownPitch(name, material, _scaled(joined), np.concatenate(pitch)[:: SAMPLE_RATE // TRUTH_HZ])


def _scaled(audio: Array) -> FloatArray:
    return (audio * (PEAK / np.abs(audio).max())).astype(np.float32)


def _sine(phase: Array, _curve: Array, _random: np.random.Generator) -> Array:
    return np.sin(2 * np.pi * phase)


def _complex(phase: Array, curve: Array, random: np.random.Generator) -> Array:
    return _harmonics(phase, curve, random, 0.0, SAMPLE_RATE / 2)


def _telephone(phase: Array, curve: Array, random: np.random.Generator) -> Array:
    return _harmonics(phase, curve, random, 300.0, 3400.0)


def _harmonics(phase: Array, curve: Array, random: np.random.Generator, low: float, high: float) -> Array:
    sound = np.zeros(phase.size)
    for number in range(1, int(high / curve.min()) + 1):
        heard = (number * curve > low) & (number * curve < high)
        sound += heard / number * np.sin(2 * np.pi * (number * phase + random.random()))
    return sound
