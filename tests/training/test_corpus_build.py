"""A tiny corpus from end to end: index against audio, alignment, levels, going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from autovoice_training.corpus import store, voices
from autovoice_training.corpus.build import build
from autovoice_training.corpus.config import CorpusConfig

TINY = CorpusConfig(
    parallel=2,
    valid=1,
    free=2,
    hts=1,
    evaluation=1,
    development=1,
    espeak_speakers=1,
    espeak_sentences=1,
    warps=1,
    followers=2,
    warp_sentences=1,
    recorded=0,
)


def _absent() -> str | None:
    try:
        for voice in voices.VOICES.values():
            voice.require()
    except voices.MissingVoiceError as missing:
        return str(missing)
    return None


needs_voices = pytest.mark.skipif(_absent() is not None, reason=str(_absent()))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("corpus")
    return root, build(root, TINY, workers=2)


def _load(root: Path, utterance: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    folder = root / "speakers" / utterance["speaker"]
    first, last = utterance["start_frame"], utterance["start_frame"] + utterance["frames"]
    audio = np.load(folder / "audio.npy", mmap_mode="r")[240 * first : 240 * last]
    return audio.astype(np.float64) / 32768, np.load(folder / "phones.npy")[first:last]


def _contour(audio: np.ndarray) -> np.ndarray:
    """Log energy of 2 ms blocks, smoothed over 10 ms, zero mean."""
    power = np.sqrt(np.mean(audio.reshape(-1, 48) ** 2, axis=1))
    contour = np.convolve(np.log(power + 1e-3), np.ones(5) / 5, "same")
    return contour - contour.mean()


def _offset_ms(a: np.ndarray, b: np.ndarray) -> int:
    a, b, reach = _contour(a), _contour(b), 50
    scores = [a[reach + lag : len(a) - reach + lag] @ b[reach:-reach] for lag in range(-reach, reach + 1)]
    return 2 * (int(np.argmax(scores)) - reach)


@pytest.mark.slow
@needs_voices
def test_the_index_describes_the_arrays_exactly(corpus: tuple[Path, dict[str, Any]]) -> None:
    root, index = corpus
    assert json.loads((root / "index.json").read_text()) == json.loads(json.dumps(index))
    assert len(index["phones"]) == 41
    names = {speaker["name"] for speaker in index["speakers"]}
    assert {"kal", "lp", "mv", "slt", "ona", "espeak00", "kal_w0", "ona_w0", "kal_as_slt"} <= names
    assert "slt_hts_w0" not in names  # the same human as slt
    for name in names:
        own = sorted((u for u in index["utterances"] if u["speaker"] == name), key=lambda u: u["start_frame"])
        audio = np.load(root / "speakers" / name / "audio.npy", mmap_mode="r")
        labels = np.load(root / "speakers" / name / "phones.npy", mmap_mode="r")
        assert audio.dtype == labels.dtype == np.int16
        assert len(audio) == 240 * len(labels) == 240 * sum(u["frames"] for u in own)
        assert own[0]["start_frame"] == 0
        assert all(b["start_frame"] == a["start_frame"] + a["frames"] for a, b in pairwise(own))
        for utterance in own:
            _, phones = _load(root, utterance)
            assert utterance["labelled"] == bool((phones >= 0).all())
            assert utterance["labelled"] or bool((phones == -1).all())


@pytest.mark.slow
@needs_voices
def test_the_speech_is_level_and_neither_clipped_nor_silent(corpus: tuple[Path, dict[str, Any]]) -> None:
    root, index = corpus
    for utterance in index["utterances"]:
        audio, _ = _load(root, utterance)
        assert np.abs(audio).max() < 0.98
        assert -29 < 20 * np.log10(np.sqrt(np.mean(audio**2))) < -22


@pytest.mark.slow
@needs_voices
def test_parallel_utterances_agree_frame_by_frame(corpus: tuple[Path, dict[str, Any]]) -> None:
    root, index = corpus
    reference = {u["group"]: _load(root, u) for u in index["utterances"] if u["speaker"] == "kal"}
    # A follower is aligned to the recording that it follows.
    reference |= {
        f"{u['speaker']}:{u['sentence']}": _load(root, u)
        for u in index["utterances"]
        if u["speaker"] in ("slt", "awb")
    }
    offsets: dict[str, list[int]] = {}
    for utterance in index["utterances"]:
        if utterance["group"] is None:
            continue
        audio, phones = _load(root, utterance)
        expected_audio, expected_phones = reference[utterance["group"]]
        assert np.array_equal(phones, expected_phones)
        offsets.setdefault(utterance["speaker"], []).append(_offset_ms(audio, expected_audio))
    assert len(offsets) >= 14
    assert all(abs(np.median(found)) <= 14 for found in offsets.values()), offsets
    assert np.median([abs(o) for found in offsets.values() for o in found]) <= 8, offsets


@pytest.mark.slow
@needs_voices
def test_held_out_humans_and_texts_are_in_the_evaluation_only(corpus: tuple[Path, dict[str, Any]]) -> None:
    root, index = corpus
    described = json.loads((root / "eval" / "voices.json").read_text())
    texts = json.loads((root / "eval" / "texts.json").read_text())
    trained = {s["human"] for s in index["speakers"] if s["split"] == "train"}
    assert trained.isdisjoint({"rms", "ked", "krb", "mv"})
    assert {voice for voice, entry in described.items() if not entry["seen"]} == {"rms", "ked", "krb", "mv"}
    assert not {u["text"] for u in index["utterances"]} & set(texts.values())
    frames = set()
    for voice, entry in described.items():
        for name in texts:
            audio, rate = soundfile.read(root / "eval" / voice / f"{name}.flac")
            assert rate == 24000
            assert len(audio) % 240 == 0
            if entry["aligned_to"] == "kal":
                frames.add((name, len(audio)))
    assert len(frames) == len(texts)


@pytest.mark.slow
@needs_voices
def test_development_has_texts_of_its_own_and_no_test_human(corpus: tuple[Path, dict[str, Any]]) -> None:
    root, index = corpus
    described = json.loads((root / "dev" / "voices.json").read_text())
    texts = json.loads((root / "dev" / "texts.json").read_text())
    assert len(texts) == TINY.development
    assert {voice for voice, entry in described.items() if not entry["seen"]} == {"mv"}
    evaluated = json.loads((root / "eval" / "texts.json").read_text())
    assert not ({u["text"] for u in index["utterances"]} | set(evaluated.values())) & set(texts.values())
    assert all((root / "dev" / voice / f"{name}.flac").exists() for voice in described for name in texts)


@pytest.mark.slow
@needs_voices
def test_the_same_seed_gives_the_same_bytes(corpus: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    root, _ = corpus
    again = CorpusConfig(**{**TINY.__dict__, "warps": 0, "evaluation": 0, "development": 0})
    build(tmp_path, again, workers=2)
    for name in ("kal", "dita", "slt", "espeak00"):
        for file in ("audio.npy", "phones.npy"):
            assert (tmp_path / "speakers" / name / file).read_bytes() == (
                root / "speakers" / name / file
            ).read_bytes()


@pytest.mark.slow
@needs_voices
def test_a_killed_build_goes_on_where_it_stopped(tmp_path: Path) -> None:
    settings = tmp_path / "c.toml"
    settings.write_text(
        "parallel=2\nvalid=1\nfree=0\nhts=0\nevaluation=0\ndevelopment=0\nespeak_speakers=0\nwarps=0\nrecorded=0\n"
    )
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "autovoice_training.corpus",
        "--out",
        str(out),
        "--config",
        str(settings),
    ]
    process = subprocess.Popen(
        [*command, "--workers", "1"], start_new_session=True, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not list(out.glob("speakers/*/speaker.json")):
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("speakers/*/speaker.json")}
    assert kept
    assert not (out / "index.json").exists()
    (out / "speakers" / "lost.partial").mkdir()  # what a kill between two writes leaves
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    index = json.loads((out / "index.json").read_text())
    assert {s["name"] for s in index["speakers"]} == {"kal", "lp", "pc", "dita", "machac", "ph", "lj", "mv"}
    other = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True)
    assert other.returncode == 1
    assert "was begun with" in other.stderr
    assert "Traceback" not in other.stderr


def test_a_missing_voice_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(voices, "_FESTIVAL_VOICES", tmp_path)
    with pytest.raises(voices.MissingVoiceError, match=r"apt-get install fest(vox-kallpc16k|ival)"):
        voices.VOICES["kal"].require()


def test_labels_that_do_not_fit_the_audio_are_refused(tmp_path: Path) -> None:
    speaker = store.Speaker("a", "a", "male", "flite", 16000, "train")
    writer = store.SpeakerWriter(tmp_path, speaker)
    with pytest.raises(ValueError, match="a/s1"):
        writer.add("s1", "text", np.zeros(480, np.int16), np.zeros(3, np.int16), "train", None)
