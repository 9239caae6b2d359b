"""The written results: JSON with everything, Markdown with the tables."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autovoice.atomic import atomic_path
from autovoice_training.evaluate.floor import NOT_MEASURED, FloorLine, with_interval
from autovoice_training.evaluate.judges import PACKAGES
from autovoice_training.evaluate.judging import Verdict
from autovoice_training.evaluate.summary import MEASURES, ROWS, Summary

RUNTIME_PACKAGES = ("autovoice", "numpy", "onnxruntime", "torch")

TABLES = (
    (
        "spk_nearer_target",
        "spk_similarity",
        "spk_similarity_source",
        "spk_similarity_file",
        "whisper_wer",
        "distill_mos",
        "dns_overall",
    ),
    (
        "ge2e_nearer_target",
        "ge2e_similarity",
        "ge2e_similarity_source",
        "dns_sig",
        "dns_bak",
        "dns_p808",
    ),
    (
        "f0_corr",
        "gross_error",
        "voicing_error",
        "high_band",
        "high_band_difference",
        "line",
        "click",
        "offset",
        "peak",
    ),
)
"""The measures of each table of a set."""

NOTES = """\
Each figure is the mean over the pairs, words wrong are errors over words; in brackets the 95 % bootstrap
interval over pairs.

- CAM++, Whisper, DistillMOS and DNSMOS are in no loss of the training and choose none of its data. GE2E is
  in the loss, so it tells less than it seems to.
- Similarity: cosine with the mean embedding of recordings of the speaker that the conversion never heard; to
  the source file: with the converted recording itself.
- Words: Whisper's reading against the text; where no text is known, against its own reading of the source,
  which then has no errors by definition. Texts are normalised as Whisper's authors do.
- The reference is never the converted recording, except for speakers of one recording into their own voice;
  these are measured once more with what the judges know them by as the reference.
- The shift matches the medians of source and reference; into its own voice nothing is shifted.
- WORLD shift moves pitch by the same and formants by its usual share; copy-synthesis is WORLD's analysis of
  the source made audible again. Target is the target's own recording.
- F0: swift-f0, against the transposed source. Gross errors are more than 20 % off.
- Strongest line: what stands out, bright or dark, at one fixed frequency from 1.5 to 11 kHz over a whole
  recording.
"""


def environment(repository: Path | None) -> dict[str, Any]:
    """Where and with what the figures were measured.

    Args:
        repository: model repository under test, named by the hash of its files; None where there is none.
    """
    return {
        "command": shlex.join(["python", "-m", "autovoice_training.evaluate", *sys.argv[1:]]),
        "hardware": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in (*RUNTIME_PACKAGES, *PACKAGES)},
        },
        "repository_sha256": _fingerprint(repository) if repository else None,
    }


def write_json(
    path: Path,
    facts: Mapping[str, Any],
    groups: Sequence[str],
    verdicts: Sequence[Verdict],
    summaries: Mapping[str, Summary],
    floors: Sequence[FloorLine],
) -> None:
    """Writes everything that was measured.

    Args:
        path: file to write.
        facts: environment and settings of the run.
        groups: the set of each verdict.
        verdicts: of all pairs.
        summaries: by set.
        floors: requirements and what was measured.
    """
    content = {
        **facts,
        "number_of_conversions": len(verdicts),
        "floors": [asdict(line) for line in floors],
        "summaries": {
            group: {
                row: {name: asdict(one) for name, one in figures.items()} for row, figures in rows.items()
            }
            for group, rows in summaries.items()
        },
    }
    # A line for each conversion, not for each of its hundred figures.
    lines = ",\n".join(
        json.dumps(_rounded({"set": group, **verdict.to_dict()}))
        for group, verdict in zip(groups, verdicts, strict=True)
    )
    head = json.dumps(_rounded(content), indent=1).removesuffix("\n}")
    _write(path, f'{head},\n "conversions": [\n{lines}\n ]\n}}\n')


def write_markdown(
    path: Path,
    facts: Mapping[str, Any],
    summaries: Mapping[str, Summary],
    floors: Sequence[FloorLine],
    pictures: Sequence[str],
    skipped: Sequence[str],
) -> None:
    """Writes the tables.

    Args:
        path: file to write.
        facts: environment and settings of the run.
        summaries: by set.
        floors: requirements and what was measured.
        pictures: file names of the drawings beside it.
        skipped: sets that were not measured, and why.
    """
    hardware = facts["hardware"]
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    lines = [
        "# Evaluation",
        "",
        f"Speakers that training never heard. `{facts['command']}` on {hardware['processor']}, "
        f"{hardware['cores']} cores; {versions}.",
        *(f"\nNot measured: {reason}." for reason in skipped),
    ]
    if floors:
        lines += ["", "## Floors", "", "| requirement | measured | | aim |", "|---|---|---|---|"]
        lines += [
            f"| {line.requirement} | {line.measured} | {'pass' if line.passed else 'FAIL'} | {line.aim} |"
            for line in floors
        ]
    lines += ["", NOTES]
    for group, summary in summaries.items():
        lines += [f"## {group[0].upper()}{group[1:]}", ""]
        for names in TABLES:
            lines += [*table(summary, names), ""]
    if pictures:
        lines += ["## Pictures", "", "Source, result and target up to 12 kHz.", ""]
        lines += [f"![{Path(name).stem}]({name})" for name in pictures]
    _write(path, "\n".join(lines).rstrip() + "\n")


def table(summary: Summary, names: Sequence[str]) -> list[str]:
    """A row for each system, a column for each measure that some system has."""
    rows = {row: figures for row, figures in summary.items() if any(name in figures for name in names)}
    names = [name for name in names if any(name in figures for figures in rows.values())]
    lines = [
        f"| | pairs | {' | '.join(MEASURES[name].title for name in names)} |",
        "|---" * (len(names) + 2) + "|",
    ]
    for row, figures in rows.items():
        pairs = max(figure.pairs for figure in figures.values())
        cells = []
        for name in names:
            figure = figures.get(name)
            if figure is None:
                cells.append(NOT_MEASURED)
                continue
            fewer = f", {figure.pairs} pairs" if figure.pairs < pairs else ""
            cells.append(with_interval(figure, MEASURES[name]) + fewer)
        lines.append(f"| {ROWS[row][0]} | {pairs} | {' | '.join(cells)} |")
    return lines


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _fingerprint(repository: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for file in repository.rglob("*") if file.suffix in (".onnx", ".pbtxt")):
        digest.update(str(file.relative_to(repository)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)
