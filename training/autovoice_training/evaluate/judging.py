"""All judges on one pair. What they say about a recording is kept on disk, keyed by its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Memory
from numpy.typing import NDArray

from autovoice_training.evaluate import cepstrum, pitch, speaker, words
from autovoice_training.evaluate.conditions import PLAIN, Condition
from autovoice_training.evaluate.dataset import Audio, Dataset, at_judge_rate
from autovoice_training.evaluate.naturalness import Naturalness, measure
from autovoice_training.evaluate.pairs import Pair
from autovoice_training.evaluate.systems import Converter, world_shift

ConverterFactory = Callable[[], Converter]

SOURCE, WORLD, RESULT, COPY, TARGET = "source", "world", "result", "copy", "target"

SYSTEMS = {
    SOURCE: "unconverted source",
    WORLD: "WORLD shift",
    RESULT: "AutoVoice",
    COPY: "copy-synthesis",
    TARGET: "target itself",
}
"""What is judged: the source, its conversions, and the target's own rendition of the sentence, where there is
one, once passed through the voice under test with its own embedding and once as it is."""

# English voices come out with at most 17 % of the words wrong, those of other languages with more than half.
PROBE_SENTENCES = 4
NATURAL_SENTENCES = 3
UNDERSTOOD_WER = 1 / 3

JUDGE_PACKAGES = ("librosa", "pocketsphinx", "pyworld", "resemblyzer", "swift-f0")


@dataclass(frozen=True)
class Scores:
    """What the judges say about one recording made for a pair.

    Attributes:
        similarity_target: cosine with the target speaker.
        similarity_source: cosine with the source speaker.
        nearer_target: whether it is nearer to the target.
        identified: whether the target is the nearest of all speakers.
        similarities: cosine with every speaker.
        mcd: dB to the target's own rendition of the sentence; None where there is none.
        f0_correlation: with the melody it should follow.
        gross_error: share of voiced frames more than 20 % off that melody.
        voicing_error: share of frames with the wrong voicing.
        word_errors: of the recogniser; None where it does not understand the speaker even unconverted.
        naturalness: see `Naturalness`.
    """

    similarity_target: float
    similarity_source: float
    nearer_target: bool
    identified: bool
    similarities: dict[str, float]
    mcd: float | None
    f0_correlation: float
    gross_error: float
    voicing_error: float
    word_errors: int | None
    naturalness: Naturalness


@dataclass(frozen=True)
class Verdict:
    """The judges on all systems for one pair.

    Attributes:
        pair: what was converted.
        condition: name of what was done to it.
        shift_semitones: transposition that matches the medians of source and reference, and the condition's.
        words: number of words in the sentence.
        scores: by system; those of the target's own rendition only where there is one.
    """

    pair: Pair
    condition: str
    shift_semitones: float
    words: int
    scores: dict[str, Scores]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {**asdict(self), "cell": self.pair.cell}


@dataclass(frozen=True)
class Renditions:
    """The recordings of one pair.

    Attributes:
        audio: by system, at JUDGE_RATE.
        shift_semitones: transposition of the conversion.
        melody: F0 of the source that is to be transposed, Hz, as `pitch.f0_track` says it.
    """

    audio: dict[str, Audio]
    shift_semitones: float
    melody: NDArray[np.float64]


class Jury:
    """The judges, an evaluation set and a voice under test.

    Args:
        dataset: voices and sentences.
        make_converter: opens the voice under test.
        cache: folder for what the judges said; a rerun on the same samples asks nobody again.
    """

    def __init__(self, dataset: Dataset, make_converter: ConverterFactory, cache: Path) -> None:
        memory = Memory(cache / _judges_digest(), verbose=0)
        self._dataset = dataset
        self._converter = make_converter()
        self._f0 = memory.cache(pitch.f0_track)
        self._embed = memory.cache(speaker.embed)
        self._cepstrum = memory.cache(cepstrum.mel_cepstrum)
        self._transcribe = memory.cache(words.transcribe)
        self._understood: dict[str, bool] = {}

    def render(self, pair: Pair, condition: Condition = PLAIN) -> Renditions:
        """Makes every recording that is judged for a pair."""
        recorded, rate = self._dataset.load(pair.source, pair.sentence)
        source = condition.change(recorded, rate)
        reference, reference_rate = self._dataset.load_joined(pair.target, pair.references)
        embedding = self._converter.embed(reference, reference_rate)
        # Noise decides neither by how much is transposed nor which melody is expected.
        melody = self._f0(at_judge_rate(recorded if condition.keeps_melody else source, rate))
        matched = pitch.shift_to_match(melody, self._f0(at_judge_rate(reference, reference_rate)))
        most = pitch.MAX_SHIFT_SEMITONES
        shift = float(np.clip(matched + condition.shift_semitones, -most, most))
        audio = {
            SOURCE: at_judge_rate(source, rate),
            WORLD: at_judge_rate(world_shift(source, rate, shift), rate),
            RESULT: at_judge_rate(self._converter.convert(source, rate, embedding, shift), rate),
        }
        if pair.sentence in self._dataset.voices[pair.target].sentences:
            target, target_rate = self._dataset.load(pair.target, pair.sentence)
            copy = self._converter.convert(target, target_rate, embedding, 0.0)
            audio |= {COPY: at_judge_rate(copy, target_rate), TARGET: at_judge_rate(target, target_rate)}
        return Renditions(audio, shift, melody)

    def judge(self, pair: Pair, condition: Condition = PLAIN) -> Verdict:
        """Asks all judges about all recordings of a pair."""
        renditions = self.render(pair, condition)
        enrolled = self._enrol(pair)
        said = words.words_of(self._dataset.texts.get(pair.sentence, ""))
        goal = self._cepstrum(renditions.audio[TARGET]) if TARGET in renditions.audio else None
        scores = {}
        for system, audio in renditions.audio.items():
            # Copy-synthesis has the target's melody to follow, conversions that of the source, transposed.
            copied = system in (COPY, TARGET)
            leader = self._f0(renditions.audio[TARGET]) if copied else renditions.melody
            shift = renditions.shift_semitones if system in (WORLD, RESULT) else 0.0
            f0, cepstra = self._f0(audio), self._cepstrum(audio)
            melody = pitch.compare_f0(f0, leader, shift)
            identity = speaker.identify(self._embed(audio), enrolled, pair.source, pair.target)
            understood = bool(said) and self.understands(pair.target if copied else pair.source)
            scores[system] = Scores(
                similarity_target=identity.similarity_target,
                similarity_source=identity.similarity_source,
                nearer_target=identity.nearer_target,
                identified=identity.identified_as == pair.target,
                similarities=identity.similarities,
                mcd=None if goal is None else cepstrum.mel_cepstral_distortion(cepstra, goal),
                f0_correlation=melody.correlation,
                gross_error=melody.gross_error,
                voicing_error=melody.voicing_error,
                word_errors=self._word_errors(audio, said) if understood else None,
                naturalness=measure(audio, f0, cepstra),
            )
        return Verdict(pair, condition.name, renditions.shift_semitones, len(said), scores)

    def natural_range(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest mean of every naturalness proxy over the voices of the set, as recorded."""
        means: dict[str, list[float]] = {field.name: [] for field in fields(Naturalness)}
        for name, voice in self._dataset.voices.items():
            found = []
            for sentence in voice.sentences[:NATURAL_SENTENCES]:
                audio = at_judge_rate(*self._dataset.load(name, sentence))
                found.append(measure(audio, self._f0(audio), self._cepstrum(audio)))
            for key, values in means.items():
                values.append(float(np.mean([getattr(one, key) for one in found])))
        return {key: (min(values), max(values)) for key, values in means.items()}

    def understands(self, name: str) -> bool:
        """Whether the recogniser gets enough of a voice, unconverted, to tell what a conversion costs."""
        if name not in self._understood:
            wrong = said = 0
            known = [one for one in self._dataset.voices[name].sentences if one in self._dataset.texts]
            for sentence in known[:PROBE_SENTENCES]:
                text = words.words_of(self._dataset.texts[sentence])
                wrong += self._word_errors(at_judge_rate(*self._dataset.load(name, sentence)), text)
                said += len(text)
            self._understood[name] = said > 0 and wrong <= UNDERSTOOD_WER * said
        return self._understood[name]

    def _word_errors(self, audio: Audio, said: list[str]) -> int:
        return words.word_errors(words.words_of(self._transcribe(audio)), said)

    def _enrol(self, pair: Pair) -> dict[str, speaker.Embedding]:
        """Mean embedding of every speaker; a human in two engines stands once, with the pair's voice."""
        enrolled: dict[str, str] = {}
        for voice in self._dataset.voices.values():
            if voice.human not in enrolled or voice.name in (pair.source, pair.target):
                enrolled[voice.human] = voice.name
        return {name: self._mean_embedding(name, pair) for name in enrolled.values()}

    def _mean_embedding(self, name: str, pair: Pair) -> speaker.Embedding:
        sentences = pair.enrolment(self._dataset.voices[name])
        return speaker.mean_embedding(
            [self._embed(at_judge_rate(*self._dataset.load(name, sentence))) for sentence in sentences]
        )


def _judges_digest() -> str:
    """Names what the judges are, so that an answer of other code or packages is never taken for theirs."""
    digest = hashlib.sha256()
    for module in (pitch, speaker, cepstrum, words):
        digest.update(Path(str(module.__file__)).read_bytes())
    for package in JUDGE_PACKAGES:
        digest.update(f"{package}=={version(package)}".encode())
    return digest.hexdigest()[:16]
