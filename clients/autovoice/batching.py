"""Batches: sources of like length side by side in one request, padded on the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from autovoice.audio import output_length, resample
from autovoice.conversion import ArraySource, Conversion, ConversionPlan, StageClock
from autovoice.executor import Executor, observe_steps
from autovoice.family import OFFLINE, OFFLINE_WITH_F0, VoiceFamily
from autovoice.frames import fit_f0, fit_length
from autovoice.results import FloatArray
from autovoice.streaming import samples_needed

MAX_PADDING = 0.25  # share of a row that may be padding
MAX_BATCH_SECONDS = 60.0  # audio in one request; bounds its memory


@dataclass(frozen=True)
class BatchItem:
    """One source and what to do with it."""

    source: ArraySource
    plan: ConversionPlan
    name: str


@dataclass(frozen=True)
class _Row:
    """An item at the family's rate, ready to be batched."""

    index: int
    audio: FloatArray
    shift_semitones: float
    output_samples: int


def convert_batch(
    executor: Executor, family: VoiceFamily, items: Sequence[BatchItem], clock: StageClock
) -> list[FloatArray]:
    """Convert items together; each result equals that of its own conversion.

    Items longer than a block of their plan are streamed one by one, so that memory stays bounded.

    Args:
        executor: runs the models.
        family: their constants.
        items: what to convert.
        clock: times the stages.

    Returns:
        Converted audio per item, each exactly as long as its source at its output rate.
    """
    results: list[FloatArray] = [np.zeros(0, np.float32)] * len(items)
    rows: list[_Row] = []
    done = 0
    for index, item in enumerate(items):
        conversion = Conversion(executor, family, item.source, item.plan, clock, item.name)
        if item.source.frames > item.plan.block_seconds * item.source.sample_rate:
            results[index] = np.concatenate(list(conversion.blocks()))
            done += 1
            continue
        rows.append(_prepare(index, item, conversion.resolve_shift(), family, clock))
    buckets = make_buckets(
        [row.audio.size for row in rows], family, [items[row.index].plan.f0 is not None for row in rows]
    )
    clock.chunks = done + len(buckets)
    for number, bucket in enumerate(buckets, start=done + 1):
        clock.chunk = number
        clock.advance(number / clock.chunks)
        members = [rows[position] for position in bucket]
        with observe_steps(clock.on_step):
            converted = _infer(executor, family, items, members)
        with clock.stage("resample"):
            for row, audio in zip(members, converted, strict=True):
                rate = items[row.index].plan.output_sample_rate
                trimmed = resample(audio[: row.audio.size], family.sample_rate, rate)
                results[row.index] = fit_length(trimmed, row.output_samples)
    return results


def make_buckets(lengths: Sequence[int], family: VoiceFamily, with_f0: Sequence[bool]) -> list[list[int]]:
    """Group positions so that each group is of one kind, of like length, and not too much audio.

    Args:
        lengths: samples of each row at the family's rate.
        family: gives the largest batch.
        with_f0: whether the row brings its own pitch; such rows use another model.

    Returns:
        Positions into `lengths`, every one exactly once.
    """
    buckets: list[list[int]] = []
    order = sorted(range(len(lengths)), key=lambda position: (with_f0[position], -lengths[position]))
    for position in order:
        if buckets:
            bucket = buckets[-1]
            longest = lengths[bucket[0]]
            fits = (
                with_f0[position] == with_f0[bucket[0]]
                and lengths[position] >= (1 - MAX_PADDING) * longest
                and len(bucket) < family.max_batch_size
                and (len(bucket) + 1) * longest <= MAX_BATCH_SECONDS * family.sample_rate
            )
            if fits:
                bucket.append(position)
                continue
        buckets.append([position])
    return buckets


def _prepare(index: int, item: BatchItem, shift: float, family: VoiceFamily, clock: StageClock) -> _Row:
    source = item.source
    rate = item.plan.output_sample_rate
    with clock.stage("resample"):
        audio = resample(source.audio, source.sample_rate, family.sample_rate)
    output_samples = output_length(source.frames, source.sample_rate, rate)
    needed = samples_needed(output_samples, family.sample_rate, rate)
    return _Row(index, fit_length(audio, max(needed, audio.size)), shift, output_samples)


def _infer(
    executor: Executor, family: VoiceFamily, items: Sequence[BatchItem], rows: Sequence[_Row]
) -> Iterable[FloatArray]:
    longest = max(row.audio.size for row in rows)
    plans = [items[row.index].plan for row in rows]
    inputs = {
        "SOURCE_AUDIO": np.stack([fit_length(row.audio, longest) for row in rows]),
        "TARGET_EMBEDDING": np.stack([plan.embedding for plan in plans]),
        "PITCH_SHIFT": np.array([[row.shift_semitones] for row in rows], np.float32),
    }
    tracks = [fit_f0(plan.f0, longest, family) for plan in plans if plan.f0 is not None]
    if tracks:
        inputs["SOURCE_F0"] = np.stack(tracks)
    converted: FloatArray = executor.infer(OFFLINE_WITH_F0 if tracks else OFFLINE, inputs)["CONVERTED_AUDIO"]
    return converted
