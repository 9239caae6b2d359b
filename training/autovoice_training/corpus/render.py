"""Render one speaker: the parallel diphone voices, the text-driven voices, espeak-ng variants, warps."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autovoice_training.corpus import audio as levels
from autovoice_training.corpus import engines, phones, prosody, recordings, warp
from autovoice_training.corpus.store import Speaker, SpeakerWriter
from autovoice_training.corpus.voices import VOICES, Voice

_ACCENTS = (
    "en-us",
    "en-gb",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-us",
    "en-gb-x-gbclan",
    "en-us",
    "en-gb-x-gbcwmd",
    "en-029",
    "en-us",
    "de",
    "es",
    "pl",
    "nl",
    "en-us",
    "it",
)


@dataclass(frozen=True)
class Job:
    """One speaker to render.

    Attributes:
        kind: "diphone", "text", "espeak", "warp", "follow" or "recorded".
        name: speaker name.
        sentences: (sentence id, text, split) in the order of the corpus; for warps and recordings only their
            number counts.
        count: for warps, how many pseudo-speakers to make of the speaker ``name``.
        leader: for "follow", the speaker whose recorded timing and melody the voice ``name`` follows.
    """

    kind: str
    name: str
    sentences: tuple[tuple[str, str, str], ...]
    count: int = 0
    leader: str = ""


@dataclass(frozen=True)
class Rendered:
    """One utterance: audio int16 [240 * frames], labels int16 [frames] or None, rate in Hz it was made at."""

    audio: np.ndarray
    labels: np.ndarray | None
    rate: int


def load_plans(root: Path) -> dict[str, engines.Segments]:
    """Read the reference voice's plans."""
    raw = json.loads((root / "plans.json").read_text())
    return {
        name: engines.Segments(tuple(p["phones"]), tuple(p["ends"]), tuple((t, f) for t, f in p["targets"]))
        for name, p in raw["plans"].items()
    }


def diphone_utterances(
    voice: Voice, sentences: tuple[str, ...], plans: dict[str, engines.Segments], seed: int, natural: bool
) -> dict[str, Rendered]:
    """Speak sentences in a diphone voice with the reference voice's timing."""
    timings = {name: prosody.common_timing(plans[name], name, seed, natural) for name in sentences}
    return _speak(voice, timings, seed, natural)


def _speak(
    voice: Voice, timings: dict[str, tuple[engines.Segments, int]], seed: int, natural: bool
) -> dict[str, Rendered]:
    """Speak given timings, each with its number of frames, in a diphone voice."""
    diphones = phones.read_diphones(voice.group_file)
    items = [
        (name, prosody.in_voice(timing, voice, diphones, name, seed, natural)[0])
        for name, (timing, _) in timings.items()
    ]
    rendered = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for start in range(0, len(items), 100):  # so that the scratch audio stays small
            part = items[start : start + 100]
            engines.render_segments(voice.engine_name, part, scratch)
            for name, _ in part:
                timing, frames = timings[name]
                wave, rate = levels.read(scratch / f"{name}.wav")
                (scratch / f"{name}.wav").unlink()
                codes = [phones.code_of(phone) for phone in timing.phones]
                labels = phones.labels_at_frames(codes, timing.ends, frames, levels.FRAME_SECONDS)
                fitted = levels.normalise(levels.fit(wave, frames), f"{voice.name}/{name}")
                rendered[name] = Rendered(fitted, labels, rate)
    return rendered


def text_utterances(voice: Voice, sentences: dict[str, str], seed: int, natural: bool) -> dict[str, Rendered]:
    """Speak sentences in a voice that decides phones and timing itself."""
    rendered = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if voice.engine == "hts":
            said = engines.render_texts(voice.engine_name, list(sentences.items()), scratch)
        else:
            said = {}
            for name, text in sentences.items():
                stretch = 1.0 if natural else prosody.generator(seed, voice.name, name).uniform(0.85, 1.2)
                said[name] = engines.render_flite(voice.engine_name, text, scratch / f"{name}.wav", stretch)
        for name in sentences:
            wave, rate = levels.read(scratch / f"{name}.wav")
            frames = -(-len(wave) // levels.HOP)
            labels = None
            if voice.labelled:
                codes = [phones.code_of(phone) for phone in said[name].phones]
                labels = phones.labels_at_frames(codes, said[name].ends, frames, levels.FRAME_SECONDS)
            fitted = levels.normalise(levels.fit(wave, frames), f"{voice.name}/{name}")
            rendered[name] = Rendered(fitted, labels, rate)
    return rendered


def _voice_speaker(voice: Voice, rate: int) -> Speaker:
    approximate = phones.APPROXIMATE[voice.language] if voice.engine == "diphone" else ()
    return Speaker(
        voice.name, voice.human, voice.sex, voice.engine, rate, voice.split, approximate=approximate
    )


def _espeak_variant(name: str, seed: int) -> tuple[str, str, str]:
    """Sex, language and definition of a random espeak-ng variant; no echo, which would smear the phones."""
    rng = prosody.generator(seed, name)
    female = rng.random() < 0.5
    base = rng.uniform(150, 240) if female else rng.uniform(70, 130)
    tract = rng.uniform(1.02, 1.25) if female else rng.uniform(0.82, 1.05)
    lines = [
        "language variant",
        f"name {name}",
        f"gender {'female' if female else 'male'}",
        "echo 0 0",
        f"pitch {base:.0f} {base * rng.uniform(1.25, 1.6):.0f}",
        f"roughness {rng.integers(0, 4)}",
        f"flutter {rng.integers(0, 5)}",
        f"voicing {rng.integers(80, 130)}",
        f"consonants {rng.integers(80, 130)} {rng.integers(80, 130)}",
    ]
    for formant in range(9):
        lines.append(
            f"formant {formant} {100 * tract * rng.uniform(0.94, 1.06):.0f}"
            f" {rng.integers(70, 130)} {rng.integers(80, 130)}"
        )
    if female:
        lines.append(f"breath 0 {' '.join(str(rng.integers(0, 4)) for _ in range(7))}")
    language = str(rng.choice(_ACCENTS))
    return "female" if female else "male", language, "\n".join(lines) + "\n"


def _espeak(root: Path, job: Job, seed: int) -> None:
    sex, language, definition = _espeak_variant(job.name, seed)
    with tempfile.TemporaryDirectory() as folder:
        data = engines.espeak_data(Path(folder), [(job.name, definition)])
        writer = None
        for sentence, text, split in job.sentences:
            rng = prosody.generator(seed, job.name, sentence)
            path = Path(folder) / "out.wav"
            engines.render_espeak(
                data,
                f"{language}+{job.name}",
                text,
                path,
                int(rng.integers(135, 195)),
                int(rng.integers(40, 61)),
            )
            wave, rate = levels.read(path)
            if writer is None:
                writer = SpeakerWriter(root, Speaker(job.name, job.name, sex, "espeak", rate, "train"))
            fitted = levels.normalise(levels.fit(wave, -(-len(wave) // levels.HOP)), f"{job.name}/{sentence}")
            writer.add(sentence, text, fitted, None, split, None)
    if writer is not None:
        writer.close()


def _warps(root: Path, job: Job, seed: int) -> None:
    """All warps of one speaker, so that each utterance is analysed once; every warp is its own speaker."""
    folder = root / "speakers" / job.name
    stored: dict[str, Any] = json.loads((folder / "speaker.json").read_text())
    base = stored["speaker"]
    recorded, labels = (
        np.load(folder / "audio.npy", mmap_mode="r"),
        np.load(folder / "phones.npy", mmap_mode="r"),
    )
    grid = warp.MALE if base["sex"] == "male" else warp.FEMALE
    writers = []
    for number, (formant, pitch) in enumerate(grid[: job.count]):
        jitter = prosody.generator(seed, "warp", job.name, number).uniform(-0.015, 0.015, 2)
        factors = (formant * (1 + jitter[0]), pitch * (1 + jitter[1]))
        # Formants moved down leave nothing above the old band edge times the factor.
        rate = int(min(base["native_rate"], levels.SAMPLE_RATE) * min(1.0, factors[0]))
        name = f"{job.name}_w{number}"
        speaker = Speaker(
            name, name, base["sex"], "world", rate, "train", True, job.name, tuple(base["approximate"])
        )
        writers.append((SpeakerWriter(root, speaker), factors))
    taken = [u for u in stored["utterances"] if u["split"] == "train"]
    order = prosody.generator(seed, "warp sentences", job.name).permutation(len(taken))[
        : len(job.sentences) or None
    ]
    for index in sorted(order):
        utterance = taken[index]
        first, count = utterance["start_frame"], utterance["frames"]
        analysis = warp.Analysis(recorded[first * levels.HOP : (first + count) * levels.HOP])
        own = np.array(labels[first : first + count]) if utterance["labelled"] else None
        for writer, (formant, pitch) in writers:
            name = f"{writer.speaker.name}/{utterance['sentence']}"
            wave = levels.normalise(analysis.resynthesise(formant, pitch), name)
            writer.add(utterance["sentence"], utterance["text"], wave, own, "train", utterance["group"])
    for writer, _ in writers:
        writer.close()


def _follow(root: Path, job: Job, seed: int) -> None:
    """A diphone voice says what another speaker was recorded saying, phone by phone, with its melody.

    So voices that decide their own timing, too, have aligned partners. The result is a speaker of its own,
    named after both, in groups with the recordings it follows.
    """
    folder = root / "speakers" / job.leader
    stored: dict[str, Any] = json.loads((folder / "speaker.json").read_text())
    recorded, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("audio", "phones"))
    taken = [u for u in stored["utterances"] if u["split"] == "train" and u["labelled"]]
    order = prosody.generator(seed, "followed sentences", job.leader).permutation(len(taken))
    followed = [taken[index] for index in sorted(order[: len(job.sentences)])]
    timings = {}
    for utterance in followed:
        span = slice(utterance["start_frame"], utterance["start_frame"] + utterance["frames"])
        audio = recorded[span.start * levels.HOP : span.stop * levels.HOP]
        timings[utterance["sentence"]] = (prosody.timing_of(audio, labels[span]), utterance["frames"])
    voice = VOICES[job.name]
    rendered = _speak(voice, timings, seed, natural=False)
    description = _voice_speaker(voice, next(iter(rendered.values())).rate)
    writer = SpeakerWriter(root, replace(description, name=f"{job.name}_as_{job.leader}"))
    for utterance in followed:
        one, sentence = rendered[utterance["sentence"]], utterance["sentence"]
        writer.add(sentence, utterance["text"], one.audio, one.labels, "train", f"{job.leader}:{sentence}")
    writer.close()


def _recorded(root: Path, job: Job, seed: int) -> None:
    voice = recordings.RECORDED[job.name]
    said, rate = recordings.utterances(voice, recordings.KEPT_OF, seed)
    writer = SpeakerWriter(root, _voice_speaker(voice, rate))
    for number, audio in enumerate(recordings.for_training(said)[: len(job.sentences)]):
        writer.add(f"r{number:03d}", "", audio, None, "train", None)
    writer.close()


def run_job(root: Path, job: Job, seed: int) -> None:
    """Render one job to disk."""
    if job.kind == "espeak":
        _espeak(root, job, seed)
    elif job.kind == "warp":
        _warps(root, job, seed)
    elif job.kind == "follow":
        _follow(root, job, seed)
    elif job.kind == "recorded":
        _recorded(root, job, seed)
    else:
        voice = VOICES[job.name]
        if job.kind == "diphone":
            names = tuple(name for name, _, _ in job.sentences)
            rendered = diphone_utterances(voice, names, load_plans(root), seed, natural=False)
        else:
            rendered = text_utterances(
                voice, {name: text for name, text, _ in job.sentences}, seed, natural=False
            )
        rate = next(iter(rendered.values())).rate
        writer = SpeakerWriter(root, _voice_speaker(voice, rate))
        for name, text, split in job.sentences:
            one = rendered[name]
            writer.add(name, text, one.audio, one.labels, split, name if job.kind == "diphone" else None)
        writer.close()
