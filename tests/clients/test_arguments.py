"""Wrong arguments: every public call answers them with an error of AutoVoice's own that names the value."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autovoice
from autovoice import (
    AsyncVoiceConversionPipeline,
    PipelineConfig,
    VoiceConversionError,
    VoiceConversionPipeline,
    list_voices,
    load_embedding,
    read_audio,
    save_embedding,
    write_audio,
)
from autovoice.errors import ConfigurationError, OutputError, PitchError, StreamClosedError

RATE = 24_000
TONE = (0.1 * np.sin(np.arange(RATE // 5) / 20)).astype(np.float32)


def nonsense() -> list[Any]:
    """Values of every kind that somebody might pass by mistake."""
    return [
        None,
        True,
        False,
        -1,
        0,
        10**12,
        -0.5,
        float("nan"),
        float("inf"),
        1e300,
        "",
        "120",
        "nowhere/at.all",
        "nul\0byte",
        "x" * 5000,
        b"",
        b"wav",
        [],
        [0.5],
        [float("nan")] * 3,
        ["a", None],
        [[1.0], [1.0, 2.0]],
        (),
        {},
        {"a": 1},
        {1, 2},
        object(),
        object,
        print,
        (value for value in (1.0, 2.0)),
        1j,
        np.zeros((3, 0), np.float32),
        np.array([[1, 2], [3, 4]], object),
        np.array(["a", "b"]),
        np.array(0.5),
        np.array([1j]),
        np.ma.masked_array([0.5], [True]),
        np.datetime64("2026-01-01"),
        Path("nowhere"),
        Path("."),
        Decimal("0.5"),
        Fraction(1, 3),
        range(3),
    ]


@pytest.fixture(scope="module")
def calls(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Every public call with arguments that work, as (function, arguments) by name."""
    folder = tmp_path_factory.mktemp("calls")
    voice = np.full(4, 0.5, np.float32)
    source, output = folder / "source.wav", folder / "out.wav"
    write_audio(source, TONE, RATE)
    save_embedding(folder / "voice.npy", voice)
    config = PipelineConfig(repository=toy, device="cpu")
    with VoiceConversionPipeline(config) as pipeline:
        options = {
            "output_sample_rate": None,
            "pitch_shift_semitones": 1.0,
            "target_median_f0": None,
            "voice_settings": None,
        }
        one = {"target_embedding": voice, "source_f0": None, "source_sample_rate": RATE, **options}
        yield {
            "convert": (pipeline.convert, {"source_audio": TONE, **one}),
            "convert_detailed": (pipeline.convert_detailed, {"source_audio": TONE, **one}),
            "profile_conversion": (pipeline.profile_conversion, {"source_audio": TONE, **one}),
            "convert_file": (
                pipeline.convert_file,
                {
                    "source": source,
                    "output": output,
                    "target_embedding": voice,
                    "source_f0": None,
                    "subtype": None,
                    **options,
                },
            ),
            "batch_convert": (
                pipeline.batch_convert,
                {
                    "source_audios": [TONE, TONE],
                    "target_embeddings": voice,
                    "source_f0s": None,
                    "source_sample_rates": RATE,
                    **options,
                },
            ),
            "stream": (
                pipeline.stream,
                {
                    "target_embedding": voice,
                    "sample_rate": RATE,
                    "output_sample_rate": None,
                    "pitch_shift_semitones": 0.0,
                    "voice_settings": None,
                    "core_seconds": None,
                    "resampling_quality": "HQ",
                },
            ),
            "push": (pipeline.stream(voice).push, {"chunk": TONE}),
            "embed": (pipeline.embed, {"reference_audio": TONE, "sample_rate": RATE}),
            "embed_file": (pipeline.embed_file, {"path": source}),
            "join_embeddings": (
                pipeline.join_embeddings,
                {"embeddings": [voice, voice], "weights": [1.0, 2.0]},
            ),
            "similarity": (pipeline.similarity, {"first": voice, "second": voice}),
            "extract_f0": (pipeline.extract_f0, {"audio": TONE, "sample_rate": RATE}),
            "median_f0": (pipeline.median_f0, {"audio": TONE, "sample_rate": RATE}),
            "median_f0_file": (pipeline.median_f0_file, {"path": source}),
            "warmup": (pipeline.warmup, {"num_iterations": 1, "seconds": 0.02}),
            "VoiceConversionPipeline": (VoiceConversionPipeline, {"config": config, "voice": None}),
            "AsyncVoiceConversionPipeline": (
                AsyncVoiceConversionPipeline,
                {"config": config, "voice": None, "concurrency": 1},
            ),
            "list_voices": (list_voices, {"config": config}),
            "read_audio": (read_audio, {"path": source}),
            "write_audio": (
                write_audio,
                {"path": output, "audio": TONE, "sample_rate": RATE, "subtype": None},
            ),
            "load_embedding": (load_embedding, {"path": folder / "voice.npy"}),
            "save_embedding": (save_embedding, {"path": folder / "made.npy", "embedding": voice}),
        }


NAMES = (
    *("convert", "convert_detailed", "profile_conversion", "convert_file", "batch_convert", "stream", "push"),
    *(
        "embed",
        "embed_file",
        "join_embeddings",
        "similarity",
        "extract_f0",
        "median_f0",
        "median_f0_file",
        "warmup",
        "list_voices",
    ),
    *("VoiceConversionPipeline", "AsyncVoiceConversionPipeline"),
    *("read_audio", "write_audio", "load_embedding", "save_embedding"),
)


def test_every_public_call_is_tried(calls: dict[str, Any]) -> None:
    assert set(NAMES) == set(calls)
    methods = {
        name
        for name, value in inspect.getmembers(VoiceConversionPipeline, callable)
        if not name.startswith("_")
    }
    assert methods - set(calls) == {"close", "operator_times"}
    functions = {name for name in autovoice.__all__ if name.islower() and callable(getattr(autovoice, name))}
    assert functions <= set(calls)
    for function, arguments in calls.values():
        function(**arguments)


@pytest.mark.parametrize("name", NAMES)
def test_nonsense_is_answered_by_an_error_of_our_own(
    name: str, calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    function, arguments = calls[name]
    escaped = []
    for argument in arguments:
        for value in nonsense():
            try:
                function(**{**arguments, argument: value})
            except VoiceConversionError as error:
                if not str(error).strip():
                    escaped.append(f"{argument}={value!r:.40}: an error without a word")
            except Exception as error:
                escaped.append(f"{argument}={value!r:.40}: {type(error).__name__}: {error!s:.80}")
    assert not escaped, "\n".join(escaped)


@pytest.mark.parametrize("name", ["convert", "convert_file", "batch_convert", "profile_conversion", "stream"])
def test_an_unknown_option_is_python_s_own_error(calls: dict[str, Any], name: str) -> None:
    function, arguments = calls[name]
    with pytest.raises(TypeError, match="pitch_shift"):
        function(**arguments, pitch_shift=2.0)


def test_the_mistakes_that_once_raised_something_else(calls: dict[str, Any], tmp_path: Path) -> None:
    convert, arguments = calls["convert"]
    for options, error in (
        ({"target_median_f0": "120"}, PitchError),
        ({"pitch_shift_semitones": True}, PitchError),
        ({"pitch_shift_semitones": "3"}, PitchError),
    ):
        with pytest.raises(error, match=str(next(iter(options.values())))):
            convert(**{**arguments, **options})
    warmup, _ = calls["warmup"]
    for value in (float("nan"), float("inf"), -1, True, "1"):
        with pytest.raises(ConfigurationError, match="seconds"):
            warmup(seconds=value)
        with pytest.raises(ConfigurationError, match="num_iterations"):
            warmup(value)
    for suffix in ("raw", "sd2", "nist", "xyz", ""):
        path = tmp_path / f"out.{suffix}"
        with pytest.raises(OutputError, match=r"\.wav, \.flac"):
            write_audio(path, TONE, RATE)
        assert not list(tmp_path.iterdir())


def test_generators_are_taken_where_a_list_is(calls: dict[str, Any]) -> None:
    batch, arguments = calls["batch_convert"]
    expected = batch(**arguments)
    embedding = arguments["target_embeddings"]
    made = batch(
        (audio for audio in arguments["source_audios"]),
        (each for each in [embedding, embedding]),
        itertools.repeat(None, 2),
        iter([RATE, RATE]),
        pitch_shift_semitones=1.0,
    )
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_async_calls_after_close_are_refused(toy: Path) -> None:
    async def run() -> None:
        pipeline = AsyncVoiceConversionPipeline(PipelineConfig(repository=toy))
        stream = pipeline.stream(np.full(4, 0.5, np.float32))
        await stream.push(TONE)
        await pipeline.close()
        refused: list[Callable[[], Any]] = [
            lambda: stream.push(TONE),
            lambda: stream.flush(),
            lambda: pipeline.embed(TONE, RATE),
            lambda: pipeline.convert(TONE),
        ]
        for call in refused:
            with pytest.raises(StreamClosedError):
                await call()
        with pytest.raises(StreamClosedError):
            pipeline.stream(np.full(4, 0.5, np.float32))
        await stream.close()
        await pipeline.close()

    asyncio.run(run())
