"""Speaker encoder: a recording of any length in, one unit-length voice embedding out.

The network is the GE2E speaker encoder (Wan et al., "Generalized End-to-End Loss for Speaker
Verification", ICASSP 2018) as trained and published by Corentin Jemine and Resemble AI in the package
Resemblyzer 0.1.4 (https://github.com/resemble-ai/Resemblyzer, Apache License 2.0, text in
``autovoice_export/licenses/resemblyzer-LICENSE.txt``). Its weights are read from the installed package when
the stage is exported; this module re-expresses the code around them so that everything is one static graph:

* 24 kHz audio is analysed directly. A 25 ms window has the same 40 Hz bin spacing at 24 kHz (600 points) as
  at the network's 16 kHz (400 points), so the bins up to 8 kHz, scaled by 400/600 in amplitude, are the ones
  the network was trained on and no resampler is needed.
* The level is normalised over the speech frames, so the embedding does not depend on the gain.
* Pauses are removed, as the package does with webrtcvad, by a threshold on the frame energy. Only *values*
  depend on the data (which frame is read next), never shapes.
* A recording shorter than one 1.6 s window is repeated to fill it.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from autovoice_export.base.stages import sizes
from autovoice_export.base.stages.blocks import mel_filterbank

SAMPLE_RATE = 24000
HOP_SAMPLES = 240
WINDOW_SAMPLES = 600
EMBEDDING_SIZE = sizes.IDENTITY_SIZE

_NETWORK_SAMPLE_RATE = 16000
_NETWORK_WINDOW_SAMPLES = 400
_BINS = 201  # 0 to 8 kHz in steps of 40 Hz: all that the 16 kHz network has
_MEL_BANDS = 40
_HIDDEN_SIZE = 256
_LAYERS = 3

WINDOW_FRAMES = 160  # 1.6 s, the length of the network's training segments
STEP_FRAMES = 77  # 1.3 windows per second
_MIN_COVERAGE_FRAMES = 120  # a last window filled to less than 75 % is not used

_SPEECH_LEVEL_DBFS = -20.0  # where close-miked speech usually sits; the package leaves such audio as it is
_SPEECH_RANGE_DB = 30.0  # frames further than this below the loud ones count as pause
_HANGOVER_FRAMES = 15  # pauses up to twice this long stay, much as in the package
_TINY_POWER = 1e-20

# By Parseval: what the bins of one frame sum to for noise of mean square 1 (the Hann window's own is 3/8).
_POWER_OF_UNIT_RMS = 0.5 * _NETWORK_WINDOW_SAMPLES**2 * 0.375


class SpeakerEncoder(nn.Module):
    """GE2E speaker encoder on 24 kHz audio, for recordings from one sample to minutes.

    In ONNX Runtime each minute of audio takes about 110 MB while it is embedded; a voice is known after one.
    """

    dft: Tensor
    mel_basis: Tensor
    hangover: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(_MEL_BANDS, _HIDDEN_SIZE, _LAYERS, batch_first=True)
        self.linear = nn.Linear(_HIDDEN_SIZE, EMBEDDING_SIZE)
        self.register_buffer("dft", _windowed_dft())
        self.register_buffer("mel_basis", _mel_basis())
        self.register_buffer("hangover", torch.ones(1, 1, 2 * _HANGOVER_FRAMES + 1))

    @classmethod
    def from_resemblyzer(cls) -> SpeakerEncoder:
        """Builds the encoder with the weights shipped in the installed ``resemblyzer`` package.

        Raises:
            FileNotFoundError: the package or its weight file is not installed.
        """
        encoder = cls()
        checkpoint = torch.load(_resemblyzer_weights(), map_location="cpu", weights_only=True)
        weights = checkpoint["model_state"]
        wanted = {name for name in encoder.state_dict() if name.startswith(("lstm.", "linear."))}
        encoder.load_state_dict({name: weights[name] for name in wanted}, strict=False)
        return encoder.eval()

    def forward(self, reference_audio: Tensor) -> Tensor:
        """Embeds recordings.

        Args:
            reference_audio: [B, T] mono at 24 kHz, T >= 1, any level.

        Returns:
            [B, 256] non-negative, unit length.
        """
        power = self._power_spectrum(reference_audio)
        windows, weights = self._speech_windows(power @ self.mel_basis, power.sum(dim=2) / _POWER_OF_UNIT_RMS)
        batch, count = windows.shape[0], windows.shape[1]
        _, (hidden, _) = self.lstm(windows.reshape(batch * count, WINDOW_FRAMES, _MEL_BANDS))
        partials = _unit_length(torch.relu(self.linear(hidden[-1]))).reshape(batch, count, EMBEDDING_SIZE)
        return _unit_length((partials * weights.unsqueeze(2)).sum(dim=1))

    def embed_window(self, speech: Tensor) -> Tensor:
        """Embeds one window of speech without looking for pauses, for use as a training loss.

        Args:
            speech: [B, T] mono at 24 kHz, T >= 159 * 240; the first 1.6 s are used.

        Returns:
            [B, 256] non-negative, unit length, differentiable.
        """
        power = self._power_spectrum(speech[:, : (WINDOW_FRAMES - 1) * HOP_SAMPLES])
        level = power.sum(dim=2).mean(dim=1)[:, None, None] / _POWER_OF_UNIT_RMS
        scale = 10.0 ** (_SPEECH_LEVEL_DBFS / 10.0) / torch.clamp(level, min=_TINY_POWER)
        _, (hidden, _) = self.lstm(power @ self.mel_basis * scale)
        return _unit_length(torch.relu(self.linear(hidden[-1])))

    def _power_spectrum(self, audio: Tensor) -> Tensor:
        """Power spectrogram [B, F, 201] of [B, T] audio scaled to a peak of 1, F = T // 240 + 1."""
        peak = audio.abs().amax(dim=1, keepdim=True)
        audio = audio / torch.clamp(peak, min=1e-12)
        # Reflection by index rather than by a Pad node, which refuses signals shorter than the padding.
        length = audio.shape[1]
        positions = torch.arange(-(WINDOW_SAMPLES // 2), length + WINDOW_SAMPLES // 2, device=audio.device)
        # Not a clamp: TensorRT has it for floats only.
        period = torch.maximum(torch.full_like(positions, 2) * (length - 1), torch.ones_like(positions))
        wrapped = torch.remainder(positions, period)
        audio = audio[:, torch.minimum(wrapped, period - wrapped)]
        spectrum = nn.functional.conv1d(audio.unsqueeze(1), self.dft, stride=HOP_SAMPLES)
        return (spectrum[:, :_BINS] ** 2 + spectrum[:, _BINS:] ** 2).transpose(1, 2)

    def _speech_windows(self, mel: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        """Cuts the speech of a spectrogram into overlapping windows of fixed length.

        Args:
            mel: [B, F, 40] power.
            energy: [B, F] mean square of the audio in each frame.

        Returns:
            [B, W, 160, 40] level-normalised windows and their [B, W] weights, 0 or 1 (the first is always 1).
        """
        batch, frames = mel.shape[0], mel.shape[1]
        loud = (energy**2).sum(dim=1, keepdim=True) / torch.clamp(
            energy.sum(dim=1, keepdim=True), min=_TINY_POWER
        )
        audible = (energy > loud * 10.0 ** (-_SPEECH_RANGE_DB / 10.0)).to(mel.dtype)
        level = (energy * audible).sum(dim=1, keepdim=True) / torch.clamp(
            audible.sum(dim=1, keepdim=True), min=1.0
        )
        mel = mel * (10.0 ** (_SPEECH_LEVEL_DBFS / 10.0) / torch.clamp(level, min=_TINY_POWER)).unsqueeze(2)

        near = nn.functional.conv1d(audible.unsqueeze(1), self.hangover, padding=_HANGOVER_FRAMES).squeeze(1)
        silent = audible.sum(dim=1, keepdim=True) == 0
        speech = torch.logical_or(near > 0.5, silent)
        # Counted in floats, which are exact up to 2^24 frames: TensorRT has no cumulative sum of integers.
        rank = torch.cumsum(speech.to(mel.dtype), dim=1).to(torch.int64)
        total = rank[:, -1:]

        # order[b, i] is the index of the i-th speech frame; pauses are all written to the spare last slot.
        frame = torch.arange(frames, device=mel.device).unsqueeze(0).expand(batch, frames)
        slot = torch.where(speech, rank - 1, torch.full_like(rank, 1) * frames)
        order = torch.zeros(batch, frames + 1, dtype=torch.int64, device=mel.device).scatter(1, slot, frame)

        count = frames // STEP_FRAMES + 1
        start = torch.arange(count, device=mel.device) * STEP_FRAMES
        offset = torch.arange(WINDOW_FRAMES, device=mel.device)
        position = (start.unsqueeze(1) + offset).reshape(1, count * WINDOW_FRAMES)
        selected = order.gather(1, torch.remainder(position, total))
        row = selected + torch.arange(batch, device=mel.device).unsqueeze(1) * frames
        windows = mel.reshape(batch * frames, _MEL_BANDS)[row].reshape(
            batch, count, WINDOW_FRAMES, _MEL_BANDS
        )

        used = torch.logical_or(total - start.unsqueeze(0) >= _MIN_COVERAGE_FRAMES, start.unsqueeze(0) == 0)
        return windows, used.to(mel.dtype)


def _unit_length(vectors: Tensor) -> Tensor:
    norm = torch.sqrt((vectors**2).sum(dim=-1, keepdim=True))
    return vectors / torch.clamp(norm, min=1e-12)


def _windowed_dft() -> Tensor:
    """Kernels [402, 1, 600] of a Hann-windowed DFT whose power equals the network's 400-point one."""
    sample = torch.arange(WINDOW_SAMPLES, dtype=torch.float64)
    window = torch.hann_window(WINDOW_SAMPLES, dtype=torch.float64)
    window = window * (_NETWORK_WINDOW_SAMPLES / WINDOW_SAMPLES)
    turns = torch.outer(torch.arange(_BINS, dtype=torch.float64), sample) / WINDOW_SAMPLES
    angle = 2.0 * math.pi * torch.remainder(turns, 1.0)
    kernels = torch.cat([torch.cos(angle) * window, -torch.sin(angle) * window])
    return kernels.unsqueeze(1).to(torch.float32)


def _mel_basis() -> Tensor:
    """Mel filters [201, 40] from 0 to 8 kHz as librosa makes them by default."""
    rate, window = _NETWORK_SAMPLE_RATE, _NETWORK_WINDOW_SAMPLES
    return mel_filterbank(_MEL_BANDS, 0.0, rate / 2, window, rate, htk=False, unit_area=True)


def _resemblyzer_weights() -> Path:
    """The weight file inside the installed package, found without importing it (it drags in webrtcvad)."""
    from importlib.util import find_spec

    spec = find_spec("resemblyzer")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "the package 'resemblyzer', which carries the speaker encoder's weights, is not installed: "
            "run  pip install 'autovoice[train]'"
        )
    path = Path(spec.origin).parent / "pretrained.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: reinstall the package 'resemblyzer'")
    return path
