"""The stages around the networks: filters, loudness, time, pitch and phase, each against its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from imported_voices import Files, feeds, voice_like
from scipy import signal
from torch import nn

from autovoice.engines.local import LocalEngine
from autovoice.repository.reader import ModelRepository
from autovoice_export.onnx.export import export_stage
from autovoice_export.onnx.gru import BidirectionalGRU
from autovoice_export.parity import session_run
from autovoice_export.rvc import pitch
from autovoice_export.rvc.noise import PRIOR_FRAMES, rows_at, source_noise_table
from autovoice_export.rvc.rmvpe import MelSpectrogram, decode
from autovoice_export.rvc.source_audio import HighPass, MixLoudness, PadToGrid, TrimToSource
from autovoice_export.stage import Axis, Stage, StageTensor
from autovoice_plugins.harmonic_source.torch_op import harmonic_source

RATE = 16000


def test_high_pass_is_butterworth_forwards_and_backwards() -> None:
    numerator, denominator = signal.butter(5, 48, btype="high", fs=RATE)
    time = np.arange(6 * RATE) / RATE
    audio = np.random.RandomState(0).standard_normal(6 * RATE) + np.sin(2 * np.pi * 31 * time) + 0.5
    # Away from the ends, where filtfilt mirrors and we have silence.
    inside = slice(RATE, 5 * RATE)
    expected = signal.filtfilt(numerator, denominator, audio)[inside]
    found = HighPass()(torch.from_numpy(audio[None]).float())[0].numpy()[inside]
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
def test_loudness_follows_the_source(mix: float) -> None:
    time = torch.arange(8 * RATE, dtype=torch.float64) / RATE
    source = (voice_like(1, 8 * RATE) * (0.3 + 0.2 * torch.sin(0.7 * time))).float()
    hop = 400
    audio = 0.3 * torch.randn(1, 800 * hop, generator=torch.Generator().manual_seed(2))
    found = MixLoudness(hop)(audio, source, torch.tensor([[mix]]), torch.tensor([[0]]))
    if mix == 1.0:
        quiet = audio.abs() < 0.9
        torch.testing.assert_close(found[quiet], audio[quiet], atol=1e-6, rtol=0)
    curves = []
    for values, rate in ((source, RATE), (audio, 40000)):
        rms = librosa.feature.rms(y=values[0].numpy(), frame_length=rate // 2 * 2, hop_length=rate // 2)[0]
        # The points lie half a second apart and are joined by lines.
        curves.append(np.interp(np.arange(audio.shape[1]) / 40000, np.arange(len(rms)) / 2, rms))
    expected = audio.numpy() * curves[0] ** (1 - mix) * np.maximum(curves[1], 1e-6) ** (mix - 1)
    expected = bent(expected)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5 * np.abs(expected).max())


def bent(audio: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Peaks above 0.9 as the base voice bends them."""
    return np.where(
        np.abs(audio) < 0.9, audio, np.sign(audio) * (0.9 + 0.1 * np.tanh((np.abs(audio) - 0.9) / 0.1))
    )


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("level", [0.5, 0.99, 8.0])
def test_the_loudest_source_stays_within_full_scale(mix: float, level: float) -> None:
    time = np.arange(2 * RATE) / RATE
    square = torch.from_numpy(level * np.sign(np.sin(2 * np.pi * 150 * time)))[None].float()
    audio = 0.2 * torch.randn(1, 200 * 400, generator=torch.Generator().manual_seed(2))
    settings = torch.tensor([[mix]]), torch.tensor([[0]])
    found = MixLoudness(400)(audio.clamp(-1, 1), square, *settings)
    assert found.abs().max() <= 1.0
    assert (found.abs().max() > 0.9) == (mix < 1.0 or bool(audio.abs().max() > 0.9))


def test_loudness_of_a_window_is_that_of_the_recording() -> None:
    source, hop = voice_like(1, 6 * RATE), 480
    audio = 0.3 * torch.randn(1, 600 * hop, generator=torch.Generator().manual_seed(2))
    mix, mixer = torch.tensor([[0.3]]), MixLoudness(hop)
    whole = mixer(audio, source, mix, torch.tensor([[0]]))
    # 1 s of context is half a second of RMS and half a second to the next point.
    first, last = 86, 510
    part = mixer(
        audio[:, first * hop : last * hop],
        source[:, first * 160 : last * 160],
        mix,
        torch.tensor([[first]]),
    )
    core = slice(100 * hop, (last - first - 100) * hop)
    expected = whole[:, first * hop : last * hop][:, core]
    torch.testing.assert_close(part[:, core], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("sample_rate", "seconds"), [(32000, 20), (40000, 600), (48000, 20)])
def test_ten_minutes_keep_their_time(files: Files, sample_rate: int, seconds: int) -> None:
    # What surrounds the networks, with a stand-in for them that speaks on the grid, one window after another.
    hop = sample_rate // 100
    length = seconds * RATE - 123
    source = torch.zeros(1, length)
    places = torch.arange(7919, length, 48611)
    source[0, places] = 1.0
    padded, first, _ = PadToGrid()(source)
    assert padded.shape[1] % 320 == 0
    assert int(first) == 0
    filtered = torch.from_numpy(files.run("rvc_high_pass", {"SOURCE_AUDIO": padded})["AUDIO"])
    windows = []
    for start in range(0, padded.shape[1], 500 * 320):
        piece = filtered[:, start : start + 500 * 320].reshape(1, -1, 160)
        place = torch.arange(hop) * RATE // sample_rate
        windows.append(piece[:, :, place].reshape(1, -1))
    converted = TrimToSource(sample_rate)(torch.cat(windows, dim=1), source)
    assert converted.shape[1] == -(-length * sample_rate // RATE)
    for place in places.tolist():
        expected = place * sample_rate / RATE
        near = converted[0, int(expected) - 20 : int(expected) + 20]
        assert abs(int(near.abs().argmax()) + int(expected) - 20 - expected) <= 1


@pytest.mark.parametrize("name", ["sung", "plain", "tracked"])
@pytest.mark.parametrize("samples", [160, 320, 321, 16077])
def test_output_is_as_long_as_the_source(files: Files, name: str, samples: int) -> None:
    engine = LocalEngine(ModelRepository(files.repository))
    rate = int(engine.spec(name).parameters["output_sample_rate"])
    found = engine.infer(name, feeds(voice_like(2, samples).numpy()))["CONVERTED_AUDIO"]
    assert found.shape == (2, -(-samples * rate // RATE))


@pytest.mark.parametrize("name", ["sung", "plain", "tracked"])
def test_a_window_over_everything_is_the_whole(files: Files, name: str) -> None:
    engine = LocalEngine(ModelRepository(files.repository))
    audio = voice_like(1, 100 * 320).numpy()
    whole = engine.infer(name, feeds(audio))["CONVERTED_AUDIO"]
    window = engine.infer(f"{name}_window", feeds(audio, window=True))
    np.testing.assert_array_equal(window["CONVERTED_AUDIO"], whole)
    assert window["F0"].shape == (1, 200)
    assert (window["F0"] > 0).any() == (name != "plain")
    louder = engine.infer(name, {**feeds(audio), "RMS_MIX": np.float32([[0.2]])})["CONVERTED_AUDIO"]
    assert np.abs(louder - whole).max() > 1e-3


tracks = st.lists(st.one_of(st.just(0.0), st.floats(50.0, 1100.0, width=32)), min_size=1, max_size=40)


@given(tracks)
def test_gaps_are_bridged_as_numpy_does(track: list[float]) -> None:
    f0 = np.array(track, dtype=np.float32)
    voiced = np.flatnonzero(f0)
    expected = np.interp(np.arange(len(f0)), voiced, f0[voiced]) if len(voiced) else f0
    found = pitch.bridged(torch.from_numpy(f0[None]))[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@given(tracks, st.floats(-24.0, 24.0), st.data())
def test_source_of_a_window_is_that_of_the_recording(
    track: list[float], semitones: float, data: st.DataObject
) -> None:
    hop, rate = 400, 40000
    f0 = pitch.shifted(torch.tensor([track]), torch.tensor([[semitones]]))
    frames = len(track)
    noise = rows_at(source_noise_table(hop), torch.tensor([[-7]]), frames)
    whole, _ = harmonic_source(
        f0, torch.zeros(1, 2), noise.reshape(1, -1), sample_rate=rate, hop=hop, waveform="sine"
    )
    start = data.draw(st.integers(0, frames - 1))
    anchor = data.draw(st.integers(start, frames - 1))
    # What a caller does: add up the advances of the frames before the anchor, in float64.
    steps = np.round(f0[0, :anchor].double().numpy() * 0.01 * 2**24)
    at_anchor = torch.tensor([[(steps.sum() / 2**24) % 1.0]], dtype=torch.float32)
    window = f0[:, start:]
    phase = pitch.start_phase(window, torch.tensor([[anchor - start]]), at_anchor)
    part_noise = rows_at(source_noise_table(hop), torch.tensor([[start - 7]]), frames - start)
    part, _ = harmonic_source(
        window,
        torch.cat([torch.zeros(1, 1), phase], dim=1),
        part_noise.reshape(1, -1),
        sample_rate=rate,
        hop=hop,
        waveform="sine",
    )
    assert torch.equal(part, whole[:, start * hop :])


def test_noise_depends_on_the_place_alone() -> None:
    table = source_noise_table(4)
    whole = rows_at(table, torch.tensor([[-3], [10**9]]), 2000)
    part = rows_at(table, torch.tensor([[497], [10**9 + 500]]), 100)
    assert torch.equal(whole[:, 500:600], part)
    assert abs(float(whole.mean())) < 0.05
    assert abs(float(whole.std()) - 1) < 0.05
    assert PRIOR_FRAMES % len(table)


def test_pitch_is_measured_where_the_frame_starts(files: Files) -> None:
    # A glide of 1.5 octaves a second: being late by one frame would be 18 cents.
    time = torch.arange(2 * RATE, dtype=torch.float64) / RATE
    phase = 110.0 * (2.0 ** (1.5 * time) - 1.0) / (1.5 * np.log(2.0))
    audio = sum(torch.sin(2 * np.pi * k * phase) / k for k in range(1, 6))[None].float() * 0.2
    found = files.run("rvc_pitch_yin", {"AUDIO": audio})
    np.testing.assert_array_equal(found["PASSED_AUDIO"], audio.numpy())
    f0 = found["F0"][0]
    assert f0.shape == (200,)
    expected = 110.0 * 2.0 ** (1.5 * np.arange(200) / 100)
    inside = slice(10, 190)
    cents = 1200 * np.log2(f0[inside] / expected[inside])
    assert abs(np.median(cents)) < 3
    assert np.abs(cents).max() < 15


def test_mel_spectrogram_is_that_of_librosa() -> None:
    audio = voice_like(2, 320 * 7)
    expected = librosa.feature.melspectrogram(
        y=audio.numpy(), sr=RATE, n_fft=1024, hop_length=160, n_mels=128, fmin=30, fmax=8000, htk=True,
        power=1.0, center=True, pad_mode="reflect", window="hann",
    )  # fmt: skip
    expected = np.log(np.maximum(expected, 1e-5)).transpose(0, 2, 1)
    found = MelSpectrogram()(audio).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    # Even one grid step, shorter than the mirrored margin, is analysed.
    assert torch.isfinite(MelSpectrogram()(audio[:, :320])).all()


def test_salience_is_decoded_around_its_peak() -> None:
    salience = torch.rand(2, 50, 360, generator=torch.Generator().manual_seed(1)) * 0.02
    peaks = torch.randint(0, 360, (2, 50), generator=torch.Generator().manual_seed(2))
    salience.scatter_(2, peaks.unsqueeze(2), 0.9)
    salience[:, ::5] = 0.03
    expected = reference.decode_pitch(salience.numpy())
    assert 0 < np.count_nonzero(expected) < expected.size
    np.testing.assert_allclose(decode(salience).numpy(), expected, rtol=1e-5)


def test_recurrence_is_exported_for_any_length(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = BidirectionalGRU(6, 5).eval()
    plain = nn.GRU(6, 5, batch_first=True, bidirectional=True)
    plain.load_state_dict(module.state_dict())
    frames = Axis("F")
    stage = Stage("gru", module, (StageTensor("X", (frames, 6)),), (StageTensor("Y", (frames, 10)),))
    export_stage(stage, tmp_path / "gru.onnx", {})
    run = session_run(tmp_path / "gru.onnx")
    for length, batch in ((1, 1), (2, 3), (77, 2)):
        x = torch.randn(batch, length, 6)
        with torch.no_grad():
            expected = plain(x)[0].numpy()
            torch.testing.assert_close(module(x), plain(x)[0])
        np.testing.assert_allclose(run({"X": x.numpy()})["Y"], expected, atol=1e-5)
