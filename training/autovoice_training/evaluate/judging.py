"""All judges on one pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovoice_training.evaluate import pitch, systems
from autovoice_training.evaluate.artifacts import find_artifacts
from autovoice_training.evaluate.audio import Audio, at_judge_rate
from autovoice_training.evaluate.conditions import PLAIN, Condition
from autovoice_training.evaluate.judges import Embedding, Judges, cached, unit
from autovoice_training.evaluate.pairs import Pair
from autovoice_training.evaluate.sets import Speaker

ConverterFactory = Callable[[], systems.Converter]

SOURCE, WORLD, RESULT, COPY, TARGET = "source", "world", "result", "copy_synthesis", "target"
OWN, OWN_OTHER = "own_voice", "own_voice_other_reference"

SYSTEMS = {
    SOURCE: "source",
    WORLD: "WORLD shift",
    RESULT: "AutoVoice",
    OWN: "AutoVoice into its own speaker",
    OWN_OTHER: "the same, another recording as the reference",
    COPY: "copy-synthesis (WORLD)",
    TARGET: "target",
}
"""What is judged: the source unconverted, conversions of it, and the target's own rendition of the sentence
or, where there is none, another recording of the target."""

# A target whose power above 8 kHz is lower has no highs that could be missing.
HIGH_BAND_HEARD_DB = -50.0


@dataclass(frozen=True)
class Verdict:
    """The judges on all systems for one pair.

    Attributes:
        pair: what was converted.
        condition: name of what was done to it.
        shift_semitones: transposition that matches the medians of source and reference, and the condition's.
        scores: by system, then by measure of `summary.MEASURES`; a measure that does not apply is absent.
            `word_errors` and `words` are what word error rates are made of.
    """

    pair: Pair
    condition: str
    shift_semitones: float
    scores: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "source": self.pair.source.name,
            "target": self.pair.target.name,
            "recording": self.pair.clip.path.stem,
            "same_sex": self.pair.same_sex,
            "condition": self.condition,
            "shift_semitones": self.shift_semitones,
            "scores": self.scores,
        }


@dataclass(frozen=True)
class Renditions:
    """The recordings of one pair.

    Attributes:
        audio: by system, at RATE.
        shift_semitones: transposition of the conversion.
        melody: F0 of the source that is to be transposed, Hz, as `pitch.f0_track` says it.
    """

    audio: dict[str, Audio]
    shift_semitones: float
    melody: NDArray[np.float64]


class Jury:
    """The judges and a voice under test.

    Args:
        make_converter: opens the voice under test.
        cache: folder for what the judges said and the baselines; a rerun on the same samples asks nobody.
    """

    def __init__(self, make_converter: ConverterFactory, cache: Path | None = None) -> None:
        self._converter = make_converter()
        self._judges = Judges(cache)
        self._world_shift = cached(systems.world_shift, cache, systems)

    def render(self, pair: Pair, condition: Condition = PLAIN) -> Renditions:
        """Makes every recording that is judged for a pair; of a voice into itself, its own alone."""
        recorded = pair.clip.load()
        source = condition.change(recorded)
        reference = pair.reference()
        embedding = self._converter.embed(reference)
        # Noise decides neither by how much is transposed nor which melody is expected.
        melody = self._f0(recorded if condition.keeps_melody else source)
        if pair.source is pair.target:
            converted = self._converter.convert(source, embedding, condition.shift_semitones)
            system = OWN_OTHER if pair.enrolment_as_reference else OWN
            return Renditions({SOURCE: source, system: converted}, condition.shift_semitones, melody)
        matched = pitch.shift_to_match(melody, self._f0(reference)) + condition.shift_semitones
        shift = float(np.clip(matched, -pitch.MAX_SHIFT_SEMITONES, pitch.MAX_SHIFT_SEMITONES))
        audio = {
            SOURCE: source,
            WORLD: self._world_shift(source, shift),
            RESULT: self._converter.convert(source, embedding, shift),
            COPY: self._world_shift(source, 0.0),
            TARGET: pair.target_clip.load(),
        }
        return Renditions(audio, shift, melody)

    def judge(self, pair: Pair, condition: Condition = PLAIN) -> Verdict:
        """Asks all judges about all recordings of a pair."""
        return self.judge_renditions(pair, self.render(pair, condition), condition)

    def judge_renditions(self, pair: Pair, renditions: Renditions, condition: Condition = PLAIN) -> Verdict:
        """Asks all judges about recordings that `render` made."""
        heard = {system: at_judge_rate(audio) for system, audio in renditions.audio.items()}
        found = {system: asdict(find_artifacts(audio)) for system, audio in renditions.audio.items()}
        own = pair.source is pair.target
        highs = found[SOURCE if own else TARGET]["high_band"]
        scores = {}
        for system, audio in heard.items():
            if own and system == SOURCE:
                continue  # the pairs tell of it
            said = pair.target_clip.text if system == TARGET else self._said(pair)
            measured = {
                **self._identity(pair, audio, heard[SOURCE]),
                **(self._words(audio, said) if said else {}),
                "distill_mos": self._judges.distill_mos(audio),
                **self._judges.dns_mos(audio),
                **found[system],
                "click": found[system]["click"] / found[SOURCE]["click"],
            }
            if system not in (SOURCE, TARGET):
                shift = 0.0 if system == COPY else renditions.shift_semitones
                measured |= asdict(pitch.compare_f0(self._judges.f0_track(audio), renditions.melody, shift))
                if highs > HIGH_BAND_HEARD_DB:
                    measured["high_band_difference"] = found[system]["high_band"] - highs
            scores[system] = measured
        return Verdict(pair, condition.name, renditions.shift_semitones, scores)

    def _f0(self, audio: Audio) -> NDArray[np.float64]:
        track: NDArray[np.float64] = self._judges.f0_track(at_judge_rate(audio))
        return track

    def _said(self, pair: Pair) -> str:
        """What the source says: the text where it is known, else what Whisper hears in the recording."""
        return pair.clip.text or str(self._judges.transcribe(at_judge_rate(pair.clip.load())))

    def _words(self, audio: Audio, said: str) -> dict[str, float]:
        errors, words = self._judges.words.errors(self._judges.transcribe(audio), said)
        return {"word_errors": errors, "words": words} if words else {}

    def _identity(self, pair: Pair, audio: Audio, source: Audio) -> dict[str, float]:
        found = {}
        for name, embed in (("spk", self._judges.embed), ("ge2e", self._judges.embed_ge2e)):
            if pair.enrolment_as_reference:
                continue  # the conversion has heard it
            voice = embed(audio)
            to_target = float(voice @ self._enrolled(pair.target, embed))
            found[f"{name}_similarity"] = to_target
            if pair.source is not pair.target:
                to_source = float(voice @ self._enrolled(pair.source, embed))
                found[f"{name}_similarity_source"] = to_source
                found[f"{name}_nearer_target"] = float(to_target > to_source)
        found["spk_similarity_file"] = float(self._judges.embed(audio) @ self._judges.embed(source))
        return found

    def _enrolled(self, speaker: Speaker, embed: Callable[[Audio], Embedding]) -> Embedding:
        """The mean direction of a speaker's enrolment."""
        return unit(np.mean([embed(at_judge_rate(clip.load())) for clip in speaker.enrolment], axis=0))
