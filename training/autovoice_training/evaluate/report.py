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
from autovoice_training.evaluate.floor import NOT_MEASURED, FloorLine
from autovoice_training.evaluate.judging import JUDGE_PACKAGES, SYSTEMS, UNDERSTOOD_WER, Verdict
from autovoice_training.evaluate.summary import MEASURES, Summary

RUNTIME_PACKAGES = ("autovoice", "numpy", "onnxruntime", "torch")

TITLES = {
    "similarity_target": "similarity to target",
    "similarity_source": "similarity to source",
    "nearer_target": "nearer to target, %",
    "identified": "rank-1 identification, %",
    "mcd": "MCD to target's rendition, dB",
    "f0_correlation": "log-F0 correlation",
    "gross_error": "gross pitch error, %",
    "voicing_error": "voicing error, %",
    "f0_roughness": "F0 roughness, cents",
    "cepstral_delta": "cepstral delta, dB",
    "modulation": "modulation, dB",
    "high_band": "power above 4 kHz, dB",
    "click": "click",
    "offset": "offset, dBFS",
    "peak": "peak, dBFS",
}
PERCENTAGES = {"nearer_target", "identified", "gross_error", "voicing_error"}

NOTES = f"""\
Each figure is the mean over the pairs, in brackets its 95 % bootstrap interval. Word error rate is errors
over words, on the pairs whose own speaker the recogniser understands (at most {UNDERSTOOD_WER:.0%} errors
unconverted): source, WORLD and AutoVoice on such sources, copy-synthesis and target on such targets.

- Similarity: cosine of resemblyzer embeddings with the mean embedding of other sentences of the speaker. The
  speaker encoder of the base voice is an export of the same network, so this judge is not blind to it.
- MCD: Kubichek 1993, 10 / ln 10 * sqrt(2 * sum of squared differences) over mel-cepstra 1 to 24 at 16 kHz
  along the DTW path, silence left out, the envelope held above 7 kHz.
- F0: swift-f0, against the transposed source; copy-synthesis against the target's own rendition. Gross
  errors are more than 20 % off.
- EER: equal error rate of telling by its similarity whether a result has the voice of its target or of
  another speaker of the set.
- F0 roughness to peak: proxies of naturalness, described in `naturalness.py`; those of natural voices stand
  under source and target.
- Words: pocketsphinx with the model of its wheel.
- The reference is made of other sentences than the converted one; the shift matches the medians of source
  and reference.
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
            **{package: version(package) for package in (*RUNTIME_PACKAGES, *JUDGE_PACKAGES)},
        },
        "repository_sha256": _fingerprint(repository) if repository else None,
    }


def write_json(
    path: Path,
    facts: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    summaries: Mapping[str, Summary],
    floor: Sequence[FloorLine],
    natural: Mapping[str, tuple[float, float]],
) -> None:
    """Writes everything that was measured.

    Args:
        path: file to write.
        facts: environment and settings of the run.
        verdicts: of all pairs.
        summaries: by condition.
        floor: requirements and what was measured.
        natural: range of the naturalness proxies over natural voices.
    """
    content = {
        **facts,
        "number_of_conversions": len(verdicts),
        "natural": natural,
        "floor": [asdict(line) for line in floor],
        "summaries": {condition: asdict(summary) for condition, summary in summaries.items()},
    }
    # A line for each conversion, not for each of its hundred figures.
    lines = ",\n".join(json.dumps(_rounded(verdict.to_dict())) for verdict in verdicts)
    head = json.dumps(_rounded(content), indent=1).removesuffix("\n}")
    _write(path, f'{head},\n "conversions": [\n{lines}\n ]\n}}\n')


def write_markdown(
    path: Path,
    facts: Mapping[str, Any],
    summaries: Mapping[str, Summary],
    floor: Sequence[FloorLine],
    pictures: Sequence[str],
) -> None:
    """Writes the tables.

    Args:
        path: file to write.
        facts: environment and settings of the run.
        summaries: by condition.
        floor: requirements and what was measured.
        pictures: file names of the drawings beside it.
    """
    everything = summaries["all"]
    hardware = facts["hardware"]
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    lines = [
        "# Evaluation",
        "",
        f"{everything.pairs} conversions of sentences never trained on. `{facts['command']}` on "
        f"{hardware['processor']}, {hardware['cores']} cores; {versions}.",
        "",
        "## Floor",
        "",
        "| requirement | measured | |",
        "|---|---|---|",
        *(
            f"| {line.requirement} | {line.measured} | {'pass' if line.passed else 'FAIL'} |"
            for line in floor
        ),
        "",
        NOTES,
    ]
    for summary in summaries.values():
        lines += ["", f"## {_capitalised(summary.condition)} ({summary.pairs} pairs)", "", *_table(summary)]
    lines += ["", "## Pictures", "", *(f"![{Path(name).stem}]({name})" for name in pictures), ""]
    _write(path, "\n".join(lines))


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def _table(summary: Summary) -> list[str]:
    lines = [
        f"| | {' | '.join(SYSTEMS.values())} |",
        "|---" * (len(SYSTEMS) + 1) + "|",
    ]
    for measure in MEASURES:
        lines.append(f"| {TITLES[measure]} | {' | '.join(_cells(summary, measure))} |")
        if measure == "identified":
            equal = summary.equal_error_rates
            cells = [f"{100 * equal[one]:.1f}" if one in equal else NOT_MEASURED for one in SYSTEMS]
            lines.append(f"| EER, % | {' | '.join(cells)} |")
    cells = []
    for system in SYSTEMS:
        rate = summary.word_error_rates.get(system)
        cells.append(f"{100 * rate.value:.1f} (n = {rate.pairs})" if rate else NOT_MEASURED)
    return [*lines, f"| word error rate, % | {' | '.join(cells)} |"]


def _cells(summary: Summary, measure: str) -> list[str]:
    """The figure of every system with its interval."""
    cells = []
    for system in SYSTEMS:
        figure = summary.figures[system].get(measure)
        if figure is None:
            cells.append(NOT_MEASURED)
            continue
        scale, digits = (100.0, 0) if measure in PERCENTAGES else (1.0, 2)
        if measure == "f0_correlation":
            digits = 3
        interval = f"{scale * figure.low:.{digits}f} to {scale * figure.high:.{digits}f}"
        cells.append(f"{scale * figure.value:.{digits + (scale > 1)}f} ({interval})")
    return cells


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
