"""What the judges say of a release's conversions, for `autovoice gate`."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from autovoice_training.evaluate import pitch
from autovoice_training.evaluate.audio import Audio, at_judge_rate
from autovoice_training.evaluate.judges import Judges


@functools.cache
def _judges() -> Judges:
    return Judges()


def measure(
    sources: Sequence[Audio],
    targets: Sequence[Audio | None],
    made: Sequence[Audio],
    shifts: Sequence[float],
    rate: int,
) -> dict[str, float]:
    """Asks the judges about conversions.

    What a source says is what Whisper hears in it; whom a result should sound like, the recording that the
    voice was taken from. Both flatter every voice alike, so these figures only compare releases.

    Args:
        sources: recordings [T].
        targets: whom each was converted to [T]; None where the voice is its own.
        made: the results [T].
        shifts: semitones by which each was transposed.
        rate: of all audio, Hz.

    Returns:
        `words` (share wrong), `identity` (CAM++ similarity to the target, absent without targets), `melody`
        (correlation of log-F0 with the source's) and `naturalness` (DistillMOS); means over the conversions.
    """
    judges = _judges()
    wrong = said = 0
    identity, melody, naturalness = [], [], []
    for source, target, result, shift in zip(sources, targets, made, shifts, strict=True):
        heard, original = at_judge_rate(result, rate), at_judge_rate(source, rate)
        errors, words = judges.words.errors(judges.transcribe(heard), judges.transcribe(original))
        wrong, said = wrong + errors, said + words
        melody.append(pitch.compare_f0(judges.f0_track(heard), judges.f0_track(original), shift).f0_corr)
        naturalness.append(judges.distill_mos(heard))
        if target is not None:
            identity.append(float(judges.embed(heard) @ judges.embed(at_judge_rate(target, rate))))
    found = {"melody": float(np.mean(melody)), "naturalness": float(np.mean(naturalness))}
    if said:
        found["words"] = wrong / said
    if identity:
        found["identity"] = float(np.mean(identity))
    return found
