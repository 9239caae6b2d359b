"""The re-expressed speaker encoder against the package it comes from, and what it adds."""

from __future__ import annotations

import warnings
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import soxr
import torch

from autovoice_export.base.stages import speaker_encoder
from autovoice_export.base.stages.speaker_encoder import SpeakerEncoder

DEMO = Path(__file__).parents[3] / "demo"
RECORDINGS = ["source_rms.flac", "target_awb.flac", "target_slt.flac"]
NETWORK_RATE = 16000


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    return SpeakerEncoder.from_resemblyzer()


@pytest.fixture(scope="module")
def voices() -> dict[str, np.ndarray]:
    """The shipped recordings at 24 kHz."""
    result = {}
    for name in RECORDINGS:
        audio, rate = soundfile.read(DEMO / name, dtype="float32")
        result[name] = soxr.resample(audio, rate, speaker_encoder.SAMPLE_RATE)
    return result


def embed(encoder: SpeakerEncoder, *audio: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return encoder(torch.from_numpy(np.stack(audio))).numpy()


def test_agrees_with_the_package(encoder: SpeakerEncoder, voices: dict[str, np.ndarray]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from resemblyzer import VoiceEncoder, preprocess_wav

        package = VoiceEncoder("cpu", verbose=False)
        for name, audio in voices.items():
            # The package leaves loud recordings as loud as they are; ours answers for one level.
            narrow = soxr.resample(audio, speaker_encoder.SAMPLE_RATE, NETWORK_RATE)
            narrow = narrow * (0.1 / np.sqrt(np.mean(narrow**2)))
            expected = package.embed_utterance(preprocess_wav(narrow))
            assert embed(encoder, audio)[0] @ expected > 0.985, name


def test_mel_basis_is_that_of_the_package() -> None:
    expected = librosa.filters.mel(sr=NETWORK_RATE, n_fft=400, n_mels=40).T
    np.testing.assert_allclose(speaker_encoder._mel_basis().numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("gain", [1e-4, 0.03, 1.0, 30.0])
def test_level_does_not_matter(encoder: SpeakerEncoder, voices: dict[str, np.ndarray], gain: float) -> None:
    audio = voices["target_awb.flac"]
    reference, scaled = embed(encoder, audio)[0], embed(encoder, (gain * audio).astype(np.float32))[0]
    np.testing.assert_allclose(scaled, reference, atol=1e-4)


def test_pauses_hardly_matter(encoder: SpeakerEncoder, voices: dict[str, np.ndarray]) -> None:
    audio = voices["source_rms.flac"]
    random = np.random.default_rng(0)
    hiss = (1e-4 * random.standard_normal(4 * speaker_encoder.SAMPLE_RATE)).astype(np.float32)
    middle = len(audio) // 2
    paused = np.concatenate([hiss, audio[:middle], hiss, audio[middle:], hiss])
    assert embed(encoder, paused)[0] @ embed(encoder, audio)[0] > 0.97


def test_short_reference_is_nearer_to_its_own_voice(
    encoder: SpeakerEncoder, voices: dict[str, np.ndarray]
) -> None:
    whole = {name: embed(encoder, audio)[0] for name, audio in voices.items()}
    length = round(0.3 * speaker_encoder.SAMPLE_RATE)
    right = total = 0
    for name, audio in voices.items():
        for start in range(
            speaker_encoder.SAMPLE_RATE // 2, len(audio) - length, speaker_encoder.SAMPLE_RATE // 2
        ):
            piece = audio[start : start + length]
            if np.sqrt(np.mean(piece**2)) < 0.03:
                continue
            short = embed(encoder, piece)[0]
            right += max(whole, key=lambda other: whole[other] @ short) == name
            total += 1
    assert total > 20
    assert right / total > 0.85


def test_batch_equals_single(encoder: SpeakerEncoder, voices: dict[str, np.ndarray]) -> None:
    length = min(len(audio) for audio in voices.values())
    pieces = [audio[:length] for audio in voices.values()]
    single = np.concatenate([embed(encoder, piece) for piece in pieces])
    np.testing.assert_allclose(embed(encoder, *pieces), single, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 100, 300, 601, 7200, 24000])
@pytest.mark.parametrize("kind", ["silence", "constant", "noise"])
def test_any_input_gives_a_finite_unit_vector(encoder: SpeakerEncoder, length: int, kind: str) -> None:
    audio = {
        "silence": np.zeros(length),
        "constant": np.ones(length),
        "noise": np.random.default_rng(1).standard_normal(length),
    }[kind]
    embedding = embed(encoder, audio.astype(np.float32))[0]
    assert np.isfinite(embedding).all()
    assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-5)
    assert (embedding >= 0).all()


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"'resemblyzer'.* is not installed: run  pip install"):
        SpeakerEncoder.from_resemblyzer()
