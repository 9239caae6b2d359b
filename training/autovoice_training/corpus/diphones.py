"""What a diphone voice, most of them of other languages, is given to say an English sentence.

A voice of another language has no exact counterpart for some phones; :data:`TABLES` lists, best first,
what it says instead.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from autovoice_training.corpus.audio import FRAME_SECONDS
from autovoice_training.corpus.engines import Segments
from autovoice_training.corpus.phones import PHONES, code_of
from autovoice_training.corpus.voices import REFERENCE, VOICES, Voice

_FIRST_PAUSE, _LAST_PAUSE = 0.15, 0.20  # seconds


def _table(text: str) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Read ``phone=a b|c`` items: alternatives separated by ``|``, best first, each a sequence of phones."""
    items = (line.split("=") for line in text.split(";"))
    return {
        name.strip(): tuple(tuple(alternative.split()) for alternative in said.split("|"))
        for name, said in items
    }


_ENGLISH = {phone: ((phone,),) for phone in PHONES} | _table(
    "ax=ax|ah|ih; er=er|ax r|ah r; ng=ng|n g|n; hh=hh|f; y=y|iy; w=w|uw; zh=zh|z; ch=ch|t sh; jh=jh|d "
    "zh; uh=uh|uw"
)
_ITALIAN = _table(
    "pau=#; aa=a1|a; ae=E1|E|e1; ah=a|a1; ao=O1|O|o1; aw=a1 u|a u; ax=e|a|E; ay=a1 i|a i; b=b; ch=tS; "
    "d=d; dh=v|d; eh=E1|E|e1; er=e r|E r|E1 r; ey=e1 i|e i; f=f; g=g; hh=f|#; ih=i|i1; iy=i1|i; jh=dZ; "
    "k=k; l=l; m=m; n=n; ng=ng|n g|n; ow=o1 u|o u; oy=O1 i|O i; p=p; r=r; s=s; sh=S; t=t; th=f|s; "
    "uh=u|u1; uw=u1|u; v=v; w=w|u; y=j|i; z=z|dz; zh=Z|dZ|S"
)
_CZECH = _table(
    "pau=#; aa=a:|a; ae=e:|e|a; ah=a; ao=o:|o; aw=a u|a: u; ax=e|a; ay=a j|a: j|a i; b=b|p; ch=c~|dz~; "
    "d=d|t; dh=d|v|t; eh=e; er=e r|e: r; ey=e j|e: j|e i; f=f|v; g=g|k; hh=ch|h; ih=i; iy=i:|i|j; "
    "jh=dz~|c~|d z~; k=k|g; l=l; m=m; n=n; ng=n*|n g|n; ow=o u|o: u; oy=o j|o: j|o i; p=p|b; r=r; s=s|z; "
    "sh=s~|z~; t=t|d; th=f|s; uh=u; uw=u:|u; v=v|f; w=u|v; y=j|i; z=z|s; zh=z~|s~"
)
_FINNISH = _table(
    "pau=#; aa=a:|a; ae=@|@:|e; ah=a; ao=o:|o; aw=a u|a: u; ax=7|e|a; ay=a i|a: i; b=b|p; ch=t S|t s|t; "
    "d=d|t; dh=d|v; eh=e; er=7: r|7 r|7:|7; ey=e i|e: i; f=f|v; g=g|k; hh=h; ih=i; iy=i:|i; jh=d S|d s|d "
    "j|t s; k=k|k:; l=l|l:; m=m|m:; n=n|n:|N; ng=N|N:|n g|n; ow=o u|o: u; oy=o i|o: i; p=p|p:; r=r|r:; "
    "s=s|s:; sh=S|s; t=t|t:; th=T|f|t; uh=u; uw=u:|u; v=v|v:; w=w|v|u; y=j|i; z=s; zh=S|s"
)
TABLES: Mapping[str, Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "english": _ENGLISH,
    "italian": _ITALIAN,
    "czech": _CZECH,
    "finnish": _FINNISH,
}

_MISSING_COST = 10.0  # one absent diphone outweighs any preference among alternatives
_FIRST_SHARE = (
    0.55  # of a diphthong or affricate said as two phones, the part of its time the first one takes
)


def read_diphones(group_file: Path) -> frozenset[tuple[str, str]]:
    """Read the diphones a festival voice has from the text header of its ``.group`` file.

    Raises:
        ValueError: the file is not a grouped diphone index.
    """
    with group_file.open("rb") as file:
        head = file.read(1 << 18)
    count = re.search(rb"NumEntries (\d+)", head)
    if count is None or b"EST_Header_End\n" not in head:
        raise ValueError(
            f"{group_file} is not a grouped festival diphone file; reinstall the voice's package"
        )
    lines = head.split(b"EST_Header_End\n", 1)[1].split(b"\n")[: int(count[1])]
    names = (line.split()[0].decode("latin-1").rpartition("-") for line in lines)
    return frozenset((left, right) for left, _, right in names)


def say(
    phones: Sequence[str],
    table: Mapping[str, tuple[tuple[str, ...], ...]],
    diphones: frozenset[tuple[str, str]],
) -> tuple[list[tuple[str, ...]], int]:
    """Choose what a voice says for each phone so that the fewest diphones are missing.

    A Viterbi search over the alternatives of ``table``; among equals the earlier alternative wins.

    Returns:
        For every phone the sequence said in its place, and the number of diphones that remain missing.
    """

    def joins(sequence: Sequence[str]) -> float:
        pairs = itertools.pairwise(sequence)
        return _MISSING_COST * sum(pair not in diphones for pair in pairs)

    best: list[tuple[float, list[tuple[str, ...]]]] = [(0.0, [])]
    for phone in phones:
        nxt = []
        for rank, said in enumerate(table[phone]):
            own = rank + joins(said)
            cost, path = min(
                ((c + (joins((p[-1][-1], said[0])) if p else 0.0), p) for c, p in best),
                key=lambda item: item[0],
            )
            nxt.append((cost + own, [*path, said]))
        best = nxt
    cost, path = min(best, key=lambda item: item[0])
    flat = [phone for said in path for phone in said]
    return path, round(joins(flat) / _MISSING_COST)


def split_duration(duration: float, parts: int) -> list[float]:
    """Divide a phone's time among the phones said in its place; the sum is ``duration``."""
    if parts == 1:
        return [duration]
    first = duration * _FIRST_SHARE
    return [first] + [(duration - first) / (parts - 1)] * (parts - 1)


def common_timing(plan: Segments) -> tuple[Segments, int]:
    """Timing and pitch of a sentence for every voice that speaks it.

    Args:
        plan: what the reference voice would do.

    Returns:
        Segments with short pauses at both ends, whose last end is a whole number of frames, and that number.
    """
    ends = np.array(plan.ends)
    lengths = np.diff(ends, prepend=0.0)
    lengths[0], lengths[-1] = _FIRST_PAUSE, _LAST_PAUSE
    frames = int(np.ceil(lengths.sum() / FRAME_SECONDS - 1e-6))
    lengths[-1] += frames * FRAME_SECONDS - lengths.sum()
    new_ends = np.cumsum(lengths)
    times, f0 = np.array(plan.targets).T
    moved = np.interp(times, np.concatenate([[0.0], ends]), np.concatenate([[0.0], new_ends]))
    return Segments(plan.phones, tuple(new_ends), tuple(zip(moved, f0, strict=True))), frames


def in_voice(timing: Segments, voice: Voice, diphones: frozenset[tuple[str, str]]) -> Segments:
    """What a diphone voice is given to say.

    The times of ``timing`` are kept; a phone said as two shares its time among them; the pitch is moved to
    the voice's register.
    """
    names = [PHONES[code_of(phone)] for phone in timing.phones]
    said, _ = say(names, TABLES[voice.language], diphones)
    starts = (0.0, *timing.ends[:-1])
    flat: list[str] = []
    ends: list[float] = []
    for sequence, start, end in zip(said, starts, timing.ends, strict=True):
        flat += sequence
        ends += list(start + np.cumsum(split_duration(end - start, len(sequence))))
    scale = voice.f0_hz / VOICES[REFERENCE].f0_hz
    targets = tuple((time, f0 * scale) for time, f0 in timing.targets)
    return Segments(tuple(flat), (*ends[:-1], timing.ends[-1]), targets)
