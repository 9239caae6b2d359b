"""Pictures of the server's benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from report import Report, skipped
from triton_workload import CHUNK_S

PERCENTILES = ("p50", "p95", "p99")
PARTS = {
    "queue": "waiting",
    "compute_input": "input",
    "compute_infer": "inference",
    "compute_output": "output",
}


def save_plots(report: Report, folder: Path) -> Path | None:
    """Draws what the report holds into `<benchmark>.png` beside its JSON; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        skipped(report.console, "plots", "matplotlib is not installed: pip install 'autovoice[demo]'")
        return None
    figure = Figure(figsize=(13, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    sections = {name: section.rows for name, section in report.sections.items()}
    _draw_load(axes[0][0], sections.get("load", ()))
    _draw_stages(axes[0][1], sections.get("load_stages", ()), "concurrency")
    _draw_live(axes[1][0], sections)
    _draw_stages(axes[1][1], sections.get("sequence_stages", ()), "concurrency")
    axes[0][1].set_title("time of an utterance in its stages")
    axes[1][1].set_title("time of a 20 ms chunk in its stages")
    figure.suptitle(
        f"Triton on {report.environment.usable_cores} cores: {report.environment.cpu}", fontsize=10
    )
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "-quick" if report.settings.get("quick") else ""
    file = folder / f"{report.benchmark}{suffix}.png"
    figure.savefig(file, dpi=110, metadata={"Software": None})
    return file


def _draw_load(axes: Any, rows: Any) -> None:
    for kind, style in (("concurrency", "-"), ("rate", "--")):
        chosen = [row for row in rows if row["load"] == kind]
        for number, name in enumerate(PERCENTILES):
            axes.plot(
                [row["audio_s_per_s"] for row in chosen],
                [row[f"{name}_ms"] for row in chosen],
                style,
                marker="o",
                color=f"C{number}",
                label=f"{name}, {'closed loop' if kind == 'concurrency' else 'open loop'}",
            )
        for row in chosen:
            position = (row["audio_s_per_s"], row["p99_ms"])
            axes.annotate(
                f"{row['value']:g}", position, xytext=(4, 4), textcoords="offset points", fontsize=8
            )
    axes.set_title("whole utterances over gRPC (numbers: requests under way, or a second)")
    axes.set_xlabel("seconds of audio converted a second")
    axes.set_ylabel("latency, ms")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if rows:
        axes.legend(fontsize=8)


def _draw_live(axes: Any, sections: Any) -> None:
    for section, style, where in (
        ("live", "-", "all cores"),
        ("live_one_core", "--", "one core for the server"),
    ):
        rows = sections.get(section, ())
        for number, name in enumerate(PERCENTILES):
            axes.plot(
                [row["streams"] for row in rows],
                [row[f"{name}_ms"] for row in rows],
                style,
                marker="o",
                color=f"C{number}",
                label=f"{name}, {where}",
            )
    axes.axhline(CHUNK_S * 1e3, color="black", linewidth=0.8)
    axes.set_ylim(0, 3 * CHUNK_S * 1e3)
    axes.set_title("live streams in 20 ms chunks, at the pace of real time")
    axes.set_xlabel("streams at once")
    axes.set_ylabel("latency, ms")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_stages(axes: Any, rows: Any, kind: str) -> None:
    """One bar for each load: its stages stacked, waiting apart from work."""
    chosen = [row for row in rows if row["load"].startswith(kind)]
    loads = list(dict.fromkeys(row["load"] for row in chosen))
    models = list(dict.fromkeys(row["model"] for row in chosen if row["batch"] is not None))
    bottoms = dict.fromkeys(loads, 0.0)
    for number, model in enumerate(models):
        for waiting in (True, False):
            heights = []
            for load in loads:
                row = next(row for row in chosen if (row["load"], row["model"]) == (load, model))
                work = sum(row[f"{part}_ms"] for part in PARTS if part != "queue")
                heights.append(row["queue_ms"] if waiting else work)
            axes.bar(
                [load.split()[1] for load in loads],
                heights,
                bottom=[bottoms[load] for load in loads],
                color=f"C{number}",
                alpha=0.4 if waiting else 1.0,
                hatch="//" if waiting else None,
                label=None if waiting else model,
            )
            for load, height in zip(loads, heights, strict=True):
                bottoms[load] += height
    totals = [
        next(row["total_ms"] for row in chosen if row["load"] == load and row["batch"] is None)
        for load in loads
    ]
    axes.plot([load.split()[1] for load in loads], totals, "k_", markersize=24, label="whole ensemble")
    axes.set_xlabel("requests under way (hatched: waiting)")
    axes.set_ylabel("ms, average")
    if chosen:
        axes.legend(fontsize=8)
