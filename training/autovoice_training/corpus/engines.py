"""Drive festival and flite: text or segments in, audio files and phone timings out."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_FESTIVAL_BATCH = 50  # utterances a process; festival keeps every utterance it made


class EngineError(RuntimeError):
    """A speech engine failed; the message holds the end of what it printed."""


@dataclass(frozen=True)
class Segments:
    """Phones of a sentence with their times and pitch.

    Attributes:
        phones: names, [S].
        ends: end of each in seconds, ascending, [S].
        targets: (time in seconds, F0 in Hz) points of the pitch contour, ascending.
    """

    phones: tuple[str, ...]
    ends: tuple[float, ...]
    targets: tuple[tuple[float, float], ...] = ()


def _run(command: Sequence[str], text: str | None = None) -> str:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, encoding="utf-8", errors="replace"
    )
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).strip()[-400:]
        raise EngineError(f"{command[0]} failed with exit status {done.returncode}: {tail}")
    return done.stdout


def _festival(script: str, scratch: Path, expected: Sequence[str] = ()) -> str:
    """Run a script; ``expected`` names the waveforms it must leave in ``scratch``."""
    path = scratch / "batch.scm"
    path.write_text(script, encoding="latin-1")
    printed = _run(["festival", "-b", str(path)])
    for name in expected:
        if not (scratch / f"{name}.wav").exists():
            raise EngineError(f"festival made no audio for sentence {name!r}: {printed.strip()[-400:]}")
    return printed


def _batches(items: Sequence[tuple[str, str]]) -> Iterator[Sequence[tuple[str, str]]]:
    for start in range(0, len(items), _FESTIVAL_BATCH):
        yield items[start : start + _FESTIVAL_BATCH]


_PRINT_SEGMENTS = """
(define (print_segments name utt)
  (format t "@@ %s\\n" name)
  (mapcar (lambda (s)
    (format t "%s %f" (item.name s) (item.feat s "segment_end"))
    (if (member 'Target (utt.relationnames utt))
      (mapcar (lambda (x) (format t " %f %f" (item.feat x "pos") (item.feat x "f0")))
              (item.relation.daughters s 'Target)))
    (format t "\\n"))
    (utt.relation.items utt 'Segment)))
"""
_PLAN_MODULES = (
    "Initialize Text Token_POS Token POS Phrasify Word Pauses Intonation PostLex Duration Int_Targets"
)


def _parse_segments(printed: str) -> dict[str, Segments]:
    out: dict[str, Segments] = {}
    for block in printed.split("@@ ")[1:]:
        name, *lines = block.strip().splitlines()
        rows = [line.split() for line in lines if re.match(r"^\S+ \d+\.\d+", line)]
        targets = [(float(t), float(f)) for row in rows for t, f in zip(row[2::2], row[3::2], strict=True)]
        out[name] = Segments(
            tuple(row[0] for row in rows), tuple(float(row[1]) for row in rows), tuple(sorted(set(targets)))
        )
    return out


def plan_texts(voice: str, texts: Sequence[tuple[str, str]], scratch: Path) -> dict[str, Segments]:
    """Let a festival voice decide phones, durations and pitch of (name, text) pairs, without audio."""
    plans: dict[str, Segments] = {}
    for batch in _batches(texts):
        lines = [_PRINT_SEGMENTS, f"(voice_{voice})"]
        for name, text in batch:
            steps = " ".join(f"({module} u)" for module in _PLAN_MODULES.split())
            lines.append(
                f'(set! u (eval (list \'Utterance \'Text "{text}"))) {steps} (print_segments "{name}" u)'
            )
        plans |= _parse_segments(_festival("\n".join(lines), scratch))
    return plans


def render_segments(voice: str, items: Sequence[tuple[str, Segments]], scratch: Path) -> None:
    """Speak given segments with a festival diphone voice into ``scratch/name.wav``."""
    scripts = []
    for name, segments in items:
        starts = (0.0, *segments.ends[:-1])
        points = np.array(segments.targets)
        listed = []
        for phone, start, end in zip(segments.phones, starts, segments.ends, strict=True):
            f0 = np.interp(start, points[:, 0], points[:, 1])
            listed.append(f'("{phone}" {end - start:.6f} (0.0 {f0:.2f}))')
        scripts.append(
            (
                name,
                f"(set! u (utt.synth (Utterance Segments ({' '.join(listed)}))))"
                f' (utt.save.wave u "{scratch / name}.wav" \'riff)',
            )
        )
    for batch in _batches(scripts):
        _festival(
            "\n".join([f"(voice_{voice})", *(script for _, script in batch)]),
            scratch,
            [name for name, _ in batch],
        )


def render_flite(voice: str, text: str, path: Path) -> None:
    """Speak a text with a flite voice into ``path``."""
    _run(["flite", "-voice", voice, "-t", text, "-o", str(path)])
