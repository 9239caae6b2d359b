"""The ablation of the synthesis: both ends of it, and what lies between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice_export.base.checkpoint import load_checkpoint
from autovoice_training.evaluate.audio import RATE, Audio, at_judge_rate, read_audio
from autovoice_training.evaluate.oracle import Network, Synthesis, analyse, variants
from autovoice_training.evaluate.pitch import compare_f0, f0_track
from autovoice_training.evaluate.runtime import StageConverter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def audio() -> Audio:
    return read_audio(ROOT / "demo" / "target_slt.flac")[: 3 * RATE + 100]


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(load_checkpoint(ROOT / "training" / "checkpoints" / "base.safetensors"))


def test_the_network_is_what_the_repository_does(audio: Audio, network: Network) -> None:
    """At the source's own level, into a voice that is embedded whole; the pipeline changes both first."""
    made = network.render(network.filters(audio, audio), len(audio))
    checkpoint = load_checkpoint(ROOT / "training" / "checkpoints" / "base.safetensors")
    embedding = StageConverter(checkpoint).embed(audio)
    config = PipelineConfig(repository=ROOT / "model_repository", device="cpu", fallback="raise")
    with VoiceConversionPipeline(config) as pipeline:
        expected = pipeline.convert(audio, embedding, source_sample_rate=RATE, input_gain_db=0.0)
    assert made.shape == audio.shape
    np.testing.assert_allclose(made, expected, atol=2e-3)


def test_the_oracle_speaks_in_time_with_the_recording(audio: Audio, network: Network) -> None:
    oracle = analyse(audio, len(network.filters(audio, audio).f0))
    made = network.render(oracle, len(audio))
    assert np.sqrt(np.mean(made**2)) == pytest.approx(np.sqrt(np.mean(audio**2)), rel=0.3)
    melody = compare_f0(f0_track(at_judge_rate(made)), f0_track(at_judge_rate(audio)), 0.0)
    assert melody.f0_corr > 0.95
    assert melody.voicing_error < 0.1
    level = [np.convolve(np.abs(samples), np.ones(480), "same") for samples in (made, audio)]
    lag = np.argmax(
        [np.dot(level[0][960:-960], np.roll(level[1], shift)[960:-960]) for shift in range(-480, 480)]
    )
    assert abs(lag - 480) < 120, "no frame late or early"


def test_variants_change_one_factor_each() -> None:
    rng = np.random.default_rng(0)
    ends = [
        Synthesis(
            np.where(rng.random(50) > 0.3, rng.uniform(100, 300, 50), 0.0),
            rng.normal(-5, 2, (50, 80)),
            rng.random((50, 80)),
        )
        for _ in range(2)
    ]
    oracle, network = ends
    made = dict(variants(oracle, network))
    assert made["oracle"] is oracle
    assert made["network"] is network
    for name, one in made.items():
        base = oracle if name.startswith("oracle") else network
        changed = [
            key for key in ("f0", "envelope", "noise_share") if getattr(one, key) is not getattr(base, key)
        ]
        assert len(changed) == (name not in ("oracle", "network")), name
    pitch, voicing = made["oracle, the network's F0"].f0, made["oracle, the network's voicing"].f0
    np.testing.assert_array_equal(pitch > 0, oracle.f0 > 0)
    np.testing.assert_array_equal(voicing > 0, network.f0 > 0)
    both = (oracle.f0 > 0) & (network.f0 > 0)
    np.testing.assert_array_equal(pitch[both], network.f0[both])
    np.testing.assert_array_equal(voicing[both], oracle.f0[both])
    assert np.std(made["oracle, cut to 24 cosines"].envelope) < np.std(oracle.envelope)


def test_harmonics_and_noise_share_the_power() -> None:
    one = Synthesis(np.array([100.0, 0.0]), np.full((2, 80), -3.0), np.full((2, 80), 0.25))
    harmonic, noise = one.filters()
    np.testing.assert_allclose(np.exp(2 * harmonic[0]) + np.exp(2 * noise[0]), np.exp(-6.0))
    np.testing.assert_allclose(np.exp(2 * noise[0]), 0.25 * np.exp(-6.0))
    np.testing.assert_allclose(noise[1], -3.0)
    assert (harmonic[1] == -16.0).all()
