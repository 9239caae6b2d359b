"""Build the corpus: sentences, plans, speakers, warps, evaluation set, index."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import soundfile
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from autovoice_training.corpus import engines, recordings, render, store, texts
from autovoice_training.corpus.audio import SAMPLE_RATE
from autovoice_training.corpus.config import CorpusConfig
from autovoice_training.corpus.render import Job
from autovoice_training.corpus.voices import (
    DEVELOPMENT_VOICES,
    DIPHONE_VOICES,
    EVALUATION_VOICES,
    REFERENCE,
    TEXT_VOICES,
    VOICES,
    Voice,
)

_ESPEAK = Voice("espeak", "espeak", "", "espeak", "espeak-ng", "train", "espeak-ng", labelled=False)


def sentences(config: CorpusConfig, seed: int) -> dict[str, list[tuple[str, str, str]]]:
    """The (id, text, split) lists of every part of the corpus; no text occurs in two parts."""
    espeak = config.espeak_speakers * config.espeak_sentences
    pool = texts.generate(config.parallel + config.valid + config.free + espeak, seed)
    out: dict[str, list[tuple[str, str, str]]] = {}
    for part, prefix, count, split in (
        ("parallel", "p", config.parallel, "train"),
        ("valid", "v", config.valid, "valid"),
        ("free", "f", config.free, "train"),
        ("espeak", "s", espeak, "train"),
    ):
        taken, pool = pool[:count], pool[count:]
        out[part] = [(f"{prefix}{number:04d}", text, split) for number, text in enumerate(taken)]
    for part, written, count in (
        ("evaluation", texts.EVALUATION_TEXTS, config.evaluation),
        ("development", texts.DEVELOPMENT_TEXTS, config.development),
    ):
        out[part] = [(f"{part[0]}{n:02d}", text, "test") for n, text in enumerate(written[:count])]
    return out


def _plan(root: Path, parts: dict[str, list[tuple[str, str, str]]], seed: int, config: CorpusConfig) -> None:
    """Let the reference voice plan every aligned sentence, once; refuse a folder made with other settings."""
    path = root / "plans.json"
    made_with = {"seed": seed, "config": asdict(config)}
    if path.exists():
        before = json.loads(path.read_text())["made_with"]
        if before != made_with:
            raise ValueError(
                f"{root} was begun with {before}, not {made_with}; give another --out or remove it"
            )
        return
    planned = ("parallel", "valid", "evaluation", "development")
    wanted = [(name, text) for part in planned for name, text, _ in parts[part]]
    with tempfile.TemporaryDirectory() as scratch:
        plans = engines.plan_texts(VOICES[REFERENCE].engine_name, wanted, Path(scratch))
    if absent := [name for name, _ in wanted if name not in plans]:
        raise engines.EngineError(f"festival planned no segments for sentence {absent[0]!r}")
    store.write_json(
        path, {"made_with": made_with, "plans": {name: asdict(plan) for name, plan in plans.items()}}
    )


def speaker_jobs(config: CorpusConfig, parts: dict[str, list[tuple[str, str, str]]]) -> list[Job]:
    """The jobs that need no other speaker's audio, longest first."""
    aligned = tuple(parts["parallel"] + parts["valid"])
    jobs = [Job("diphone", voice.name, aligned) for voice in DIPHONE_VOICES if voice.split == "train"]
    for voice in TEXT_VOICES:
        if voice.split == "train":
            jobs.append(
                Job("text", voice.name, tuple(parts["free"][: config.hts if voice.engine == "hts" else None]))
            )
    jobs += [
        Job("diphone", voice.name, tuple(parts["valid"]))
        for voice in DIPHONE_VOICES
        if voice.split == "valid"
    ]
    step = config.espeak_sentences
    for number in range(config.espeak_speakers):
        jobs.append(
            Job("espeak", f"espeak{number:02d}", tuple(parts["espeak"][number * step : (number + 1) * step]))
        )
    wanted = tuple(("", "", "train") for _ in range(config.recorded))
    jobs += [
        Job("recorded", voice.name, wanted) for voice in recordings.RECORDED_VOICES if voice.split == "train"
    ]
    return [job for job in jobs if job.sentences]


def warp_jobs(config: CorpusConfig, jobs: list[Job]) -> list[Job]:
    """One job of several pseudo-speakers for each training human with labels (once per human)."""
    out = []
    for job in jobs:
        voice = VOICES.get(job.name)
        if voice is None or voice.split != "train" or voice.name != voice.human or config.warps == 0:
            continue
        if any(split == "train" for _, _, split in job.sentences):
            out.append(Job("warp", job.name, job.sentences[: config.warp_sentences], config.warps))
    return out


def follow_jobs(config: CorpusConfig, parts: dict[str, list[tuple[str, str, str]]]) -> list[Job]:
    """Diphone voices that follow the recordings of each labelled flite voice."""
    voices = [voice.name for voice in DIPHONE_VOICES if voice.split == "train"][: config.followers]
    leaders = [v.name for v in TEXT_VOICES if v.engine == "flite" and v.labelled and v.split == "train"]
    sentences = tuple(parts["free"][: config.follow_sentences])
    return [
        Job("follow", name, sentences, leader=leader) for leader in leaders for name in voices if sentences
    ]


def _run(root: Path, jobs: list[Job], seed: int, workers: int, title: str) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns) as progress,
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        bar = progress.add_task(title, total=sum(len(job.sentences) for job in jobs))
        pending = {pool.submit(render.run_job, root, job, seed): job for job in jobs}
        try:
            for done in as_completed(pending):
                done.result()
                progress.console.print(f"{title}: {pending[done].name} done")
                progress.advance(bar, len(pending[done].sentences))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_spoken(
    root: Path, name: str, voices: tuple[str, ...], items: list[tuple[str, str, str]], seed: int
) -> None:
    """Lets every voice say every item, one file each, for the evaluation to read."""
    folder = root / name
    if (folder / "voices.json").exists() or not items:
        return
    plans = render.load_plans(root)
    names = tuple(name for name, _, _ in items)
    described: dict[str, Any] = {}
    for voice in (VOICES[name] for name in voices):
        aligned = voice.engine == "diphone"
        if aligned:
            rendered = render.diphone_utterances(voice, names, plans, seed, natural=True)
        else:
            rendered = render.text_utterances(
                voice, {name: text for name, text, _ in items}, seed, natural=True
            )
        (folder / voice.name).mkdir(parents=True, exist_ok=True)
        for name, one in rendered.items():
            soundfile.write(folder / voice.name / f"{name}.flac", one.audio, SAMPLE_RATE, subtype="PCM_16")
        described[voice.name] = {
            "human": voice.human,
            "sex": voice.sex,
            "seen": voice.split == "train",
            "aligned_to": REFERENCE if aligned else None,
            "native_rate": next(iter(rendered.values())).rate,
        }
    store.write_json(folder / "texts.json", {name: text for name, text, _ in items})
    store.write_json(folder / "voices.json", described)


def build(
    root: Path, config: CorpusConfig, workers: int = 2, seed: int = 0, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Build the corpus into a folder, skipping what is already there; returns the index.

    Args:
        root: folder; one that was stopped half-way is continued.
        config: sizes.
        workers: processes.
        seed: the same seed and sizes give the same corpus, byte for byte.
        say: receives one line per step.

    Raises:
        MissingVoiceError: an engine or voice is not installed.
        ValueError: the folder was begun with other settings.
    """
    for voice in (*VOICES.values(), _ESPEAK):
        voice.require()
    for voice in recordings.RECORDED_VOICES if config.recorded else ():
        recordings.require(voice)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    root.mkdir(parents=True, exist_ok=True)
    parts = sentences(config, seed)
    _plan(root, parts, seed, config)
    say("sentences planned")
    jobs = speaker_jobs(config, parts)
    _run(root, [job for job in jobs if not store.finished(root, job.name)], seed, workers, "voices")
    warps = [
        job
        for job in warp_jobs(config, jobs)
        if not all(store.finished(root, f"{job.name}_w{number}") for number in range(config.warps))
    ]
    _run(root, warps, seed, workers, "warps")
    follow = follow_jobs(config, parts)
    absent = [job for job in follow if not store.finished(root, f"{job.name}_as_{job.leader}")]
    _run(root, absent, seed, workers, "followers")
    _write_spoken(root, "eval", EVALUATION_VOICES, parts["evaluation"], seed)
    _write_spoken(root, "dev", DEVELOPMENT_VOICES, parts["development"], seed)
    if config.recorded:
        recordings.write_sets(root, seed)
    index = store.write_index(root, seed)
    say(f"{len(index['speakers'])} speakers, {len(index['utterances'])} utterances")
    return index
