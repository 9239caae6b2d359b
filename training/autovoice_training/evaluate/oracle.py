"""Where a voice loses speech: ``python -m autovoice_training.evaluate.oracle``.

Every speaker is converted into its own voice, once as the network does it and once with filters and F0 that
WORLD (Morise et al. 2016: harvest, stonemask, CheapTrick, D4C) analyses from the recording at the times of
the network's frames; between the two, one factor at a time is taken from the other side or made coarser. All
variants go through the synthesizer's own `render`, so what the oracle loses is the ops' share.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyworld
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from scipy.fft import dct, idct
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from autovoice import VoiceConversionError
from autovoice.atomic import atomic_path
from autovoice_export.base.checkpoint import Checkpoint, load_checkpoint
from autovoice_export.base.stages.timing import LOOKAHEAD
from autovoice_export.base.wiring import stages
from autovoice_plugins.geometry import FLOOR, HOP
from autovoice_plugins.spectral_synth.reference import band_frequencies
from autovoice_training.evaluate.audio import RATE, Audio, at_judge_rate
from autovoice_training.evaluate.judges import Judges
from autovoice_training.evaluate.pairs import Pair, own_voices
from autovoice_training.evaluate.sets import DEVELOPMENT, open_folder, open_people
from autovoice_training.evaluate.summary import Figure, ratio_with_interval
from autovoice_training.evaluate.systems import world_shift

TIME_BLURS = (1, 2, 3)
BAND_BLURS = (1, 2, 4)
COSINES = (24, 40, 60)
_TINY_POWER = 1e-14
_FRAME_PERIOD_MS = 5.0

console = Console()

Frames = NDArray[np.float64]


@dataclass(frozen=True)
class Synthesis:
    """What the synthesis ops are given, by frame of 10 ms, the first two of them before the recording.

    Attributes:
        f0: Hz, 0 where unvoiced, [F].
        envelope: natural logarithm of the magnitude of harmonics and noise together, [F, 80].
        noise_share: of the power in voiced frames, in [0, 1], [F, 80].
    """

    f0: Frames
    envelope: Frames
    noise_share: Frames

    def filters(self) -> tuple[Frames, Frames]:
        """Log-magnitude filters [F, 80] of harmonics and noise; unvoiced frames are noise alone."""
        voiced = (self.f0 > 0)[:, None]
        share = np.where(voiced, self.noise_share, 1.0)
        harmonic, noise = (
            self.envelope + 0.5 * np.log(np.maximum(part, _TINY_POWER)) for part in (1.0 - share, share)
        )
        return np.maximum(np.where(voiced, harmonic, FLOOR), FLOOR), np.maximum(noise, FLOOR)


def analyse(audio: Audio, frames: int) -> Synthesis:
    """What WORLD finds in a recording [T] at RATE, at the times of the network's frames.

    Index j is centred on frame j - 2 of the recording, where the network has it.
    """
    samples = np.pad(audio, (0, frames * HOP - len(audio))).astype(np.float64)
    f0, times = pyworld.harvest(samples, RATE, frame_period=_FRAME_PERIOD_MS)
    f0 = pyworld.stonemask(samples, f0, times, RATE)
    power = pyworld.cheaptrick(samples, f0, times, RATE)
    aperiodicity = pyworld.d4c(samples, f0, times, RATE)
    centres = (np.arange(frames) * HOP + HOP - LOOKAHEAD) / RATE
    rows = np.clip(np.round(centres / (_FRAME_PERIOD_MS / 1000.0)).astype(np.int64), 0, len(f0) - 1)
    bins = np.linspace(0.0, RATE / 2, power.shape[1])

    def at_bands(values: Frames) -> Frames:
        return np.stack([np.interp(band_frequencies(), bins, row) for row in values[rows]])

    envelope = 0.5 * at_bands(np.log(np.maximum(power, _TINY_POWER)))
    return Synthesis(f0[rows], envelope, np.clip(at_bands(aperiodicity) ** 2, 0.0, 1.0))


class Network:
    """The stages of a checkpoint in PyTorch.

    Args:
        checkpoint: the voice.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        modules = {stage.name: stage.module for stage in stages(checkpoint)}
        self._pad = modules["pad_source"]
        self._voice_encoder = modules["speaker_encoder"]
        self._content_encoder = modules["content_encoder"]
        self._pitch_extractor = modules["pitch_extractor"]
        self._synthesizer = checkpoint.synthesizer

    @torch.inference_mode()
    def filters(self, audio: Audio, reference: Audio) -> Synthesis:
        """What the network makes of a recording [T] in the voice of a reference [T], both at RATE."""
        embedding = self._voice_encoder(torch.from_numpy(reference)[None])
        padded, *states = self._pad(torch.from_numpy(audio)[None])
        content, loudness, _ = self._content_encoder(padded, states[0])
        f0, periodicity, *_ = self._pitch_extractor(padded, states[1])
        given: dict[str, Tensor] = {}
        render = self._synthesizer.render

        def watched(f0: Tensor, harmonic: Tensor, noise: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
            given.update(f0=f0, harmonic=harmonic, noise=noise)
            return render(f0, harmonic, noise, past)

        self._synthesizer.render = watched  # type: ignore[method-assign]
        try:
            self._synthesizer(content, loudness, f0, periodicity, embedding, torch.zeros(1, 1), states[2])
        finally:
            del self._synthesizer.render
        pitch, harmonic, noise = (given[name][0].double().numpy() for name in ("f0", "harmonic", "noise"))
        power = np.exp(2.0 * harmonic), np.exp(2.0 * noise)
        total = power[0] + power[1]
        return Synthesis(pitch, 0.5 * np.log(total), power[1] / total)

    @torch.inference_mode()
    def render(self, synthesis: Synthesis, length: int) -> Audio:
        """Makes what the ops are given audible: samples [length] at RATE, in time with the source."""
        f0, harmonic, noise = (
            torch.from_numpy(values.astype(np.float32))[None]
            for values in (synthesis.f0, *synthesis.filters())
        )
        past = torch.zeros(1, self._synthesizer.filter_state)
        audio, _ = self._synthesizer.render(f0, harmonic, noise, past)
        rendered: Audio = audio[0, LOOKAHEAD : LOOKAHEAD + length].numpy()
        return rendered


def variants(oracle: Synthesis, network: Synthesis) -> Iterator[tuple[str, Synthesis]]:
    """Oracle and network, and what lies between them, one factor at a time."""
    heard, voiced = network.f0 > 0, oracle.f0 > 0
    pitch_only = np.where(voiced, np.where(heard, network.f0, oracle.f0), 0.0)
    voicing_only = np.where(heard, np.where(voiced, oracle.f0, network.f0), 0.0)
    yield "oracle", oracle
    yield "oracle, the network's F0 and voicing", replace(oracle, f0=network.f0)
    yield "oracle, the network's F0", replace(oracle, f0=pitch_only)
    yield "oracle, the network's voicing", replace(oracle, f0=voicing_only)
    yield "oracle, the network's noise share", replace(oracle, noise_share=network.noise_share)
    for sigma in TIME_BLURS:
        blurred = gaussian_filter1d(oracle.envelope, sigma, axis=0)
        yield f"oracle, blurred over time by {sigma} frames", replace(oracle, envelope=blurred)
    for sigma in BAND_BLURS:
        blurred = gaussian_filter1d(oracle.envelope, sigma, axis=1)
        yield f"oracle, blurred over {sigma} bands", replace(oracle, envelope=blurred)
    for kept in COSINES:
        cosines = dct(oracle.envelope, axis=1, norm="ortho")
        cosines[:, kept:] = 0.0
        coarse = idct(cosines, axis=1, norm="ortho")
        yield f"oracle, cut to {kept} cosines", replace(oracle, envelope=coarse)
    yield "network, the oracle's envelope", replace(network, envelope=oracle.envelope)
    yield "network, the oracle's noise share", replace(network, noise_share=oracle.noise_share)
    yield "network, the oracle's F0 and voicing", replace(network, f0=oracle.f0)
    louder = _loudness(oracle.envelope) - _loudness(network.envelope)
    yield "network, the oracle's loudness", replace(network, envelope=network.envelope + louder)
    yield "network", network


def _loudness(envelope: Frames) -> Frames:
    """Natural logarithm of the root mean square over bands, [F, 1]."""
    loudness: Frames = 0.5 * np.log(np.mean(np.exp(2.0 * envelope), axis=1, keepdims=True))
    return loudness


def measure(pairs: list[Pair], network: Network, judges: Judges) -> dict[str, dict[str, Figure]]:
    """DistillMOS, CAM++ to the source file and words wrong of every variant."""
    found: dict[str, list[tuple[float, float, int, int]]] = {}
    for pair in track(pairs, "speakers", console=console):
        source = pair.clip.load()
        made = network.filters(source, pair.reference())
        oracle = analyse(source, len(made.f0))
        audio = {"source": source, "copy-synthesis (WORLD)": world_shift(source, 0.0)}
        audio |= {name: network.render(one, len(source)) for name, one in variants(oracle, made)}
        heard = {name: at_judge_rate(samples) for name, samples in audio.items()}
        said = pair.clip.text or judges.transcribe(heard["source"])
        itself = judges.embed(heard["source"])
        for name, samples in heard.items():
            errors = judges.words.errors(judges.transcribe(samples), said)
            scores = (judges.distill_mos(samples), float(judges.embed(samples) @ itself), *errors)
            found.setdefault(name, []).append(scores)
    figures = {}
    for name, rows in found.items():
        mos, similarity, errors, words = zip(*rows, strict=True)
        ones = [1.0] * len(rows)
        figures[name] = {
            "distill_mos": ratio_with_interval(mos, ones),
            "spk_similarity_file": ratio_with_interval(similarity, ones),
            "whisper_wer": ratio_with_interval(errors, words),
        }
    return figures


def main(
    checkpoint: Annotated[Path, typer.Option(help="The voice.")] = Path(
        "training/checkpoints/base.safetensors"
    ),
    people: Annotated[
        Path, typer.Option(help="Recordings of readers in LibriSpeech's layout; the development readers.")
    ] = Path("data/librispeech"),
    folder: Annotated[
        Path | None, typer.Option(help="These recordings instead: a folder for each voice.")
    ] = None,
    speakers: Annotated[int, typer.Option(min=1, help="The first so many.")] = 10,
    out: Annotated[Path, typer.Option(help="Folder for the table, Markdown and JSON.")] = Path(
        "data/evaluate"
    ),
    cache: Annotated[Path, typer.Option(help="Folder for what the judges said.")] = Path(
        "data/cache/evaluate"
    ),
) -> None:
    """Measures what each factor of the synthesis costs, every speaker into its own voice."""
    try:
        chosen = open_folder(folder) if folder else open_people(people, DEVELOPMENT)
        network = Network(load_checkpoint(checkpoint))
    except (OSError, ValueError, RuntimeError, VoiceConversionError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    torch.set_num_threads(1)
    figures = measure(own_voices(chosen)[: len(chosen.speakers)][:speakers], network, Judges(cache))
    lines = [
        "# What each factor of the synthesis costs",
        "",
        f"{len(chosen.speakers[:speakers])} speakers ({chosen.name}) into their own voice; in brackets the "
        "95 % bootstrap interval over speakers. Oracle: WORLD's F0, envelope and aperiodicity through the "
        "synthesis ops.",
        "",
        "| variant | DistillMOS | CAM++ to the source file | words wrong, % |",
        "|---|---|---|---|",
    ]
    for name, one in figures.items():
        mos, similarity, words = one.values()
        lines.append(
            f"| {name} | {mos.value:.2f} ({mos.low:.2f} to {mos.high:.2f}) | {similarity.value:.3f} "
            f"({similarity.low:.3f} to {similarity.high:.3f}) | {100 * words.value:.1f} "
            f"({100 * words.low:.1f} to {100 * words.high:.1f}) |"
        )
    out.mkdir(parents=True, exist_ok=True)
    content = {name: {key: asdict(one) for key, one in row.items()} for name, row in figures.items()}
    for name, text in (
        ("oracle.md", "\n".join(lines) + "\n"),
        ("oracle.json", json.dumps(content, indent=1)),
    ):
        with atomic_path(out / name) as temporary:
            temporary.write_text(text)
    console.print("\n".join(lines[4:]), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
