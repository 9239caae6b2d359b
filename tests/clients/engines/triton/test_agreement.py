"""A pipeline over a server gives what the embedded one gives, whichever way it is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import soundfile
from remote_calls import RATE, Open, assert_same, hum, speaker

from autovoice import AsyncVoiceConversionPipeline, VoiceConversionPipeline
from autovoice.engines.engine import Sequence, new_sequence_id
from autovoice.engines.opening import connect
from autovoice.errors import SequenceError

pytestmark = pytest.mark.server

SOURCE = hum(1.7, 150.0, 22_050)


def test_conversions_are_the_embedded_ones(remote: Open, embedded: VoiceConversionPipeline) -> None:
    pipeline = remote()
    assert_same(pipeline.convert(SOURCE, speaker(0)), embedded.convert(SOURCE, speaker(0)))
    track = embedded.extract_f0(SOURCE) * np.float32(1.2)
    assert_same(pipeline.convert(SOURCE, speaker(0), track), embedded.convert(SOURCE, speaker(0), track))
    shifted = pipeline.convert_detailed(SOURCE, speaker(1), pitch_shift_semitones="auto")
    expected = embedded.convert_detailed(SOURCE, speaker(1), pitch_shift_semitones="auto")
    assert_same(shifted.audio, expected.audio)
    assert abs(shifted.pitch_shift_semitones - expected.pitch_shift_semitones) < 1e-3
    assert shifted.profile.device == pipeline.config.backend
    assert pipeline.stats.device_use == {pipeline.config.backend: 3}
    assert pipeline.repository is None


def test_voices_and_pitch_are_the_embedded_ones(remote: Open, embedded: VoiceConversionPipeline) -> None:
    pipeline = remote()
    np.testing.assert_allclose(pipeline.embed(SOURCE), embedded.embed(SOURCE), atol=1e-5)
    np.testing.assert_allclose(pipeline.extract_f0(SOURCE), embedded.extract_f0(SOURCE), rtol=1e-4)
    assert abs(pipeline.median_f0(SOURCE) - 150.0) < 1.5


def test_long_sources_and_batches_are_the_embedded_ones(
    remote: Open, embedded: VoiceConversionPipeline, tmp_path: Path
) -> None:
    """Beyond `block_seconds` a source goes through the stream ensemble, block by block."""
    pipeline = remote(block_seconds=0.5)
    expected = embedded.convert(SOURCE, speaker(2))
    assert_same(pipeline.convert(SOURCE, speaker(2)), expected)
    soundfile.write(tmp_path / "in.wav", SOURCE, 22_050, subtype="FLOAT")
    pipeline.convert_file(tmp_path / "in.wav", tmp_path / "out.wav", speaker(2), subtype="FLOAT")
    assert_same(soundfile.read(tmp_path / "out.wav", dtype="float32")[0], expected)

    sources = [SOURCE, SOURCE[:9000], SOURCE[:8500]]
    voices = [speaker(number) for number in range(3)]
    for made, source, voice in zip(pipeline.batch_convert(sources, voices), sources, voices, strict=True):
        assert_same(made, embedded.convert(source, voice))


def test_streams_are_the_offline_conversion(remote: Open, embedded: VoiceConversionPipeline) -> None:
    """Three at once, pushed in turns and in odd pieces: each keeps its own voice."""
    pipeline = remote()
    pipeline.warmup(seconds=0.05)
    sources = [hum(0.9, hertz) for hertz in (110.0, 170.0, 240.0)]
    streams = [pipeline.stream(speaker(number), pitch_shift_semitones=number) for number in range(3)]
    made: list[list[np.ndarray]] = [[], [], []]
    pieces = [(start, start + 1111) for start in range(0, sources[0].size, 1111)]
    for start, stop in pieces:
        for source, stream, parts in zip(sources, streams, made, strict=True):
            parts.append(stream.push(source[start:stop]))
    for number, (source, stream, parts) in enumerate(zip(sources, streams, made, strict=True)):
        joined = np.concatenate([*parts, stream.flush()])
        how = {"pitch_shift_semitones": number, "input_gain_db": 0.0}
        expected = embedded.convert(source, speaker(number), None, RATE, **how)
        assert_same(joined, expected)
    assert pipeline.stats.lost_sequences == 0


def test_asyncio_gives_the_same(remote: Open, embedded: VoiceConversionPipeline) -> None:
    source = hum(0.6)

    async def live(pipeline: AsyncVoiceConversionPipeline, voice: np.ndarray) -> np.ndarray:
        async with pipeline.stream(voice) as stream:
            parts = [await stream.push(source[start : start + 2400]) for start in range(0, source.size, 2400)]
            return np.concatenate([*parts, await stream.flush()])

    async def main() -> tuple[list[np.ndarray], list[np.ndarray]]:
        async with AsyncVoiceConversionPipeline(pipeline=remote(), concurrency=4) as pipeline:
            await pipeline.warmup(seconds=0.05)
            how = {"source_sample_rate": RATE, "input_gain_db": 0.0}
            whole = [pipeline.convert(source, speaker(n), **how) for n in range(6)]
            streams = [live(pipeline, speaker(n)) for n in range(6)]
            return await asyncio.gather(*whole), await asyncio.gather(*streams)

    whole, streams = asyncio.run(main())
    for number in range(6):
        expected = embedded.convert(source, speaker(number), None, RATE, input_gain_db=0.0)
        assert_same(whole[number], expected)
        assert_same(streams[number], expected)


def test_a_sequence_that_is_given_up_is_over_at_the_server(remote: Open) -> None:
    """Its states are gone: the server asks for a new start."""
    engine = connect(remote().config)
    inputs = {
        "SOURCE_AUDIO": np.zeros((1, 240), np.float32),
        "TARGET_EMBEDDING": speaker(0)[np.newaxis],
        "PITCH_SHIFT": np.zeros((1, 1), np.float32),
    }
    model, identity = "voice_conversion_stream", new_sequence_id()
    engine.infer(model, inputs, sequence=Sequence(identity, start=True))
    engine.infer(model, inputs, sequence=Sequence(identity))
    engine.end_sequence(model, inputs, identity)
    with pytest.raises(SequenceError, match=f"sequence {identity} is lost"):
        engine.infer(model, inputs, sequence=Sequence(identity))
    engine.end_sequence(model, inputs, identity)  # once more is no error
    engine.close()


def test_requests_may_be_large(remote: Open) -> None:
    """gRPC's own limit is 4 MiB; a batch of a minute's audio is more."""
    engine = connect(remote().config)
    source = np.zeros((1, 2_000_000), np.float32)
    source[0, -1] = 0.5
    padded = engine.infer("pad_source", {"SOURCE_AUDIO": source})["AUDIO"]
    np.testing.assert_array_equal(padded[:, : source.size], source)
    engine.close()


def test_two_hundred_clients_at_once(remote: Open, embedded: VoiceConversionPipeline) -> None:
    """Nobody is turned away, and nobody hears another's voice."""
    sources = [hum(0.12, 100.0 + 15 * number) for number in range(10)]
    pairs = [(number % 10, number % 20) for number in range(200)]
    expected = {pair: embedded.convert(sources[pair[0]], speaker(pair[1]), None, RATE) for pair in set(pairs)}

    async def main() -> list[np.ndarray]:
        async with AsyncVoiceConversionPipeline(pipeline=remote(), concurrency=200) as pipeline:
            return await asyncio.gather(
                *(pipeline.convert(sources[s], speaker(v), source_sample_rate=RATE) for s, v in pairs)
            )

    for pair, made in zip(pairs, asyncio.run(main()), strict=True):
        assert_same(made, expected[pair])
