"""Batches: sources of like length side by side in one request, padded on the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from autovoice.audio import output_length, resample
from autovoice.conversion import Conversion, ConversionPlan, StageClock
from autovoice.executor import Executor, observe_steps
from autovoice.family import Target, VoiceFamily, fit_length
from autovoice.results import FloatArray
from autovoice.sources import ArraySource
from autovoice.streaming import samples_needed

MAX_BATCH_SECONDS = 60.0  # audio in one request; bounds its memory


@dataclass(frozen=True)
class BatchItem:
    """One source and what to do with it."""

    source: ArraySource
    plan: ConversionPlan
    name: str


@dataclass(frozen=True)
class _Row:
    """An item at the voice's rate, ready to be batched."""

    index: int
    audio: FloatArray
    target: Target
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
        rows.append(_prepare(index, item, conversion.resolve(), family, clock))
    buckets = make_buckets(
        [row.audio.size for row in rows], family, [family.offline_model(row.target) for row in rows]
    )
    clock.chunks = done + len(buckets)
    for number, bucket in enumerate(buckets, start=done + 1):
        clock.chunk = number
        clock.advance(number / clock.chunks)
        members = [rows[position] for position in bucket]
        with observe_steps(clock.on_step):
            converted = _infer(executor, family, members)
        with clock.stage("resample"):
            for row, audio in zip(members, converted, strict=True):
                rate = items[row.index].plan.output_sample_rate
                trimmed = audio[: family.converted_samples(row.audio.size)]
                trimmed = resample(trimmed, family.output_sample_rate, rate)
                results[row.index] = fit_length(trimmed, row.output_samples)
    return results


def make_buckets(lengths: Sequence[int], family: VoiceFamily, models: Sequence[str]) -> list[list[int]]:
    """Group positions so that each group is for one model, of like length, and not too much audio.

    Args:
        lengths: samples of each row at the voice's rate.
        family: says which lengths may share a request, and how many.
        models: the ensemble that each row is for.

    Returns:
        Positions into `lengths`, every one exactly once.
    """
    buckets: list[list[int]] = []
    order = sorted(range(len(lengths)), key=lambda position: (models[position], -lengths[position]))
    for position in order:
        if buckets:
            bucket = buckets[-1]
            longest = lengths[bucket[0]]
            fits = (
                models[position] == models[bucket[0]]
                and family.may_share(lengths[position], longest)
                and len(bucket) < family.max_batch_size
                and (len(bucket) + 1) * longest <= MAX_BATCH_SECONDS * family.sample_rate
            )
            if fits:
                bucket.append(position)
                continue
        buckets.append([position])
    return buckets


def _prepare(index: int, item: BatchItem, target: Target, family: VoiceFamily, clock: StageClock) -> _Row:
    source = item.source
    rate = item.plan.output_sample_rate
    with clock.stage("resample"):
        audio = resample(source.audio, source.sample_rate, family.sample_rate)
    output_samples = output_length(source.frames, source.sample_rate, rate)
    needed = samples_needed(output_samples, family, rate)
    return _Row(index, fit_length(audio, max(needed, audio.size)), target, output_samples)


def _infer(executor: Executor, family: VoiceFamily, rows: Sequence[_Row]) -> Iterable[FloatArray]:
    longest = max(row.audio.size for row in rows)
    requests = [family.offline_inputs(row.target, fit_length(row.audio, longest)) for row in rows]
    inputs = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
    model = family.offline_model(rows[0].target)
    converted: FloatArray = executor.infer(model, inputs)["CONVERTED_AUDIO"]
    return converted
