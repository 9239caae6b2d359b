"""Choosing a voice and its settings: defaults, overrides, and clear refusals of what a voice cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_voices import RATE, build_toy_voices

from autovoice import PipelineConfig, RvcSettings, VoiceConversionError, VoiceConversionPipeline, list_voices
from autovoice.errors import ConfigurationError, EmbeddingError, PitchError, RepositoryError

SOURCE = np.random.default_rng(0).uniform(-0.3, 0.3, 8000).astype(np.float32)


@pytest.fixture
def anna(toy_voices: Path) -> VoiceConversionPipeline:
    return VoiceConversionPipeline(PipelineConfig(repository=toy_voices, threads=1), voice="anna")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("speaker", -1, "0 or more"),
        ("speaker", 1.0, "0 or more"),
        ("speaker", True, "0 or more"),
        ("index_rate", 1.01, "from 0 to 1"),
        ("index_rate", "all", "from 0 to 1"),
        ("index_rate", float("nan"), "from 0 to 1"),
        ("protect", 0.51, "from 0 to 0.5"),
        ("protect", True, "from 0 to 0.5"),
        ("rms_mix", -0.1, "from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name_and_value(field: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{field} is .*{says}") as refusal:
        RvcSettings(**{field: value})
    assert repr(value) in str(refusal.value)


def test_settings_fall_through_field_by_field(toy_voices: Path, anna: VoiceConversionPipeline) -> None:
    """The call's, then the config's, then the voice's."""
    everything = {"speaker": 2, "index_rate": 1.0, "protect": 0.25, "rms_mix": 0.0}
    expected = anna.convert(SOURCE, source_sample_rate=RATE, voice_settings=RvcSettings(**everything))
    config = PipelineConfig(
        repository=toy_voices, voice="anna", voice_settings=RvcSettings(index_rate=0.5, rms_mix=0.0)
    )
    with VoiceConversionPipeline(config) as pipeline:
        call = RvcSettings(speaker=2, index_rate=1.0)  # protect is the voice's, 0.25
        made = pipeline.convert(SOURCE, source_sample_rate=RATE, voice_settings=call)
        np.testing.assert_array_equal(made, expected)
        stream = pipeline.stream(voice_settings=call, output_sample_rate=RATE)
        live = np.concatenate([stream.push(SOURCE), stream.flush()])
        as_it_is = pipeline.convert(SOURCE, source_sample_rate=RATE, voice_settings=call, input_gain_db=0.0)
        np.testing.assert_allclose(live, as_it_is, atol=1e-6)
        assert np.abs(pipeline.convert(SOURCE, source_sample_rate=RATE) - expected).max() > 1e-3


CALLS: list[tuple[dict[str, Any], type[VoiceConversionError], str]] = [
    ({"target_embedding": np.ones(4)}, EmbeddingError, "'anna' is one of its own and takes no target"),
    ({"source_f0": np.zeros(50)}, PitchError, "'anna' follows the pitch of its source; leave source_f0 out"),
    ({"pitch_shift_semitones": "auto"}, PitchError, "'auto' needs the median.*'anna'.*give semitones"),
    ({"pitch_shift_semitones": 25}, PitchError, "is 25 semitones"),
    ({"voice_settings": RvcSettings(speaker=3)}, ConfigurationError, "speaker is 3.*from 0 to 2"),
    ({"voice_settings": {"speaker": 0}}, ConfigurationError, "voice_settings is {'speaker': 0}"),
]


@pytest.mark.parametrize(("change", "error", "says"), CALLS)
def test_bad_calls(
    anna: VoiceConversionPipeline, change: dict[str, Any], error: type[VoiceConversionError], says: str
) -> None:
    calls: list[Any] = [lambda: anna.convert(SOURCE, source_sample_rate=RATE, **change)]
    if "source_f0" not in change:
        calls.append(lambda: anna.stream(**change))
    for call in calls:
        with pytest.raises(error, match=says) as refusal:
            call()
        assert "\n" not in str(refusal.value)
        assert refusal.value.exit_code == 2
    assert anna.stats.succeeded == 0


@pytest.mark.parametrize(
    ("parameters", "call", "error", "says"),
    [
        ({"has_index": "0"}, {"voice_settings": RvcSettings(index_rate=0.5)}, ConfigurationError, "no index"),
        ({"has_f0": "0"}, {"pitch_shift_semitones": 3.0}, PitchError, "trained without pitch; give 0"),
        ({"has_f0": "0"}, {"voice_settings": RvcSettings(protect=0.1)}, ConfigurationError, "protect is 0.1"),
    ],
)
def test_what_a_voice_lacks_cannot_be_asked_for(
    tmp_path: Path, parameters: dict[str, str], call: Any, error: type[Exception], says: str
) -> None:
    repository = build_toy_voices(tmp_path, {"anna": 40_000}, **parameters)
    config = PipelineConfig(repository=repository, voice="anna", block_seconds=0.2)
    with VoiceConversionPipeline(config) as pipeline:
        with pytest.raises(error, match=says):
            pipeline.convert(SOURCE, source_sample_rate=RATE, **call)
        neutral = RvcSettings(index_rate=0.0, protect=0.5)
        pipeline.convert(SOURCE, source_sample_rate=RATE, voice_settings=neutral)
    with pytest.raises(ConfigurationError, match="speaker is 3"):
        VoiceConversionPipeline(
            PipelineConfig(repository=repository, voice="anna", voice_settings=RvcSettings(speaker=3))
        )


def test_the_base_voice_needs_an_embedding_and_has_no_settings(toy_voices: Path, voice: np.ndarray) -> None:
    for name in (None, "voice_conversion"):
        with VoiceConversionPipeline(PipelineConfig(repository=toy_voices, voice=name)) as pipeline:
            assert pipeline.convert(SOURCE, voice).size == SOURCE.size
            with pytest.raises(EmbeddingError, match="missing"):
                pipeline.convert(SOURCE)
            with pytest.raises(EmbeddingError, match="missing"):
                pipeline.stream()
            with pytest.raises(ConfigurationError, match="settings of imported voices"):
                pipeline.convert(SOURCE, voice, voice_settings=RvcSettings(speaker=0))
    with pytest.raises(ConfigurationError, match="settings of imported voices"):
        VoiceConversionPipeline(PipelineConfig(repository=toy_voices, voice_settings=RvcSettings()))


@pytest.mark.parametrize("core", [0.0, 61.0, "short", True, float("nan")])
def test_cores_of_no_length_are_refused(
    anna: VoiceConversionPipeline, toy_voices: Path, voice: np.ndarray, core: Any
) -> None:
    with VoiceConversionPipeline(PipelineConfig(repository=toy_voices)) as base:
        for call in (lambda: anna.stream(core_seconds=core), lambda: base.stream(voice, core_seconds=core)):
            with pytest.raises(ConfigurationError, match=r"core_seconds is .*from 0\.01 to 60"):
                call()


def test_larger_cores_of_the_base_voice_are_fewer_requests(
    toy_voices: Path, voice: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = np.random.default_rng(1).uniform(-0.3, 0.3, 24_000).astype(np.float32)
    made, sizes = [], []
    with VoiceConversionPipeline(PipelineConfig(repository=toy_voices)) as pipeline:
        infer = pipeline._engine.infer

        def spy(model: str, inputs: Any, **rest: Any) -> Any:
            sizes[-1].append(inputs["SOURCE_AUDIO"].shape[1])
            return infer(model, inputs, **rest)

        monkeypatch.setattr(pipeline._engine, "infer", spy)
        for core, latency in ((None, 0.035), (0.1, 0.125)):
            sizes.append([])
            with pipeline.stream(voice, core_seconds=core) as stream:
                assert stream.latency_seconds == pytest.approx(latency)
                parts = [stream.push(source[at : at + 500]) for at in range(0, source.size, 500)]
                made.append(np.concatenate([*parts, stream.flush()]))
    np.testing.assert_allclose(made[0], made[1], atol=1e-6)
    assert min(sizes[1][:-1]) == 2400
    assert len(sizes[1]) < len(sizes[0]) / 4


@pytest.mark.parametrize("name", ["Anna", "an na", "", "../anna", 7])
def test_names_that_no_voice_has(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="voice is "):
        PipelineConfig(voice=name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dora", "voice 'dora' cannot be opened.*holds.*anna.*`autovoice voices`"),
        ("anna_window", "'anna_window' is a model, but no voice"),
        ("toy_content", "'toy_content' is a model, but no voice"),
    ],
)
def test_voices_that_are_not_there(toy_voices: Path, name: str, says: str) -> None:
    with pytest.raises(RepositoryError, match=says):
        VoiceConversionPipeline(PipelineConfig(repository=toy_voices, voice=name))


@pytest.mark.parametrize(
    ("parameter", "value", "says"),
    [
        ("output_sample_rate", "fast", "output_sample_rate = 'fast'"),
        ("context_left_samples", "100", "contexts"),
        ("context_right_samples", "-320", "contexts"),
        ("frame_samples", "200", "frame_samples = 200"),
        ("speakers", "0", "speakers = '0'"),
        ("default_protect", "0.9", "protect is 0.9"),
        ("default_speaker", "", "default_speaker = ''"),
    ],
)
def test_configs_that_make_no_sense(tmp_path: Path, parameter: str, value: str, says: str) -> None:
    repository = build_toy_voices(tmp_path, {"anna": 40_000}, **{parameter: value})
    with pytest.raises(RepositoryError, match=says):
        VoiceConversionPipeline(PipelineConfig(repository=repository, voice="anna"))


def test_ensembles_that_do_not_belong_together(tmp_path: Path) -> None:
    config = PipelineConfig(repository=build_toy_voices(tmp_path, {"anna": 40_000}), voice="anna")
    window = tmp_path / "anna_window" / "config.pbtxt"
    intact = window.read_text()
    window.write_text(intact.replace("ANCHOR_PHASE", "ANCHOR_ANGLE"))
    with pytest.raises(RepositoryError, match=r"no usable model for windows.*ANCHOR_ANGLE"):
        VoiceConversionPipeline(config)
    window.write_text(intact.replace('"F0"', '"PITCH"'))
    with pytest.raises(RepositoryError, match=r"no usable model for windows.*PITCH.*import the voice again"):
        VoiceConversionPipeline(config)
    window.unlink()
    with pytest.raises(RepositoryError, match=r"voice 'anna' has no usable model for windows.*'anna_window'"):
        VoiceConversionPipeline(config)
    assert [info.name for info in list_voices(config)] == ["anna"]


def test_numbers_may_be_numpy_s(anna: VoiceConversionPipeline) -> None:
    plain = anna.convert(SOURCE, source_sample_rate=RATE, voice_settings=RvcSettings(2, 0.5, 0.25, 1.0))
    scalars = RvcSettings(np.int32(2), np.float32(0.5), np.float16(0.25), np.float64(1))  # type: ignore[arg-type]
    made = anna.convert(SOURCE, source_sample_rate=RATE, voice_settings=scalars)
    np.testing.assert_array_equal(made, plain)


def test_the_list_of_voices(toy_voices: Path, tmp_path: Path) -> None:
    found = {info.name: info for info in list_voices(PipelineConfig(repository=toy_voices))}
    assert list(found) == ["voice_conversion", "anna", "bert", "cleo"]
    assert found["voice_conversion"].to_dict() == {
        "name": "voice_conversion",
        "family": "toy",
        "sample_rate": 24_000,
        "speakers": None,
        "f0": True,
        "index": False,
        "checkpoint": None,
        "version": 1,
        "defaults": {},
    }
    bare = build_toy_voices(tmp_path, {"dora": 32_000}, has_f0="0", has_index="0", version="v1")
    (dora,) = list_voices(PipelineConfig(repository=bare))
    assert (dora.family, dora.sample_rate, dora.speakers) == ("rvc", 32_000, 3)
    assert (dora.f0, dora.index, dora.checkpoint, dora.version) == (False, False, "v1", 1)
    assert dora.defaults == {"speaker": 1, "index_rate": 0.75, "protect": 0.25, "rms_mix": 0.5}
