"""Conversions to listen to: ``python -m autovoice_training.evaluate.examples``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import soxr
import typer
from rich.console import Console
from rich.progress import track

from autovoice import VoiceConversionError
from autovoice.audio.provenance import PROVENANCE_COMMENT
from autovoice_training.evaluate.dataset import Audio, Dataset, open_dataset
from autovoice_training.evaluate.judging import RESULT, Jury
from autovoice_training.evaluate.pairs import REFERENCE_SENTENCES, Pair
from autovoice_training.evaluate.runtime import RepositoryConverter

# Voices whose licences resemble BSD's; rms and ked were never heard in training.
CONVERSIONS = (
    ("slt", "awb"),
    ("kal", "slt"),
    ("rms", "slt"),
    ("slt", "rms"),
    ("awb", "ked"),
    ("rms", "ked"),
)
RATE = 16000
REFERENCE_SECONDS = 3.0

console = Console()


def example_pairs(dataset: Dataset) -> list[Pair]:
    """One pair for each of CONVERSIONS, each with a sentence of its own."""
    pairs = []
    for number, (source, target) in enumerate(CONVERSIONS):
        first, second = dataset.voices[source], dataset.voices[target]
        sentence = first.sentences[3 * number % len(first.sentences)]
        others = [other for other in second.sentences if other != sentence]
        references = tuple(others[number : number + REFERENCE_SENTENCES])
        seen = first.seen, second.seen
        pairs.append(Pair(source, target, sentence, references, *seen, first.sex == second.sex))
    return pairs


def main(
    repository: Annotated[Path, typer.Option(help="Model repository to hear.")] = Path("model_repository"),
    data: Annotated[Path, typer.Option(help="Evaluation set.")] = Path("data/corpus/eval"),
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("training/examples"),
    cache: Annotated[Path, typer.Option(help="Folder for what the judges said.")] = Path(
        "data/cache/evaluate"
    ),
) -> None:
    """Writes source, reference and result of six conversions as FLAC, and a table of their figures."""
    try:
        dataset = open_dataset(data)
        converter = RepositoryConverter(repository)
    except (OSError, ValueError, VoiceConversionError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    jury = Jury(dataset, lambda: converter, cache)
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Examples",
        "",
        "Six conversions of sentences never trained on, at 16 kHz; rms and ked were never heard in training.",
        "The reference is the beginning of what the voice was taken from.",
        "The voices are synthetic: flite's and festival's, under licences that resemble BSD's.",
        "`python -m autovoice_training.evaluate.examples`",
        "",
        "| conversion | said | shift, semitones | similarity to target / to source | words wrong | source / "
        "reference / result |",
        "|---|---|---|---|---|---|",
    ]
    for pair in track(example_pairs(dataset), "converting", console=console):
        verdict = jury.judge(pair)
        scores = verdict.scores[RESULT]
        name = f"{pair.source}_to_{pair.target}"
        source, rate = dataset.load(pair.source, pair.sentence)
        reference, reference_rate = dataset.load_joined(pair.target, pair.references)
        embedding = converter.embed(reference, reference_rate)
        result = converter.convert(source, rate, embedding, verdict.shift_semitones)
        _write(out / f"{name}_source.flac", source, rate)
        _write(
            out / f"{name}_reference.flac",
            reference[: round(REFERENCE_SECONDS * reference_rate)],
            reference_rate,
        )
        _write(out / f"{name}_result.flac", result, rate, PROVENANCE_COMMENT)
        files = " / ".join(f"[{part}]({name}_{part}.flac)" for part in ("source", "reference", "result"))
        wrong = (
            f"{scores.word_errors} of {verdict.words}" if scores.word_errors is not None else "not measured"
        )
        lines.append(
            f"| {pair.source} to {pair.target} | {dataset.texts[pair.sentence]} | "
            f"{verdict.shift_semitones:+.1f} | {scores.similarity_target:.2f} / "
            f"{scores.similarity_source:.2f} | {wrong} | {files} |"
        )
    (out / "README.md").write_text("\n".join(lines) + "\n")
    converter.close()
    console.print(f"table: {out / 'README.md'}")


def _write(path: Path, audio: Audio, rate: int, comment: str = "") -> None:
    samples = np.clip(soxr.resample(audio, rate, RATE), -1.0, 1.0)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16", format="FLAC") as file:
        if comment:
            file.comment = comment
        file.write(samples)


if __name__ == "__main__":
    typer.run(main)
