"""The judge of intelligibility: pocketsphinx with the acoustic and language model of its wheel."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
import pocketsphinx

from autovoice_training.evaluate.dataset import JUDGE_RATE, Audio


@functools.cache
def _decoder() -> pocketsphinx.Decoder:
    # Batch normalisation: the transcript of a recording must not depend on those before it.
    return pocketsphinx.Decoder(samprate=JUDGE_RATE, cmn="batch", loglevel="FATAL")


def transcribe(audio: Audio) -> str:
    """Writes down what is said.

    Args:
        audio: samples [T] at JUDGE_RATE.
    """
    decoder = _decoder()
    decoder.start_utt()
    decoder.process_raw((np.clip(audio, -1.0, 1.0) * 32767.0).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return str(hypothesis.hypstr) if hypothesis is not None else ""


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and the recogniser's marks for noises."""
    without_marks = re.sub(r"<[^>]*>|\[[^\]]*\]|\+\+\w+\+\+", " ", text.lower())
    return [word.strip("'") for word in re.findall(r"[\w']+", without_marks) if word.strip("'")]


def word_errors(heard: Sequence[str], said: Sequence[str]) -> int:
    """The fewest substitutions, insertions and deletions that turn one word sequence into the other."""
    previous = list(range(len(said) + 1))
    for i, word in enumerate(heard, start=1):
        current = [i]
        for j, expected in enumerate(said, start=1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (word != expected)))
        previous = current
    return previous[-1]
