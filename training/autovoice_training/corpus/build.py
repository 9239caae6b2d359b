"""Build the corpus: people, the voices set aside for the evaluation, Kokoro's units, and the index."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autovoice_training.corpus import heldout, kokoro, people, spoken, store, units
from autovoice_training.corpus.config import CorpusConfig, HeldOut
from autovoice_training.corpus.store import Speaker, SpeakerWriter
from autovoice_training.corpus.voices import MissingVoiceError


def build(
    root: Path,
    cache: Path,
    config: CorpusConfig,
    held_out: HeldOut,
    people_folder: Path | None = None,
    workers: int = 1,
    render: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Build the corpus into a folder, keeping what is already there; returns the index.

    Args:
        root: folder of the corpus.
        cache: folder of what is downloaded and rendered.
        config: how much.
        held_out: who is kept out of training.
        people_folder: recordings in LibriSpeech's layout; None: nobody but those gathered before.
        workers: processes that render.
        render: False takes what is rendered and renders nothing.
        say: receives one line a step.

    Raises:
        KokoroError: a package is missing or damaged.
        EngineError: an installed synthesiser failed.
        ValueError: settings that do not fit the folders, or a folder of people without recordings.
    """
    if people_folder is not None:
        say(f"{people.gather(root, people_folder, held_out.readers)} readers")
    packs = kokoro.voice_packs(cache)
    voices = units.voices(packs, held_out, config)
    planned = units.write_plan(cache / "units", config, kokoro.usual_pitch(voices, cache / "pitch.json"))
    if render:
        try:
            spoken.write_sets(root, say)
        except MissingVoiceError as missing:
            say(f"the evaluation's sets of synthesisers are left out: {missing}")
        for kind, names in held_out.packs.items():
            heldout.render(root, kind, packs, names, say)
        units.render_all(planned, voices, cache / "units", workers, say)
    names = gather_units(root, units.rendered(planned, cache / "units"), cache / "units")
    readers = [path.parent.name for path in sorted(root.glob("speakers/reader_*/speaker.json"))]
    index = store.write_index(root, [*readers, *names], config.seed)
    hours = sum(utterance["frames"] for utterance in index["utterances"]) / 360000
    say(f"{len(index['speakers'])} speakers, {len(index['utterances'])} utterances, {hours:.1f} hours")
    return index


def gather_units(root: Path, rendered: list[units.Unit], folder: Path) -> list[str]:
    """Write every voice of the rendered units as a speaker of the corpus; returns their names."""
    said: dict[str, list[tuple[units.Unit, int]]] = defaultdict(list)
    for unit in rendered:
        for number, voice in enumerate(unit.voices):
            said[voice].append((unit, number))
    for voice, parts in sorted(said.items()):
        packs = voice.split("+")
        of_sex = {kokoro.sex_of(pack) for pack in packs}
        sex = of_sex.pop() if len(of_sex) == 1 else "unknown"
        writer = SpeakerWriter(
            root, Speaker(voice, voice, sex, "kokoro", 24000, "train", pseudo=len(packs) > 1)
        )
        for unit, number in parts:
            audio, labels = units.read(unit, number, folder)
            group = unit.name if len(unit.voices) > 1 else None
            writer.add(unit.name, unit.text, audio, labels, unit.split, group)
        writer.close()
    return sorted(said)
