"""Imported voices against the toy's closed form: cut anywhere, in files, streams, batches, at any rates."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_voices import GRID, LEFT, RATE, RIGHT, build_toy_voices, expected_voice

from autovoice import (
    AsyncVoiceConversionPipeline,
    PipelineConfig,
    Progress,
    RvcSettings,
    VoiceConversionPipeline,
)
from autovoice.audio.levels import FixedGain, FollowedGain, bend
from autovoice.engines.onnx_session import _sessions
from autovoice.errors import AudioInputError, RepositoryError
from autovoice.voices.rvc_stream import WindowedStream

VOICES = {"anna": 40_000, "bert": 32_000, "cleo": 48_000}
NUMBERS = {name: number for number, name in enumerate(VOICES)}
EXACT = 1e-6
PLAIN = RvcSettings(speaker=2, index_rate=0.0, protect=0.0, rms_mix=0.0)
FIXTURES = [HealthCheck.function_scoped_fixture]
NAMES = st.sampled_from(sorted(VOICES))


@pytest.fixture(scope="module")
def open_voice(toy_voices: Path) -> Any:
    """Makes pipelines, one per voice and block length."""
    made: dict[tuple[str, float], VoiceConversionPipeline] = {}

    def pipeline(voice: str = "anna", block_seconds: float = 0.5) -> VoiceConversionPipeline:
        key = voice, block_seconds
        if key not in made:
            config = PipelineConfig(
                repository=toy_voices, voice=voice, block_seconds=block_seconds, threads=1
            )
            made[key] = VoiceConversionPipeline(config)
        return made[key]

    return pipeline


def murmur(samples: int, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Noise that comes and goes, voiced and unvoiced to the toy, with nothing above 6 kHz [samples]."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[np.fft.rfftfreq(samples, 1 / rate) > 6000] = 0
    noise = np.fft.irfft(spectrum, samples)
    envelope = np.clip(np.sin(np.arange(samples) * 9 / rate + seed), 0, None) ** 2
    return (0.1 * noise / np.std(noise) * envelope).astype(np.float32)


def stream_through(
    pipeline: VoiceConversionPipeline, source: np.ndarray, chunks: list[int], **how: Any
) -> np.ndarray:
    with pipeline.stream(**how) as stream:
        parts, position = [], 0
        for size in itertools.cycle(chunks):
            if position >= source.size:
                break
            parts.append(stream.push(source[position : position + size]))
            position += size
        parts.append(stream.flush())
        assert stream.samples_out == sum(part.size for part in parts)
    return np.concatenate(parts)


@pytest.mark.parametrize("voice", VOICES)
@pytest.mark.parametrize("size", [160, 161, 320, 12_345])
def test_the_closed_form(open_voice: Any, voice: str, size: int) -> None:
    source, rate = murmur(size), VOICES[voice]
    how: dict[str, Any] = {"source_sample_rate": RATE, "input_gain_db": 0.0, "output_sample_rate": rate}
    for shift, values in ((0.0, (1, 0.75, 0.25, 0.5)), (-5.0, (2, 0.5, 0.125, 1.0))):
        chosen = RvcSettings(*values) if shift else None  # the first are the toy's defaults
        made = open_voice(voice, 10.0).convert(
            source, pitch_shift_semitones=shift, voice_settings=chosen, **how
        )
        np.testing.assert_allclose(
            made, expected_voice(source, NUMBERS[voice], rate, shift, values), atol=2e-5
        )


@given(
    voice=NAMES,
    size=st.integers(160, 40_000),
    block=st.sampled_from([0.1, 0.13, 0.5]),
    core=st.sampled_from([0.02, 0.1, 0.31]),
    chunks=st.lists(st.integers(1, 9000), min_size=1, max_size=9),
    shift=st.sampled_from([0.0, 7.0]),
)
@settings(max_examples=40, suppress_health_check=FIXTURES)
def test_in_blocks_and_live_it_is_the_whole(
    open_voice: Any, voice: str, size: int, block: float, core: float, chunks: list[int], shift: float
) -> None:
    source, rate = murmur(size, seed=size), VOICES[voice]
    how: dict[str, Any] = {"output_sample_rate": rate, "pitch_shift_semitones": shift}
    whole = open_voice(voice, 10.0).convert(source, source_sample_rate=RATE, input_gain_db=0.0, **how)
    assert whole.size == -(-size * rate // RATE)
    cut = open_voice(voice, block).convert(source, source_sample_rate=RATE, input_gain_db=0.0, **how)
    np.testing.assert_allclose(cut, whole, atol=EXACT)
    live = stream_through(open_voice(voice, 10.0), source, chunks, core_seconds=core, **how)
    np.testing.assert_allclose(live, whole, atol=EXACT)


@pytest.mark.parametrize(
    ("side", "samples"), [("context_left_samples", LEFT), ("context_right_samples", RIGHT)]
)
def test_less_context_than_the_voice_needs_would_be_heard(
    tmp_path: Path, open_voice: Any, side: str, samples: int
) -> None:
    """The tests of cutting mean something: the toy needs its context to the last grid step."""
    short = build_toy_voices(tmp_path, {"anna": 40_000}, **{side: str(samples - GRID)})
    source = murmur(20_000)
    with VoiceConversionPipeline(
        PipelineConfig(repository=short, voice="anna", block_seconds=0.1)
    ) as pipeline:
        made = pipeline.convert(source, source_sample_rate=RATE, input_gain_db=0.0)
    whole = open_voice("anna", 10.0).convert(source, source_sample_rate=RATE, input_gain_db=0.0)
    assert np.abs(made - whole).max() > 1e-2


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("rate", "voice"), [(16_000, "bert"), (22_050, "anna"), (44_100, "anna"), (48_000, "cleo")]
)
def test_ten_minutes_do_not_drift(toy_voices: Path, tmp_path: Path, rate: int, voice: str) -> None:
    """Impulses go through file reading, resampling, windows, resampling, and stand where they stood."""
    source = np.zeros(600 * rate, np.float32)
    positions = np.arange(rate // 3, source.size, 7 * rate // 3 + 11)
    source[positions] = 3.0
    soundfile.write(tmp_path / "in.wav", source, rate, subtype="FLOAT")
    config = PipelineConfig(repository=toy_voices, voice=voice, threads=1)
    with VoiceConversionPipeline(config) as pipeline:
        result = pipeline.convert_file(tmp_path / "in.wav", tmp_path / "out.wav", voice_settings=PLAIN)
    made, made_rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert (made.size, made_rate, result.samples) == (source.size, rate, source.size)
    reach = rate // 100
    for position in positions:
        heard = position - reach + int(np.argmax(made[position - reach : position + reach]))
        assert abs(heard - position) <= 1
    assert made[positions[-1] - 1 : positions[-1] + 2].max() > 0.2


@given(
    rate=st.integers(8000, 192_000), output=st.none() | st.integers(8000, 192_000), share=st.floats(0.0, 1.0)
)
@settings(max_examples=30, suppress_health_check=FIXTURES)
def test_exactly_as_long_as_the_source(open_voice: Any, rate: int, output: int | None, share: float) -> None:
    size = -(-rate // 100) + round(share * rate)
    source = np.full(size, 0.1, np.float32)
    expected = size if output is None else (2 * size * output + rate) // (2 * rate)
    for block in (0.1, 10.0):
        made = open_voice("anna", block).convert(
            source,
            source_sample_rate=rate,
            input_gain_db=0.0,
            output_sample_rate=output,
            voice_settings=PLAIN,
        )
        assert made.size == expected


@given(
    voice=NAMES,
    rate=st.sampled_from([8000, 16_000, 22_050, 44_100, 48_000]),
    output=st.sampled_from([None, 8000, 40_000, 48_000]),
    chunk_ms=st.lists(st.integers(1, 400), min_size=1, max_size=10),
)
@settings(max_examples=20, suppress_health_check=FIXTURES)
def test_any_rates_live_are_those_of_convert(
    open_voice: Any, voice: str, rate: int, output: int | None, chunk_ms: list[int]
) -> None:
    source = murmur(int(1.373 * rate), rate)
    chunks = [milliseconds * rate // 1000 for milliseconds in chunk_ms]
    made = stream_through(open_voice(voice), source, chunks, sample_rate=rate, output_sample_rate=output)
    for block in (0.5, 10.0):
        offline = open_voice(voice, block).convert(
            source, source_sample_rate=rate, input_gain_db=0.0, output_sample_rate=output
        )
        np.testing.assert_allclose(made, offline, atol=1e-5)


def test_a_stream_gives_the_voice_s_own_rate_unless_told_otherwise(open_voice: Any) -> None:
    pipeline = open_voice("cleo")
    assert (pipeline.sample_rate, pipeline.voice.output_sample_rate) == (16_000, 48_000)
    for given_rates, expected in (({}, (16_000, 48_000)), ({"sample_rate": 44_100}, (44_100, 44_100))):
        stream = pipeline.stream(**given_rates)
        assert (stream.sample_rate, stream.output_sample_rate) == expected


def test_a_source_within_a_block_is_one_request_and_a_longer_one_is_windows(
    open_voice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = open_voice("anna", 1.0)
    requests: list[tuple[str, int]] = []
    infer = pipeline._engine.infer

    def spy(model: str, inputs: Any, **rest: Any) -> Any:
        requests.append((model, inputs["SOURCE_AUDIO"].shape[1]))
        return infer(model, inputs, **rest)

    monkeypatch.setattr(pipeline._engine, "infer", spy)
    pipeline.convert(murmur(16_000), source_sample_rate=RATE, input_gain_db=0.0, output_sample_rate=40_000)
    assert requests == [("anna", 16_000)]
    requests.clear()
    pipeline.convert(murmur(40_001), source_sample_rate=RATE, input_gain_db=0.0, output_sample_rate=40_000)
    rest = -(-(LEFT + 8_001) // GRID) * GRID
    assert requests == [
        ("anna_window", 16_000 + RIGHT),
        ("anna_window", LEFT + 16_000 + RIGHT),
        ("anna_window", rest),
    ]


@pytest.mark.parametrize(
    ("rate", "core", "quality"), [(16_000, None, "HQ"), (48_000, 0.1, "HQ"), (44_100, 0.06, "LQ")]
)
def test_output_never_trails_by_more_than_the_stated_latency(
    open_voice: Any, rate: int, core: float | None, quality: Any
) -> None:
    with open_voice("anna").stream(sample_rate=rate, core_seconds=core, resampling_quality=quality) as stream:
        worst = 0.0
        for _ in range(1500):
            stream.push(np.zeros(rate // 1000, np.float32))
            worst = max(worst, stream.samples_in / rate - stream.samples_out / rate)
        own = (core or 0.24) + RIGHT / RATE
        assert own - 0.001 <= worst <= stream.latency_seconds <= own + 0.1
    assert open_voice("anna").stream(output_sample_rate=40_000, core_seconds=core).latency_seconds == (
        pytest.approx(own)
    )


def test_a_batch_is_its_single_conversions_and_goes_together(
    open_voice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = open_voice("bert", 1.0)
    rates = [RATE, RATE, 44_100, RATE, RATE, 48_000]
    sizes = [9000, 8961, 24_806, 400, 40_000, 27_000]
    sources = [murmur(size, rate, seed) for seed, (size, rate) in enumerate(zip(sizes, rates, strict=True))]
    chosen = [None, RvcSettings(speaker=0), RvcSettings(index_rate=0.0), None, None, RvcSettings(rms_mix=1.0)]
    batches: list[int] = []
    infer = pipeline._engine.infer

    def spy(model: str, inputs: Any, **rest: Any) -> Any:
        batches.append(inputs["SOURCE_AUDIO"].shape[0])
        return infer(model, inputs, **rest)

    monkeypatch.setattr(pipeline._engine, "infer", spy)
    made = pipeline.batch_convert(
        sources, source_sample_rates=rates, pitch_shift_semitones=2.0, voice_settings=chosen
    )
    assert max(batches) == 4  # as long as each other to the grid, so that nobody hears the padding
    for index, source in enumerate(sources):
        alone = pipeline.convert(
            source,
            source_sample_rate=rates[index],
            pitch_shift_semitones=2.0,
            voice_settings=chosen[index],
        )
        np.testing.assert_allclose(made[index], alone, atol=EXACT)
    with pytest.raises(AudioInputError, match="voice_settings has 1 entries for 6 sources"):
        pipeline.batch_convert(sources, voice_settings=[PLAIN])


def test_progress_profile_and_counters(open_voice: Any, toy_voices: Path) -> None:
    config = PipelineConfig(repository=toy_voices, voice="anna", block_seconds=0.5)
    with VoiceConversionPipeline(config) as pipeline:
        assert pipeline.warmup(seconds=0.5) > 0
        steps: list[Progress] = []
        profile = pipeline.profile_conversion(
            murmur(20_000), source_sample_rate=RATE, input_gain_db=0.0, progress_callback=steps.append
        )
        assert {"toy_content", "toy_pitch", "anna_synthesizer", "resample"} <= profile.stages.keys()
        assert steps[-1].stage == "finish"
        assert [step.fraction for step in steps] == sorted(step.fraction for step in steps)
        stream_through(pipeline, murmur(9000), [1000])
        assert (pipeline.stats.total, pipeline.stats.succeeded) == (2, 2)
        assert pipeline.stats.audio_seconds == pytest.approx(29_000 / RATE)


def test_asyncio(open_voice: Any) -> None:
    sources = [murmur(9000, seed=seed) for seed in range(4)]

    async def main() -> tuple[list[np.ndarray], np.ndarray]:
        async with AsyncVoiceConversionPipeline(pipeline=open_voice("cleo")) as pipeline:
            made = await asyncio.gather(
                *(pipeline.convert(each, source_sample_rate=RATE, input_gain_db=0.0) for each in sources)
            )
            async with pipeline.stream(output_sample_rate=RATE) as stream:
                live = [await stream.push(sources[0]), await stream.flush()]
            return made, np.concatenate(live)

    made, live = asyncio.run(main())
    expected = [
        open_voice("cleo").convert(each, source_sample_rate=RATE, input_gain_db=0.0) for each in sources
    ]
    np.testing.assert_array_equal(made, expected)
    np.testing.assert_allclose(live, expected[0], atol=EXACT)


def test_a_second_voice_adds_only_its_own_models(tmp_path: Path) -> None:
    """Files and streams of a voice share its sessions, and voices share those of their common models."""
    repository = build_toy_voices(tmp_path, VOICES)

    def loaded() -> list[str]:
        keys = [key for key in list(_sessions) if tmp_path.resolve() in key[0].parents]
        return sorted(key[0].parents[1].name for key in keys)

    pipelines = []
    held = {"toy_pad", "toy_content", "toy_pitch"}
    for name in VOICES:
        pipeline = VoiceConversionPipeline(PipelineConfig(repository=repository, threads=1), voice=name)
        pipelines.append(pipeline)  # and keep it open beside the next
        pipeline.warmup(seconds=0.5)
        held |= {f"{name}_synthesizer", f"toy_trim_{VOICES[name]}"}
        assert loaded() == sorted(held)
    for pipeline in pipelines:
        pipeline.close()


def test_phase_stays_exact_for_hours(open_voice: Any) -> None:
    """A float32 sum of phases is whole cycles wrong within minutes; this one never is."""
    voice = open_voice("anna").voice
    converter = WindowedStream(None, voice, voice.windows, voice.neutral_target(), core=GRID, live=True)  # type: ignore[arg-type]
    f0 = np.random.default_rng(3).uniform(50, 1100, (360, 1000)).astype(np.float32)  # an hour
    for piece in f0:
        converter._phase = converter._phase_after(piece)
        assert np.float32(converter._phase) == converter._phase
    steps = [int(step) for step in np.round(f0.astype(np.float64).reshape(-1) * 0.01 * 2**24)]
    assert converter._phase == sum(steps) % 2**24 / 2**24


def test_analysis_is_the_base_voice_s_where_there_is_one(
    open_voice: Any, toy: Path, tmp_path: Path, voice: np.ndarray
) -> None:
    with VoiceConversionPipeline(PipelineConfig(repository=toy)) as base:
        reference = murmur(24_000, 24_000)
        np.testing.assert_array_equal(open_voice().embed(reference, 24_000), base.embed(reference, 24_000))
        np.testing.assert_array_equal(
            open_voice().extract_f0(reference, 24_000), base.extract_f0(reference, 24_000)
        )
    lonely = build_toy_voices(tmp_path, {"anna": 40_000})
    with (
        VoiceConversionPipeline(PipelineConfig(repository=lonely), voice="anna") as pipeline,
        pytest.raises(RepositoryError, match="no model 'voice_conversion'"),
    ):
        pipeline.embed(reference)


def test_models_that_answer_at_another_rate_are_noticed(tmp_path: Path) -> None:
    wrong = build_toy_voices(tmp_path, {"anna": 40_000}, output_sample_rate="48000")
    with VoiceConversionPipeline(
        PipelineConfig(repository=wrong, block_seconds=0.2), voice="anna"
    ) as pipeline:
        for size in (1600, 9600):
            with pytest.raises(RepositoryError, match="import the voice again"):
                pipeline.convert(murmur(size), source_sample_rate=RATE, input_gain_db=0.0)


def square(level: float, samples: int) -> np.ndarray:
    """A square wave at 150 Hz [samples]."""
    return (level * np.sign(np.sin(2 * np.pi * 150 * np.arange(samples) / RATE))).astype(np.float32)


@pytest.mark.parametrize("rms_mix", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("level", [0.99, 30.0])
def test_the_loudest_source_stays_within_full_scale(open_voice: Any, level: float, rms_mix: float) -> None:
    settings = RvcSettings(speaker=2, rms_mix=rms_mix)
    source = square(level, 24_000)
    loudest = 0.0
    for rate in (16_000, 44_100):
        how: dict[str, Any] = {"output_sample_rate": rate, "voice_settings": settings}
        for gain in ("auto", 0.0, -30.0):
            whole = open_voice("cleo", 10.0).convert(
                source, source_sample_rate=RATE, input_gain_db=gain, **how
            )
            (batched,) = open_voice("cleo", 10.0).batch_convert(
                [source], source_sample_rates=RATE, input_gain_db=gain, **how
            )
            cut = open_voice("cleo", 0.5).convert(source, source_sample_rate=RATE, input_gain_db=gain, **how)
            live = stream_through(
                open_voice("cleo"), source, [999], sample_rate=RATE, input_gain_db=gain, **how
            )
            for made in (whole, batched, cut, live):
                assert np.abs(made).max() <= 1.0
                if made is not live or gain != "auto":
                    np.testing.assert_allclose(made, whole, atol=1e-4)
            loudest = max(loudest, float(np.abs(whole).max()))
    assert loudest > 0.9 or rms_mix == 1.0


def test_peaks_are_bent_and_levels_given_back_up_to_a_limit() -> None:
    ramp = np.linspace(-40, 40, 8001, dtype=np.float32)
    np.testing.assert_array_equal(bend(ramp)[np.abs(ramp) <= 0.9], ramp[np.abs(ramp) <= 0.9])
    assert (np.diff(bend(ramp)) >= 0).all()
    assert np.abs(bend(ramp)).max() <= 1.0
    quiet = np.full(4, 0.01, np.float32)
    for gain_db, back in (
        (20.0, 0.1),
        (-6.0, 10 ** (6 / 20)),
        (-12.0, 10 ** (12 / 20)),
        (-40.0, 10 ** (12 / 20)),
    ):
        np.testing.assert_allclose(FixedGain(gain_db, bounded=True).restore(quiet), 0.01 * back, rtol=1e-5)
        np.testing.assert_allclose(FixedGain(gain_db).restore(quiet), 0.01 * 10 ** (-gain_db / 20), rtol=1e-5)
    followed = FollowedGain(RATE, RATE, bounded=True)
    followed.apply(square(30.0, RATE))
    assert np.abs(followed.restore(0.99 * np.sign(ramp))).max() <= 1.0
    np.testing.assert_allclose(followed.restore(quiet), 0.01 * 10 ** (12 / 20), rtol=1e-3)
