"""Conversions to listen to: ``python -m autovoice_training.evaluate.examples``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import typer
from rich.console import Console
from rich.progress import track

from autovoice import VoiceConversionError
from autovoice.audio.provenance import PROVENANCE_COMMENT
from autovoice_training.evaluate.audio import RATE, Audio
from autovoice_training.evaluate.judging import RESULT, SOURCE, Jury
from autovoice_training.evaluate.pairs import choose_pairs
from autovoice_training.evaluate.runtime import RepositoryConverter
from autovoice_training.evaluate.sets import EVALUATION, KOKORO, open_rendered

# Each combination of sexes, and two of them again.
CONVERSIONS = 6
REFERENCE_SECONDS = 4.0

console = Console()


def main(
    repository: Annotated[Path, typer.Option(help="Model repository to hear.")] = Path("model_repository"),
    corpus: Annotated[Path, typer.Option(help="Corpus with the evaluation set.")] = Path("data/corpus"),
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("training/examples"),
    cache: Annotated[Path, typer.Option(help="Folder for what the judges said.")] = Path(
        "data/cache/evaluate"
    ),
) -> None:
    """Writes source, reference and result of six conversions as FLAC, and a table of their figures."""
    try:
        pairs = choose_pairs(open_rendered(corpus, KOKORO, EVALUATION), CONVERSIONS)
        converter = RepositoryConverter(repository)
    except (OSError, ValueError, VoiceConversionError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    jury = Jury(lambda: converter, cache)
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Examples",
        "",
        "Conversions between voices of Kokoro-82M (Apache-2.0) that training never heard, of sentences that "
        "it never heard either. The reference is the beginning of what the voice was taken from.",
        "`python -m autovoice_training.evaluate.examples`",
        "",
        "| conversion | said | shift, semitones | CAM++ to target / to source | words wrong | DistillMOS, "
        "source / result | source / reference / result |",
        "|---|---|---|---|---|---|---|",
    ]
    for pair in track(pairs, "converting", console=console):
        renditions = jury.render(pair)
        verdict = jury.judge_renditions(pair, renditions)
        scores = verdict.scores[RESULT]
        name = f"{pair.source.name}_to_{pair.target.name}"
        reference = pair.reference()[: round(REFERENCE_SECONDS * RATE)]
        _write(out / f"{name}_source.flac", renditions.audio[SOURCE])
        _write(out / f"{name}_reference.flac", reference)
        _write(out / f"{name}_result.flac", renditions.audio[RESULT], PROVENANCE_COMMENT)
        files = " / ".join(f"[{part}]({name}_{part}.flac)" for part in ("source", "reference", "result"))
        lines.append(
            f"| {pair.source.name} to {pair.target.name} | {pair.clip.text} | "
            f"{verdict.shift_semitones:+.1f} | {scores['spk_similarity']:.2f} / "
            f"{scores['spk_similarity_source']:.2f} | {scores['word_errors']} of {scores['words']} | "
            f"{verdict.scores[SOURCE]['distill_mos']:.1f} / {scores['distill_mos']:.1f} | {files} |"
        )
    (out / "README.md").write_text("\n".join(lines) + "\n")
    converter.close()
    console.print(f"table: {out / 'README.md'}")


def _write(path: Path, audio: Audio, comment: str = "") -> None:
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16", format="FLAC") as file:
        if comment:
            file.comment = comment
        file.write(np.clip(audio, -1.0, 1.0))


if __name__ == "__main__":
    typer.run(main)
