"""Converts the sample beside this file into two voices: `make demo`, or python demo/demo.py [OUTPUT_FOLDER].

Writes a WAV for each target, and demo.png with waveform, spectrogram and F0 of the source, the results and
the references of the targets. Everything goes through the public API.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt

from autovoice import VoiceConversionError, VoiceConversionPipeline, read_audio, write_audio

FOLDER = Path(__file__).resolve().parent
SOURCE = FOLDER / "source_liam.flac"
TARGETS = {"river": FOLDER / "target_river.flac", "fable": FOLDER / "target_fable.flac"}
F0_LIMITS_HZ = (50.0, 400.0)
SPECTRUM_LIMIT_HZ = 12000.0


@dataclass(frozen=True)
class Recording:
    """One column of the picture.

    Attributes:
        title: shown above it.
        audio: mono, [T].
        sample_rate: Hz.
        f0: of the frame centred at (index + 0.5) * 10 ms, Hz, 0 where unvoiced, [F].
        expected_f0: the melody it should have, same unit and shape, where there is one.
    """

    title: str
    audio: npt.NDArray[np.float32]
    sample_rate: int
    f0: npt.NDArray[np.float32]
    expected_f0: npt.NDArray[np.float32] | None = None


def main(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    source, source_rate = read_audio(SOURCE)
    with VoiceConversionPipeline() as pipeline:
        start_seconds = pipeline.warmup()
        source_f0 = pipeline.extract_f0(source, source_rate)
        columns = [Recording("source: liam", source, source_rate, source_f0)]
        print(f"source {len(source) / source_rate:.2f} s, {pipeline.device}, ready in {start_seconds:.2f} s")
        for name, reference_file in TARGETS.items():
            reference, reference_rate = read_audio(reference_file)
            result = pipeline.convert_detailed(
                source,
                pipeline.embed(reference, reference_rate),
                source_sample_rate=source_rate,
                output_sample_rate=pipeline.sample_rate,
                pitch_shift_semitones="auto",
                target_median_f0=pipeline.median_f0(reference, reference_rate),
            )
            file = output / f"liam_as_{name}.wav"
            write_audio(file, result.audio, result.sample_rate)
            print(
                f"{file}: pitch {result.pitch_shift_semitones:+.1f} semitones, RTF {result.profile.rtf:.3f} "
                f"({result.profile.total_ms:.0f} ms)"
            )
            transposed = source_f0 * np.float32(2 ** (result.pitch_shift_semitones / 12))
            result_f0 = pipeline.extract_f0(result.audio, result.sample_rate)
            columns.append(
                Recording(f"liam as {name}", result.audio, result.sample_rate, result_f0, transposed)
            )
            reference_f0 = pipeline.extract_f0(reference, reference_rate)
            columns.append(Recording(f"reference: {name}", reference, reference_rate, reference_f0))
    picture = output / "demo.png"
    draw(columns, picture)
    print(f"{picture}: waveform, spectrogram and F0")


def draw(columns: list[Recording], file: Path) -> None:
    """Draw one column per recording: waveform, spectrogram, F0."""
    figure, axes = plt.subplots(
        3,
        len(columns),
        figsize=(4.2 * len(columns), 8),
        sharex="col",
        sharey="row",
        height_ratios=(1, 2, 2),
        layout="constrained",
    )
    for (top, middle, bottom), column in zip(axes.T, columns, strict=True):
        seconds = np.arange(len(column.audio)) / column.sample_rate
        top.plot(seconds, column.audio, linewidth=0.4, color="tab:blue")
        top.set(title=column.title, xlim=(0, len(column.audio) / column.sample_rate))
        draw_spectrogram(middle, column)
        times = (np.arange(len(column.f0)) + 0.5) * 0.01
        if column.expected_f0 is not None:
            bottom.plot(
                times[: len(column.expected_f0)],
                voiced(column.expected_f0)[: len(times)],
                color="tab:orange",
                linewidth=3,
                alpha=0.5,
                label="source's F0, shifted",
            )
            bottom.plot([], [], color="tab:blue", linewidth=1.2, label="F0 of the result")
            bottom.legend(loc="upper right", fontsize="small")
        bottom.plot(times, voiced(column.f0), color="tab:blue", linewidth=1.2)
        bottom.set(yscale="log", ylim=F0_LIMITS_HZ, xlabel="time (s)")
        bottom.set_yticks([60, 80, 100, 150, 200, 300], labels=["60", "80", "100", "150", "200", "300"])
        bottom.minorticks_off()
        bottom.grid(alpha=0.3)
    axes[0, 0].set(ylabel="amplitude", ylim=(-1, 1))
    axes[1, 0].set_ylabel("frequency (kHz)")
    axes[2, 0].set_ylabel("F0 (Hz)")
    figure.savefig(file, dpi=100)
    plt.close(figure)


def draw_spectrogram(axis: plt.Axes, column: Recording) -> None:
    """Draw 40 ms Hann frames every 10 ms, in dB below the loudest bin, 80 dB deep."""
    length, hop = column.sample_rate // 25, column.sample_rate // 100
    padded = np.pad(column.audio, length // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::hop] * np.hanning(length)
    magnitude = np.abs(np.fft.rfft(frames, axis=1)).T
    level = 20 * np.log10(np.maximum(magnitude / magnitude.max(), 1e-4))
    extent = (0, len(column.audio) / column.sample_rate, 0, column.sample_rate / 2000)
    axis.set_facecolor(plt.get_cmap("magma")(0.0))  # above the recording's own band there is nothing to show
    axis.imshow(level, origin="lower", aspect="auto", extent=extent, vmin=-80, vmax=0, cmap="magma")
    axis.set_ylim(0, SPECTRUM_LIMIT_HZ / 1000)


def voiced(f0: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """F0 with gaps where there is no voice."""
    return np.where(f0 > 0, f0, np.float32(np.nan))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo_output"))
    except VoiceConversionError as error:
        sys.exit(f"demo: {error}")
