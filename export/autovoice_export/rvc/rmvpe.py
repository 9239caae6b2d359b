"""RMVPE (Wei et al. 2023): 16 kHz audio to F0 at 100 Hz, with its mel front end and decoding in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autovoice_export.base.stages.blocks import mel_filterbank, real_dft
from autovoice_export.build_errors import ImportFailure
from autovoice_export.onnx.gru import BidirectionalGRU
from autovoice_export.rvc.geometry import FRAME, SOURCE_RATE
from autovoice_export.rvc.safe_loading import load_pickle, require_tensors

WHERE = "pass --rmvpe with RVC's rmvpe.pt (lj1995/VoiceConversionWebUI), or use --pitch yin"

_FFT = 1024
_MELS = 128
_LOW_HZ, _HIGH_HZ = 30.0, 8000.0
_FLOOR = 1e-5
_LEVELS = 5
_DEEPEST = 4
_PITCHES = 360
_CENTS_PER_PITCH = 20.0
_FIRST_CENTS = 1997.3794084376191
_BASE_HZ = 10.0
_NEIGHBOURS = 4
_VOICING_THRESHOLD = 0.03
_MULTIPLE = 1 << _LEVELS


@dataclass(frozen=True)
class SalienceSizes:
    """Sizes of the network; the defaults are those of the published file.

    Attributes:
        channels: at the highest resolution; every level below has twice as many.
        blocks: in a row at every resolution.
        hidden: states of the recurrence in each direction.
    """

    channels: int = 16
    blocks: int = 4
    hidden: int = 256

    @classmethod
    def of(cls, tensors: Mapping[str, Any]) -> SalienceSizes:
        """What a file's tensors say, as far as they do: `require_tensors` judges all of them."""
        published = cls()
        channels, hidden = (
            tensors[name].shape[axis] // share
            if isinstance(tensors.get(name), Tensor) and tensors[name].ndim > axis
            else default
            for name, axis, share, default in (
                ("cnn.weight", 1, 1, published.channels),
                ("fc.1.weight", 1, 2, published.hidden),
            )
        )
        blocks = sum(f"unet.encoder.layers.0.conv.{block}.conv.0.weight" in tensors for block in range(64))
        return cls(max(1, channels), blocks or published.blocks, max(1, hidden))


class MelSpectrogram(nn.Module):
    """Log-mel magnitudes of frames centred on every 160th sample, mirrored at both ends."""

    dft: Tensor
    filterbank: Tensor

    def __init__(self) -> None:
        super().__init__()
        dft = torch.hann_window(_FFT).unsqueeze(1) * real_dft(_FFT)
        # Frames are put together from hops; the last hop is not needed whole.
        self.hops = -(-_FFT // FRAME)
        self.register_buffer(
            "dft", functional.pad(dft, (0, 0, 0, self.hops * FRAME - _FFT)), persistent=False
        )
        bank = mel_filterbank(_MELS, _LOW_HZ, _HIGH_HZ, _FFT, SOURCE_RATE, unit_area=True)
        self.register_buffer("filterbank", bank, persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """Analyses [B, 320 G] to [B, 2 G + 1, 128]."""
        length = audio.shape[1]
        half = _FFT // 2
        # By index and not by a Pad node, which cannot mirror more than there is.
        place = torch.arange(-half, length + half, device=audio.device).abs()
        mirrored = audio[:, (length - 1 - (length - 1 - place).abs()).abs()]
        padded = functional.pad(mirrored, (0, self.hops * FRAME - _FFT))
        hops = padded.reshape(audio.shape[0], -1, FRAME)
        frames = length // FRAME + 1
        windows = torch.cat([hops[:, start : start + frames] for start in range(self.hops)], dim=2)
        real, imaginary = torch.matmul(windows, self.dft).chunk(2, dim=2)
        magnitude = torch.sqrt(real.square() + imaginary.square())
        return torch.log(torch.matmul(magnitude, self.filterbank).clamp(min=_FLOOR))


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions around a residual connection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Filters [B, C, F, M]."""
        around = x if self.shortcut is None else self.shortcut(x)
        result: Tensor = self.conv(x) + around
        return result


def _blocks(count: int, inputs: int, outputs: int) -> nn.ModuleList:
    return nn.ModuleList(ConvBlock(inputs if block == 0 else outputs, outputs) for block in range(count))


class Level(nn.Module):
    """Blocks at one resolution."""

    def __init__(self, blocks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = _blocks(blocks, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Filters [B, C, F, M]."""
        for block in self.conv:
            x = block(x)
        return x


class UpLevel(nn.Module):
    """Doubles the resolution and joins what the encoder had there."""

    def __init__(self, blocks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 3, 2, padding=1, output_padding=1, bias=False),
            nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip
        self.conv2 = _blocks(blocks, 2 * outputs, outputs)

    def forward(self, x: Tensor, skipped: Tensor) -> Tensor:
        """Filters [B, 2 C, F, M] and [B, C, 2 F, 2 M] to [B, C, 2 F, 2 M]."""
        x = torch.cat([self.conv1(x), skipped], dim=1)
        for block in self.conv2:
            x = block(x)
        return x


class UNetEncoder(nn.Module):
    """Levels of falling resolution."""

    def __init__(self, sizes: SalienceSizes) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(1)
        widths = [1, *(sizes.channels << level for level in range(_LEVELS))]
        self.layers = nn.ModuleList(Level(sizes.blocks, *pair) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns what is left at the lowest resolution and what every level had."""
        x, skipped = self.bn(x), []
        for layer in self.layers:
            skipped.append(layer(x))
            x = functional.avg_pool2d(skipped[-1], 2)
        return x, skipped


class Layers(nn.Module):
    """A list of layers under the name that checkpoints give it."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class UNet(nn.Module):
    """Residual U-Net over frames and mel bands."""

    def __init__(self, sizes: SalienceSizes) -> None:
        super().__init__()
        top, blocks = sizes.channels << _LEVELS, sizes.blocks
        self.encoder = UNetEncoder(sizes)
        self.intermediate = Layers(
            [Level(blocks, top // 2 if index == 0 else top, top) for index in range(_DEEPEST)]
        )
        self.decoder = Layers([UpLevel(blocks, top >> level, top >> (level + 1)) for level in range(_LEVELS)])

    def forward(self, x: Tensor) -> Tensor:
        """Filters [B, 1, F, 128] to [B, channels, F, 128]; F is a multiple of 32."""
        x, skipped = self.encoder(x)
        for layer in self.intermediate.layers:
            x = layer(x)
        for layer in self.decoder.layers:
            x = layer(x, skipped.pop())
        return x


class Recurrence(nn.Module):
    """The GRU under the name that checkpoints give it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gru = BidirectionalGRU(3 * _MELS, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Runs over [B, F, 384] and returns [B, F, 2 hidden]."""
        states: Tensor = self.gru(x)
        return states


class Salience(nn.Module):
    """The network: log-mel frames to the salience of 360 pitches, 20 cents apart."""

    def __init__(self, sizes: SalienceSizes) -> None:
        super().__init__()
        self.unet = UNet(sizes)
        self.cnn = nn.Conv2d(sizes.channels, 3, 3, padding=1)
        self.fc = nn.Sequential(
            Recurrence(sizes.hidden), nn.Linear(2 * sizes.hidden, _PITCHES), nn.Identity(), nn.Sigmoid()
        )

    def forward(self, mel: Tensor) -> Tensor:
        """Rates the pitches of [B, F, 128], F a multiple of 32; [B, F, 360] in [0, 1]."""
        x = self.cnn(self.unet(mel.unsqueeze(1))).transpose(1, 2)
        salience: Tensor = self.fc(x.reshape(x.shape[0], -1, 3 * _MELS))
        return salience


class Rmvpe(nn.Module):
    """F0 of audio by RMVPE, and the audio handed on.

    Args:
        sizes: of the network.
    """

    def __init__(self, sizes: SalienceSizes) -> None:
        super().__init__()
        self.mel = MelSpectrogram()
        self.salience = Salience(sizes)

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Measures a batch.

        Args:
            audio: AUDIO [B, 320 G], 16 kHz.

        Returns:
            F0 [B, 2 G] in Hz at every 160th sample, 0 = unvoiced, and PASSED_AUDIO, the same audio.
        """
        return decode(self.rate(audio)), audio.clone()

    def rate(self, audio: Tensor) -> Tensor:
        """Rates the pitches of AUDIO [B, 320 G]: their salience [B, 2 G, 360] in [0, 1]."""
        mel = self.mel(audio)
        frames = mel.shape[1]
        whole = (frames + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE
        salience: Tensor = self.salience(functional.pad(mel, (0, 0, 0, whole - frames)))
        return salience[:, : frames - 1]


def decode(salience: Tensor) -> Tensor:
    """F0 in Hz of saliences [B, F, 360]: the mean around the largest, 0 where even that is small."""
    best = salience.argmax(dim=2, keepdim=True)
    around = best + torch.arange(2 * _NEIGHBOURS + 1, device=salience.device)
    weights = torch.gather(functional.pad(salience, (_NEIGHBOURS, _NEIGHBOURS)), 2, around)
    cents = (around - _NEIGHBOURS).to(torch.float32) * _CENTS_PER_PITCH + _FIRST_CENTS
    mean = (weights * cents).sum(dim=2) / weights.sum(dim=2).clamp(min=_FLOOR)
    voiced = salience.amax(dim=2) > _VOICING_THRESHOLD
    return torch.where(voiced, _BASE_HZ * torch.exp2(mean / 1200.0), 0.0)


def load_rmvpe(path: Path) -> Rmvpe:
    """Reads weights in the published layout.

    Raises:
        ImportFailure: no such file, or not RMVPE.
    """
    content: dict[str, Any] = load_pickle(path, "RMVPE model")
    model = content.get("model", content)
    if not isinstance(model, dict):
        raise ImportFailure(f"{path} holds no weights: {WHERE}")
    counters = "num_batches_tracked"
    sizes = SalienceSizes.of(model)
    with torch.device("meta"):
        salience = Salience(sizes)
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in salience.state_dict().items()
        if not name.endswith(counters)
    }
    found = {name: tensor for name, tensor in model.items() if not str(name).endswith(counters)}
    tensors = require_tensors(found, wanted, path, "RMVPE model")
    with torch.device("cpu"):
        rmvpe = Rmvpe(sizes)
    rmvpe.salience.load_state_dict(tensors, strict=False)
    return rmvpe.eval().requires_grad_(False)
