"""Pictures of an evaluation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import librosa
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from autovoice.atomic import atomic_path
from autovoice_training.evaluate.dataset import JUDGE_RATE
from autovoice_training.evaluate.judging import RESULT, SOURCE, SYSTEMS, TARGET, WORLD, Renditions, Verdict
from autovoice_training.evaluate.pitch import FRAME_SECONDS, f0_track

SPECTRUM_MAX_HZ = 6000
F0_PLOT_MIN_HZ, F0_PLOT_MAX_HZ = 50, 600
RANGE_DB = 70

DPI = 80
PALETTE_COLORS = 64


def draw_pair(renditions: Renditions, verdict: Verdict, path: Path) -> None:
    """Draws the spectrograms of source, result and the target's own rendition with F0 over them.

    Args:
        renditions: recordings of the pair.
        verdict: what the judges say about them.
        path: PNG to write.
    """
    systems = [system for system in (SOURCE, RESULT, TARGET) if system in renditions.audio]
    longest = max(len(renditions.audio[system]) for system in systems) / JUDGE_RATE
    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots(len(systems), 1, sharex=True)
    for axis, system in zip(axes, systems, strict=True):
        audio = renditions.audio[system]
        power = np.abs(librosa.stft(audio, n_fft=512, hop_length=128)) ** 2
        axis.imshow(
            librosa.power_to_db(power, ref=np.max, top_db=RANGE_DB),
            origin="lower",
            aspect="auto",
            cmap="magma",
            extent=(0, len(audio) / JUDGE_RATE, 0, JUDGE_RATE / 2),
        )
        axis.set(ylim=(0, SPECTRUM_MAX_HZ), xlim=(0, longest), ylabel="Hz")
        melody = axis.twinx()
        f0 = f0_track(audio)
        times = np.arange(len(f0)) * FRAME_SECONDS
        melody.plot(times, np.where(f0 > 0, f0, np.nan), color="cyan", linewidth=1.5, label="F0 (right axis)")
        if system == RESULT:
            source_f0 = renditions.melody * 2.0 ** (verdict.shift_semitones / 12.0)
            times = np.arange(len(source_f0)) * FRAME_SECONDS
            wanted = np.where(source_f0 > 0, source_f0, np.nan)
            melody.plot(times, wanted, color="white", linestyle=":", label="transposed source")
        melody.set(yscale="log", ylim=(F0_PLOT_MIN_HZ, F0_PLOT_MAX_HZ))
        melody.set_yticks([50, 100, 200, 400], labels=["50", "100", "200", "400"], minor=False)
        melody.minorticks_off()
        melody.legend(loc="upper right", fontsize="small", framealpha=0.5)
        scores = verdict.scores[system]
        distortion = "" if scores.mcd is None else f", MCD to target {scores.mcd:.1f} dB"
        axis.set_title(
            f"{SYSTEMS[system]}: similarity to target {scores.similarity_target:.2f}, to source "
            f"{scores.similarity_source:.2f}{distortion}",
            fontsize="medium",
        )
    axes[-1].set_xlabel("seconds")
    pair = verdict.pair
    figure.suptitle(f"{pair.source} to {pair.target}, {verdict.shift_semitones:+.1f} semitones ({pair.cell})")
    _save(figure, path)


def draw_similarity(verdicts: Sequence[Verdict], path: Path) -> None:
    """Draws similarity to target over source for each pair, and of the results to every speaker.

    Args:
        verdicts: of all pairs.
        path: PNG to write.
    """
    figure = Figure(figsize=(14, 7), layout="constrained")
    axis, matrix = figure.subplots(1, 2)
    _draw_matrix(matrix, verdicts)
    looks = {
        SOURCE: ("tab:gray", "."),
        WORLD: ("tab:orange", "+"),
        RESULT: ("tab:blue", "o"),
        TARGET: ("tab:green", "x"),
    }
    for system, (color, marker) in looks.items():
        for seen in (True, False):
            judged = [verdict.scores for verdict in verdicts if verdict.pair.target_seen == seen]
            chosen = [scores[system] for scores in judged if system in scores]
            if not chosen:
                continue
            hollow = system == RESULT and not seen
            detail = f", {'seen' if seen else 'unseen'} target" if system == RESULT else ""
            axis.scatter(
                [scores.similarity_source for scores in chosen],
                [scores.similarity_target for scores in chosen],
                marker=marker,
                label=f"{SYSTEMS[system]}{detail}" if detail or seen else None,
                edgecolors=color if marker == "o" else None,
                c="none" if hollow else color,
            )
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
    axis.set(
        xlim=(0.2, 1.0),
        ylim=(0.2, 1.0),
        xlabel="similarity to source",
        ylabel="similarity to target",
        aspect="equal",
    )
    axis.set_title(f"Above the line: nearer to the target ({len(verdicts)} pairs)")
    axis.legend(loc="lower left")
    _save(figure, path)


def _draw_matrix(axis: Axes, verdicts: Sequence[Verdict]) -> None:
    """A row for each target, a column for each speaker: mean similarity of the results to the speaker."""
    targets = sorted({verdict.pair.target for verdict in verdicts})
    speakers = sorted({name for verdict in verdicts for name in verdict.scores[RESULT].similarities})
    found = np.full((len(targets), len(speakers)), np.nan)
    for row, target in enumerate(targets):
        asked = [one.scores[RESULT].similarities for one in verdicts if one.pair.target == target]
        for column, name in enumerate(speakers):
            values = [similarities[name] for similarities in asked if name in similarities]
            if values:
                found[row, column] = np.mean(values)
                axis.text(
                    column, row, f"{found[row, column]:.2f}", ha="center", va="center", fontsize="small"
                )
    axis.imshow(found, cmap="Greys", vmin=0.3, vmax=1.3, aspect="auto")
    axis.set_xticks(range(len(speakers)), speakers, rotation=45)
    axis.set_yticks(range(len(targets)), targets)
    axis.set(xlabel="similarity to", ylabel="converted to", title="Results: mean similarity to every speaker")


def _save(figure: Figure, path: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    # Results are committed: a palette makes spectrograms a quarter of the size and looks the same.
    with atomic_path(path) as temporary:
        Image.open(drawn).convert("RGB").quantize(PALETTE_COLORS).save(temporary, format="png", optimize=True)
