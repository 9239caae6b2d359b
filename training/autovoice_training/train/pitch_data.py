"""What the pitch extractor learns from: speech with the answers of swift-f0, whispers, and sung tones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from autovoice.atomic import atomic_path
from autovoice_export.base.stages.pitch_extractor import PitchExtractor
from autovoice_plugins.geometry import F0_MAX, F0_MIN, HOP, PITCH_YIN_STATE_SIZE, SAMPLE_RATE
from autovoice_plugins.pitch_yin.torch_op import pitch_yin
from autovoice_training.corpus.reader import Corpus, CorpusError

Float = NDArray[np.float32]

JUDGE_RATE = 16000
FRAME_MS = 10
JUDGE_FRAME_MS = 16
SHARES = {"spoken": 0.62, "transposed": 0.15, "whispered": 0.05, "sung": 0.18}
TELEPHONE_HZ = (300.0, 3400.0)
# With a narrower band nothing of a low voice is left.
_MAINS_HZ = (50.0, 60.0)


def swift_track(audio: Float) -> tuple[Float, Float]:
    """What swift-f0 says at the middle of every frame.

    Its own frames are 16 ms apart, so it is asked eight times, each time about the audio moved by 2 ms more.

    Args:
        audio: [240 F] at 24 kHz.

    Returns:
        F0 in Hz and the probability that the frame is voiced, [F] each.
    """
    from swift_f0 import SwiftF0  # here: each process of the pool makes its own

    detector = SwiftF0(threads=1, spin=False)
    samples = soxr.resample(audio, SAMPLE_RATE, JUDGE_RATE).astype(np.float32)
    middle = np.arange(len(audio) // HOP) * FRAME_MS + FRAME_MS // 2
    f0, voiced = np.zeros(len(middle), np.float32), np.zeros(len(middle), np.float32)
    for moved in range(1, JUDGE_FRAME_MS, 2):
        lead = JUDGE_FRAME_MS - moved
        padded = np.pad(samples, (lead * JUDGE_RATE // 1000, JUDGE_RATE // 10))
        found = detector.detect(padded, JUDGE_RATE, fmin=F0_MIN, fmax=F0_MAX)
        here = np.flatnonzero(middle % JUDGE_FRAME_MS == moved)
        frames = (middle[here] + lead) // JUDGE_FRAME_MS
        f0[here], voiced[here] = found.pitch_hz[frames], found.confidence[frames]
    return f0, voiced


@cache
def _opened(root: Path) -> Corpus:
    """The corpus of a process of the pool: an open one cannot be sent to it."""
    return Corpus(root)


def _label(job: tuple[Path, str, Path]) -> None:
    root, speaker, path = job
    audio = _opened(root).audio(speaker)
    heard = hashlib.sha256(audio).hexdigest()
    if path.exists():
        with np.load(path) as stored:
            if stored["heard"] == heard:
                return
    f0, voiced = swift_track(audio.astype(np.float32) / 32768.0)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, f0=f0, voiced=voiced, heard=np.array(heard))


def learnt_from(corpus: Corpus) -> list[str]:
    """The speakers of a corpus that the pitch extractor learns from: people who read aloud.

    Raises:
        CorpusError: there is none.
    """
    speakers = sorted(
        name for name, entry in corpus.speakers.items() if entry.engine == "people" and entry.split == "train"
    )
    if not speakers:
        raise CorpusError(f"the corpus at {corpus.root} has no people: make it with  --people DIR")
    return speakers


def label(corpus: Corpus, folder: Path, workers: int, console: Console) -> None:
    """Writes what swift-f0 says about every speaker; what it has said about the same audio is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(corpus.root, name, folder / f"{name}.npz") for name in learnt_from(corpus)]
    with ProcessPoolExecutor(workers) as pool:
        for _ in track(pool.map(_label, jobs), "swift-f0", total=len(jobs), console=console):
            pass


class PitchFeatures(NamedTuple):
    """What the network sees of some items, and what it should say.

    Attributes:
        spectrum: [N, F, 96], float16; index j holds frame j - 2, and so do the next two.
        heard: F0 of the op in Hz, [N, F].
        periodicity: [N, F].
        f0: of frame j in Hz, [N, F]; of no meaning where unvoiced.
        voiced: probability that frame j is voiced, [N, F].
    """

    spectrum: Tensor
    heard: Tensor
    periodicity: Tensor
    f0: Tensor
    voiced: Tensor


class PitchItems:
    """Draws items that depend on the seed and their number alone.

    Speech is played faster or slower, put into rooms and on telephones, and noise, hum and other voices are
    added; the answers stay those for the clean recording.

    Args:
        corpus: of speech.
        labels: folder that `label` has filled.
        seed: of all draws.
        crop_frames: frames of an item.
    """

    def __init__(self, corpus: Corpus, labels: Path, seed: int, crop_frames: int) -> None:
        self.root = corpus.root
        self.seed = seed
        self.crop_frames = crop_frames
        self.speakers = learnt_from(corpus)
        self.tracks: dict[str, tuple[Float, Float]] = {}
        for name in self.speakers:
            with np.load(labels / f"{name}.npz") as stored:
                self.tracks[name] = stored["f0"], stored["voiced"]

    def draw(self, number: int) -> tuple[Float, Float, Float]:
        """Audio [240 F], F0 at the middle of its frames in Hz and probability of voicing, [F] each."""
        random = np.random.default_rng((self.seed, number))
        kind = random.choice(list(SHARES), p=list(SHARES.values()))
        if kind == "sung":
            clean, f0, voiced = sung(random, self.crop_frames)
        else:
            clean, f0, voiced = self._spoken(random)
            if kind == "whispered":
                clean, voiced = whispered(random, clean), np.zeros_like(voiced)
            elif kind == "transposed":
                clean, f0, voiced = transposed(random, clean, f0, voiced)
        return self._recorded(random, clean), f0, voiced

    def _spoken(self, random: np.random.Generator) -> tuple[Float, Float, Float]:
        """A crop of speech, half of them played at 0.6 to 2.5 times the speed."""
        speed = float(np.exp(random.uniform(np.log(0.6), np.log(2.5)))) if random.random() < 0.5 else 1.0
        speaker = str(random.choice(self.speakers))
        f0, voiced = self.tracks[speaker]
        needed = int(np.ceil(self.crop_frames * speed)) + 2
        start = int(random.integers(max(1, len(f0) - needed)))
        audio = (
            _opened(self.root).audio(speaker)[start * HOP : (start + needed) * HOP].astype(np.float32)
            / 32768.0
        )
        audio = np.pad(audio, (0, needed * HOP - len(audio)))
        if speed != 1.0:
            audio = soxr.resample(audio, SAMPLE_RATE * speed, SAMPLE_RATE).astype(np.float32)
        place = (np.arange(self.crop_frames) + 0.5) * speed - 0.5 + start
        frame = np.rint(place).astype(int)
        inside = frame < len(f0)
        frame = np.minimum(frame, len(f0) - 1)
        pitch = (f0[frame] * speed).astype(np.float32)
        known = inside & (pitch < F0_MAX)
        return audio[: self.crop_frames * HOP], pitch, np.where(known, voiced[frame], 0.0).astype(np.float32)

    def _recorded(self, random: np.random.Generator, clean: Float) -> Float:
        """Clean audio as a microphone may hear it."""
        audio = clean
        if random.random() < 0.3:
            audio = in_room(random, audio)
        level = _active_rms(audio)
        if random.random() < 0.7:
            noise = coloured_noise(random, len(audio))
            audio = audio + noise * level * 10.0 ** (-random.uniform(0.0, 40.0) / 20.0)
        if random.random() < 0.15:
            noise = sum(self._spoken(random)[0] for _ in range(4))
            noise = noise / (_active_rms(noise) + 1e-9)
            audio = audio + noise * level * 10.0 ** (-random.uniform(8.0, 30.0) / 20.0)
        if random.random() < 0.2:
            audio = audio + hum(random, len(audio)) * level * 10.0 ** (-random.uniform(5.0, 40.0) / 20.0)
        if random.random() < 0.3:
            audio = through_channel(random, audio)
        wanted = 10.0 ** (random.uniform(-50.0, -12.0) / 20.0)
        return (audio * (wanted / (_active_rms(audio) + 1e-9))).astype(np.float32)


def _active_rms(audio: Float) -> float:
    """RMS over the louder half of the frames."""
    power = np.mean(np.square(audio[: len(audio) // HOP * HOP].reshape(-1, HOP)), axis=1)
    return float(np.sqrt(np.mean(np.sort(power)[len(power) // 2 :])))


def coloured_noise(random: np.random.Generator, samples: int) -> Float:
    """Noise of unit RMS, white to brown, with a random spectrum and slow changes of level, [samples]."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    hz = np.fft.rfftfreq(samples, 1.0 / SAMPLE_RATE)
    shape = np.maximum(hz, 20.0) ** -random.uniform(0.0, 1.2)
    points = np.geomspace(50.0, 12000.0, 12)
    shape *= 10.0 ** (np.interp(np.log(np.maximum(hz, 50.0)), np.log(points), random.normal(0, 5, 12)) / 20.0)
    noise = np.fft.irfft(spectrum * shape, samples)
    seconds = samples / SAMPLE_RATE
    steps = max(2, int(seconds * 4))
    swell = np.interp(np.linspace(0, steps - 1, samples), np.arange(steps), random.normal(0, 3, steps))
    noise *= 10.0 ** (swell * random.integers(2) / 20.0)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def hum(random: np.random.Generator, samples: int) -> Float:
    """Mains hum or the whine of a machine, of unit RMS, [samples]."""
    f0 = (
        random.choice(_MAINS_HZ) if random.random() < 0.6 else np.exp(random.uniform(np.log(40), np.log(400)))
    )
    time = np.arange(samples) / SAMPLE_RATE
    sound = np.zeros(samples)
    for number in range(1, int(random.integers(2, 12))):
        loudness = 10.0 ** (random.normal(-3.0 * number, 8.0) / 20.0)
        sound += loudness * np.sin(2 * np.pi * (number * f0 * time + random.random()))
    return (sound / np.sqrt(np.mean(sound**2))).astype(np.float32)


def in_room(random: np.random.Generator, audio: Float) -> Float:
    """Audio with the reverberation of a room: noise that decays, behind the direct sound."""
    length = int(0.4 * SAMPLE_RATE)
    time = np.arange(length) / SAMPLE_RATE
    tail = random.standard_normal(length) * 10.0 ** (-3.0 * time / random.uniform(0.1, 0.7))
    tail[: int(0.002 * SAMPLE_RATE)] = 0.0
    tail *= 10.0 ** (-random.uniform(0.0, 15.0) / 20.0) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    size = 1 << int(np.ceil(np.log2(len(audio) + length)))
    wet = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(tail, size), size)
    return wet[: len(audio)].astype(np.float32)


def through_channel(random: np.random.Generator, audio: Float) -> Float:
    """Audio of a telephone, or with a random tilt and rumble filter."""
    spectrum = np.fft.rfft(audio)
    hz = np.fft.rfftfreq(len(audio), 1.0 / SAMPLE_RATE)
    if random.random() < 0.5:
        low, high = TELEPHONE_HZ
        gain = 1.0 / (1.0 + (low / np.maximum(hz, 1.0)) ** 8 + (hz / high) ** 16)
    else:
        tilt = random.uniform(-6.0, 6.0)
        gain = 10.0 ** (tilt * np.log2(np.maximum(hz, 50.0) / 1000.0) / 20.0)
        gain /= 1.0 + (random.uniform(20.0, 120.0) / np.maximum(hz, 1.0)) ** 4
    return np.fft.irfft(spectrum * gain, len(audio)).astype(np.float32)


def whispered(random: np.random.Generator, audio: Float) -> Float:
    """Noise with the spectral envelope of speech."""
    size, hop = 512, 128
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, size), size)[::hop]
    window = np.hanning(size)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    width = 7  # bins: 330 Hz, so that no harmonic is left
    smooth = np.stack([np.convolve(row, np.ones(width) / width, mode="same") for row in power])
    noise = random.standard_normal(len(audio) + 2 * size)
    carrier = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(noise, size)[::hop] * window)
    made = (
        np.fft.irfft(np.sqrt(smooth) * carrier[: len(smooth)] / np.sqrt(np.sum(window**2)), size)
        * window
        / 1.5
    )
    out = np.zeros(len(audio) + 3 * size)
    for index, frame in enumerate(made):
        out[index * hop : index * hop + size] += frame
    return out[size : size + len(audio)].astype(np.float32)


def transposed(
    random: np.random.Generator, audio: Float, f0: Float, voiced: Float
) -> tuple[Float, Float, Float]:
    """Speech with its own formants at half to four times its pitch, by the WORLD vocoder."""
    import pyworld

    on = voiced > 0.5
    middle = float(np.median(f0[on])) if on.any() else 100.0
    low, high = (np.log(np.clip(factor, 55.0 / middle, 900.0 / middle)) for factor in (0.5, 4.0))
    moved = f0 * np.exp(random.uniform(low, high))
    on &= (f0 < F0_MAX) & (moved > F0_MIN) & (moved < F0_MAX)
    # WORLD's frames begin at the first sample: half a frame in front makes them the middles of ours.
    samples = np.pad(audio, (HOP // 2, 0)).astype(np.float64)
    times = np.arange(len(f0) + 1) * FRAME_MS / 1000.0
    heard, wanted = (np.pad(np.where(on, track, 0.0), (1, 0)).astype(np.float64) for track in (f0, moved))
    envelope = pyworld.cheaptrick(samples, heard, times, SAMPLE_RATE)
    aperiodicity = pyworld.d4c(samples, heard, times, SAMPLE_RATE)
    made = pyworld.synthesize(wanted, envelope, aperiodicity, SAMPLE_RATE, float(FRAME_MS))
    made = np.pad(made, (0, len(samples)))[HOP // 2 : len(samples)]
    return made.astype(np.float32), moved.astype(np.float32), on.astype(np.float32)


def sung(random: np.random.Generator, frames: int) -> tuple[Float, Float, Float]:
    """Notes of 50 to 1100 Hz that glide and vibrate, from pure tones to rich ones, with pauses.

    Returns:
        Audio [240 frames], F0 in Hz and voicing, [frames] each.
    """
    curve = np.concatenate(list(_notes(random, frames)))[: frames * HOP]
    on = curve > 0
    f0 = np.where(on, curve, F0_MIN)
    phase = np.cumsum(f0 / SAMPLE_RATE)
    highest = int(min(40, 8000.0 / max(f0[on].min(), F0_MIN) if on.any() else 1))
    harmonics = int(random.choice([1, 2, 5, highest]))
    falls = random.uniform(0.0, 12.0)
    formants = _vowels(random, frames)
    sound = np.zeros(len(curve))
    for number in range(1, max(1, harmonics) + 1):
        hz = number * f0[HOP // 2 :: HOP]
        gain = 10.0 ** (-falls * np.log2(number) / 20.0) * (hz < 8000.0)
        if harmonics > 2:
            gain = gain * (0.05 + sum(1.0 / (1.0 + ((hz - peak) / 120.0) ** 2) for peak in formants.T))
        wave = np.sin((2 * np.pi * ((number * phase + random.random()) % 1.0)).astype(np.float32))
        sound += np.repeat(gain, HOP) * wave
    ramp = int(0.01 * SAMPLE_RATE)
    sound *= np.convolve(on, np.ones(ramp) / ramp, mode="same")
    middle = np.arange(frames) * HOP + HOP // 2
    return sound.astype(np.float32), f0[middle].astype(np.float32), on[middle].astype(np.float32)


def _vowels(random: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """Three formants that move from vowel to vowel, [frames, 3] in Hz."""
    count = frames // 20 + 2
    vowels = random.uniform([300, 900, 2200], [900, 2200, 3500], (count, 3))
    places = np.linspace(0, frames - 1, count)
    return np.stack([np.interp(np.arange(frames), places, formant) for formant in vowels.T], axis=1)


def _notes(random: np.random.Generator, frames: int) -> Iterator[NDArray[np.float64]]:
    """F0 of every sample in pieces, 0 in pauses, until they make up the frames."""
    centre, made = float(np.exp(random.uniform(np.log(60.0), np.log(900.0)))), 0
    while made < frames * HOP:
        samples = int(random.uniform(0.08, 0.7) * SAMPLE_RATE)
        time = np.arange(samples) / SAMPLE_RATE
        octaves = random.normal(0.0, 0.3) + random.normal(0.0, 0.4) * time
        octaves = octaves + random.uniform(0.0, 1.0) / 12.0 * np.sin(
            2 * np.pi * (random.uniform(4.0, 7.0) * time + random.random())
        )
        yield np.clip(centre * 2.0**octaves, F0_MIN * 1.02, F0_MAX * 0.98)
        pause = np.zeros(int(random.choice([0.0, random.uniform(0.02, 0.4)]) * SAMPLE_RATE))
        yield pause
        made += samples + len(pause)


class PitchBank:
    """Items with what the network sees of them, made once: the op and the spectrum are not trained.

    Args:
        items: what to draw from.
        folder: where they are kept.
        count: how many.
    """

    SHARD = 64

    def __init__(self, items: PitchItems, folder: Path, count: int) -> None:
        self.items = items
        self.folder = folder
        self.count = count

    def make(self, workers: int, console: Console) -> None:
        """Makes what is missing; goes on where it was stopped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [shard for shard in range(-(-self.count // self.SHARD)) if not self._path(shard).exists()]
        with ProcessPoolExecutor(workers) as pool:
            made = pool.map(self._make, missing)
            for _ in track(made, "items", total=len(missing), console=console):
                pass

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:04}.npz"

    @torch.no_grad()
    def _make(self, shard: int) -> None:
        torch.set_num_threads(1)
        numbers = range(shard * self.SHARD, min((shard + 1) * self.SHARD, self.count))
        drawn = [self.items.draw(number) for number in numbers]
        audio, f0, voiced = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
        extractor = PitchExtractor()
        audio, _ = extractor.hum_filter(audio, audio.new_zeros(len(audio), extractor.hum_filter.state_size))
        past = audio.new_zeros(len(audio), PITCH_YIN_STATE_SIZE)
        heard, periodicity, _ = pitch_yin(audio, past, voicing_threshold=0.0)
        features = PitchFeatures(extractor.spectrum(audio, past).half(), heard, periodicity, f0, voiced)
        with atomic_path(self._path(shard)) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: part.numpy() for name, part in features._asdict().items()})

    def read(self) -> PitchFeatures:
        """All items."""
        parts = []
        for shard in range(-(-self.count // self.SHARD)):
            with np.load(self._path(shard)) as stored:
                parts.append(PitchFeatures(**{name: torch.from_numpy(stored[name]) for name in stored}))
        return PitchFeatures(*(torch.cat(part) for part in zip(*parts, strict=True)))
