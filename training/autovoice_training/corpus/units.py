"""The plan of the Kokoro part of the corpus, and its rendering, one small file after the other.

A unit is a sentence in three or four voices, aligned sample by sample, or in one voice with its own prosody.
The plan is a fixed sequence of which every beginning is balanced, so that rendering may stop at any moment.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from autovoice.atomic import atomic_path
from autovoice_training.corpus import audio as levels
from autovoice_training.corpus import kokoro as synthesiser
from autovoice_training.corpus.config import CorpusConfig, HeldOut
from autovoice_training.corpus.phones import code_of, labels_at_frames
from autovoice_training.corpus.texts import sentences

Packs = Mapping[str, NDArray[np.float32]]

# Beyond these factors on the F0 curve the rendered pitch follows the curve less well.
_LEAST_SCALE, _MOST_SCALE = 0.62, 1.6
_SPEEDS = (0.85, 1.15)
_VALIDATION = 40  # one aligned unit in so many
_PACK_WEIGHT = 2  # a pack leads so many times as often as a blend
_QUIET_DB, _PAUSE_FRAMES = 55.0, 8


@dataclass(frozen=True)
class Unit:
    """One sentence.

    Attributes:
        name: of its file; names sort in the order of the plan.
        text: what is said.
        british: whether as a British speaker says it.
        speed: 2 halves the durations.
        voices: whose timbres; the prosody is the first one's.
        scales: factor on the F0 curve for each voice, so that it speaks at its usual pitch.
        split: "train" or "valid".
    """

    name: str
    text: str
    british: bool
    speed: float
    voices: tuple[str, ...]
    scales: tuple[float, ...]
    split: str


def blends(packs: list[str], count: int, seed: int) -> list[str]:
    """Names of different mixtures of two packs, ``a+b``, in which every pack occurs about as often."""
    rng = np.random.default_rng([seed, 11])
    pairs = list(itertools.combinations(sorted(packs), 2))
    if count > len(pairs):
        raise ValueError(f"blends = {count}: {len(packs)} voices have {len(pairs)} pairs")
    used: Counter[str] = Counter()
    chosen = []
    for _ in range(count):
        order = rng.permutation(len(pairs))
        best = min(order, key=lambda index: sum(used[name] for name in pairs[index]))
        first, second = pairs.pop(best)
        used.update((first, second))
        chosen.append(f"{first}+{second}")
    return chosen


def voices(packs: Packs, held_out: HeldOut, config: CorpusConfig) -> dict[str, NDArray[np.float32]]:
    """Every voice that training may hear by name: the packs that are not held out, and blends of them.

    Raises:
        ValueError: a voice that is held out is no pack, or too many blends are asked for.
    """
    kept_out = {name for names in held_out.packs.values() for name in names}
    if unknown := sorted(kept_out - set(packs)):
        raise ValueError(f"{unknown[0]!r} is to be kept out of training and is no voice of Kokoro")
    own = {name: pack for name, pack in packs.items() if name not in kept_out}
    mixed = {}
    for name in blends(list(own), config.blends, config.seed):
        first, second = name.split("+")
        mixed[name] = (own[first] + own[second]) / 2
    return own | mixed


def plan(config: CorpusConfig, pitch: Mapping[str, float]) -> Iterator[Unit]:
    """The units of the corpus in order.

    Args:
        config: numbers and seed.
        pitch: usual pitch in Hz of every voice that training may hear.
    """
    rng = np.random.default_rng([config.seed, 13])
    turns = [name for name in sorted(pitch) for _ in range(1 if "+" in name else _PACK_WEIGHT)]
    leaders = _rounds(turns, rng)
    alone = _rounds(turns, rng)
    partnered: Counter[str] = Counter()
    total, groups = config.groups + config.free, 0
    for number, text in zip(range(total), sentences(config.seed), strict=False):
        speed = float(rng.uniform(*_SPEEDS))
        split = "train"
        if (number + 1) * config.groups // total == groups:
            said: list[str] = [next(alone)]
        else:
            groups += 1
            split = "valid" if groups % _VALIDATION == 0 else split
            said = [next(leaders)]
            near = [
                name
                for name in sorted(pitch)
                if name != said[0] and _LEAST_SCALE <= pitch[name] / pitch[said[0]] <= _MOST_SCALE
            ]
            order = rng.permutation(len(near))
            chosen = sorted(order, key=lambda index: partnered[near[index]])[: 2 + groups % 2]
            said += [near[index] for index in chosen]
            partnered.update(said[1:])
        scales = tuple(pitch[name] / pitch[said[0]] for name in said)
        yield Unit(f"u{number:05d}", text, synthesiser.is_british(said[0]), speed, tuple(said), scales, split)


def _rounds(turns: list[str], rng: np.random.Generator) -> Iterator[str]:
    while True:
        yield from (turns[index] for index in rng.permutation(len(turns)))


def render(unit: Unit, kokoro: synthesiser.Kokoro, styles: Packs, folder: Path) -> None:
    """Write a unit's file: audio of each voice by its number, int16 [240 F], phonemes and their durations."""
    phonemes = kokoro.phonemes(unit.text, unit.british)
    prosody = styles[unit.voices[0]]
    said = [
        kokoro.speak(phonemes, styles[voice], prosody, unit.speed, scale)
        for voice, scale in zip(unit.voices, unit.scales, strict=True)
    ]
    samples = len(said[0].audio)
    if any(len(one.audio) != samples for one in said):
        raise ValueError(f"{unit.name}: the renditions of {unit.text!r} differ in length")
    frames = -(-samples // levels.HOP)
    arrays: dict[str, NDArray[np.generic]] = {
        str(number): levels.normalise(levels.fit(one.audio, frames), f"{voice}/{unit.name}")
        for number, (voice, one) in enumerate(zip(unit.voices, said, strict=True))
    }
    with atomic_path(folder / f"{unit.name}.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, phonemes=np.array(phonemes), durations=said[0].durations, **arrays)  # type: ignore[arg-type]


def read(unit: Unit, number: int, folder: Path) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Audio [240 F] of one voice of a rendered unit by its number, and the phone of every frame [F]."""
    with np.load(folder / f"{unit.name}.npz") as stored:
        codes, ends = synthesiser.segments(str(stored["phonemes"]), stored["durations"])
        leader, audio = stored["0"], stored[str(number)]
    labels = labels_at_frames(codes, ends, len(audio) // levels.HOP, levels.FRAME_SECONDS)
    return audio, _with_pauses(labels, leader)


def _with_pauses(labels: NDArray[np.int16], audio: NDArray[np.int16]) -> NDArray[np.int16]:
    """Label as a pause what is silent for longer than a closure; Kokoro's durations give it to a sound."""
    power = np.square(audio.reshape(-1, levels.HOP), dtype=np.float64).mean(axis=1)
    quiet = power < power.max() * 10 ** (-_QUIET_DB / 10)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]]).astype(np.int8)))
    labels = labels.copy()
    for first, last in edges.reshape(-1, 2):
        if last - first >= _PAUSE_FRAMES:
            labels[first:last] = code_of("pau")
    return labels


_worker: tuple[synthesiser.Kokoro, Packs, Path]


def _start(styles: Packs, folder: Path) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = synthesiser.Kokoro(), styles, folder


def _render(unit: Unit) -> None:
    kokoro, styles, folder = _worker
    render(unit, kokoro, styles, folder)


def render_all(
    units: list[Unit], styles: Packs, folder: Path, workers: int, say: Callable[[str], None]
) -> None:
    """Render what is not there yet, in order.

    Args:
        units: the whole plan.
        styles: voices by name.
        folder: of the units' files.
        workers: processes.
        say: receives a line now and then, for logs; terminals see a bar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = set(rendered(units, folder))
    missing = [unit for unit in units if unit not in made]
    columns = (
        TextColumn("units"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns) as progress,
        ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(styles, folder)
        ) as pool,
    ):
        bar = progress.add_task("units", total=len(units), completed=len(units) - len(missing))
        try:
            for unit, _ in zip(missing, pool.map(_render, missing), strict=True):
                progress.advance(bar)
                if unit.name.endswith("00"):
                    say(f"rendered up to unit {unit.name} of {units[-1].name}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def rendered(units: list[Unit], folder: Path) -> list[Unit]:
    """The units that have been rendered."""
    made = {path.stem for path in folder.glob("u*.npz")}
    return [unit for unit in units if unit.name in made]


def write_plan(folder: Path, config: CorpusConfig, pitch: Mapping[str, float]) -> list[Unit]:
    """The plan of a folder.

    Raises:
        ValueError: the folder was begun with another one.
    """
    units = list(plan(config, pitch))
    path = folder / "plan.json"
    listed = [[unit.name, unit.text, list(unit.voices)] for unit in units]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(listed))
    elif json.loads(path.read_text()) != listed:
        raise ValueError(
            f"{folder} was begun with other settings than these; give another --cache or remove it"
        )
    return units
