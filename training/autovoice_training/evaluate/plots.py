"""Pictures of an evaluation."""

from __future__ import annotations

import io
from pathlib import Path

import librosa
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from autovoice.atomic import atomic_path
from autovoice_training.evaluate.audio import RATE, at_judge_rate
from autovoice_training.evaluate.judging import OWN, RESULT, SOURCE, SYSTEMS, TARGET, Renditions, Verdict
from autovoice_training.evaluate.pitch import FRAME_SECONDS, f0_track

F0_PLOT_MIN_HZ, F0_PLOT_MAX_HZ = 50, 600
RANGE_DB = 80

DPI = 80
PALETTE_COLORS = 48


def draw_pair(renditions: Renditions, verdict: Verdict, path: Path) -> None:
    """Draws the spectrograms of source, result and target up to 12 kHz, F0 over the result.

    Args:
        renditions: recordings of the pair.
        verdict: what the judges say about them.
        path: PNG to write.
    """
    drawn = [system for system in (SOURCE, RESULT, OWN, TARGET) if system in renditions.audio]
    longest = max(len(renditions.audio[system]) for system in drawn) / RATE
    figure = Figure(figsize=(11, 3 * len(drawn)), layout="constrained")
    for axis, system in zip(figure.subplots(len(drawn), 1, sharex=True), drawn, strict=True):
        audio = renditions.audio[system]
        power = np.abs(librosa.stft(audio, n_fft=1024, hop_length=RATE // 100)) ** 2
        axis.imshow(
            librosa.power_to_db(power, ref=np.max, top_db=RANGE_DB),
            origin="lower",
            aspect="auto",
            cmap="magma",
            extent=(0, len(audio) / RATE, 0, RATE / 2),
        )
        axis.set(ylim=(0, RATE / 2), xlim=(0, longest), ylabel="Hz")
        title = SYSTEMS[system]
        if system in (RESULT, OWN):
            melody = axis.twinx()
            for f0, color, line, label in (
                (f0_track(at_judge_rate(audio)), "cyan", "-", "F0 (right axis)"),
                (renditions.melody * 2.0 ** (verdict.shift_semitones / 12.0), "white", ":", "wanted"),
            ):
                times = np.arange(len(f0)) * FRAME_SECONDS
                melody.plot(times, np.where(f0 > 0, f0, np.nan), color, linestyle=line, label=label)
            melody.set(yscale="log", ylim=(F0_PLOT_MIN_HZ, F0_PLOT_MAX_HZ))
            melody.set_yticks([50, 100, 200, 400], labels=["50", "100", "200", "400"], minor=False)
            melody.minorticks_off()
            melody.legend(loc="upper right", fontsize="small", framealpha=0.5)
            scores = verdict.scores[system]
            title += (
                f": CAM++ to target {scores['spk_similarity']:.2f}, DistillMOS {scores['distill_mos']:.2f}"
            )
            if scores.get("words"):
                title += f", {scores['word_errors']:.0f} of {scores['words']:.0f} words wrong"
        axis.set_title(title, fontsize="medium")
    axis.set_xlabel("seconds")
    pair = verdict.pair
    figure.suptitle(f"{pair.source.name} to {pair.target.name}, {verdict.shift_semitones:+.1f} semitones")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI)
    # Results are committed: a palette makes spectrograms a quarter of the size and looks the same.
    with atomic_path(path) as temporary:
        Image.open(picture).convert("RGB").quantize(PALETTE_COLORS).save(
            temporary, format="png", optimize=True
        )
