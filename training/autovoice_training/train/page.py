"""A page of samples for a checkpoint: pictures of conversions, and what the judges say of them."""

from __future__ import annotations

import functools
from pathlib import Path

from autovoice.atomic import atomic_path
from autovoice_export.base.checkpoint import Checkpoint
from autovoice_export.base.stages.pitch_extractor import PitchExtractor
from autovoice_export.base.stages.synthesizer import Synthesizer
from autovoice_export.base.stages.target_pitch import TargetPitch
from autovoice_training.evaluate.judging import Jury
from autovoice_training.evaluate.pairs import choose_pairs, own_voices
from autovoice_training.evaluate.plots import draw_pair
from autovoice_training.evaluate.report import table
from autovoice_training.evaluate.runtime import StageConverter
from autovoice_training.evaluate.sets import DEVELOPMENT, open_people
from autovoice_training.evaluate.summary import summarise
from autovoice_training.train.content import KeyedEncoder

COLUMNS = ("spk_nearer_target", "spk_similarity", "spk_similarity_file", "whisper_wer", "distill_mos")


class SamplePages:
    """Converts between a few development readers with the voice so far.

    Args:
        people: recordings in LibriSpeech's layout.
        folder: for pages, pictures and what the judges said.
        pitch_extractor: of the voice.
        pairs: conversions; one more is of a reader into the own voice.

    Raises:
        MissingSetError: the folder lacks the development readers.
    """

    def __init__(self, people: Path, folder: Path, pitch_extractor: PitchExtractor, pairs: int = 4) -> None:
        readers = open_people(people, DEVELOPMENT)
        self._pairs = [*choose_pairs(readers, pairs), own_voices(readers)[0]]
        self._folder, self._pitch_extractor = folder, pitch_extractor

    def write(self, step: int, encoders: KeyedEncoder, synthesizer: Synthesizer) -> Path:
        """Writes ``step_N.md`` with its pictures; returns its path."""
        self._folder.mkdir(parents=True, exist_ok=True)
        stages = encoders.encoder, encoders.reference, synthesizer, TargetPitch(), self._pitch_extractor
        checkpoint = Checkpoint(*(stage.eval() for stage in stages))  # type: ignore[arg-type]
        jury = Jury(functools.partial(StageConverter, checkpoint), self._folder / "judged")
        verdicts, pictures = [], []
        for number, pair in enumerate(self._pairs, start=1):
            renditions = jury.render(pair)
            verdicts.append(jury.judge_renditions(pair, renditions))
            pictures.append(f"step_{step}_{number}.png")
            draw_pair(renditions, verdicts[-1], self._folder / pictures[-1])
        (summary,) = summarise(["readers"] * len(verdicts), verdicts).values()
        lines = [
            f"# Step {step}",
            "",
            f"{len(verdicts)} conversions of development readers; in brackets 95 % bootstrap intervals.",
            "",
            *table(summary, COLUMNS),
            "",
            *(f"![conversion {number}]({name})" for number, name in enumerate(pictures, start=1)),
        ]
        path = self._folder / f"step_{step}.md"
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n")
        return path
