"""Which file each source is written to, decided and checked before the first one is converted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from autovoice.errors import AudioFileError, OutputError, VoiceConversionError

# What a file of one of these suffixes is meant to be is clear; of others, the content tells.
AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".caf", ".au", ".w64", ".wma"}
)
STANDARD_INPUT = Path("-")
STANDARD_OUTPUTS = frozenset({"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})
Existing = Literal["refuse", "replace", "skip"]


@dataclass(frozen=True)
class FilePair:
    """One source file and the file its conversion is written to."""

    source: Path
    output: Path


@dataclass(frozen=True)
class Skipped:
    """What was found in a folder and is not converted, and why."""

    path: Path
    reason: str


@dataclass
class Found:
    """What is to be converted, and what is not.

    Attributes:
        pairs: in the order of the sources.
        skipped: in the order in which they were met.
    """

    pairs: list[FilePair] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def pair_files(
    sources: Sequence[Path],
    output: Path,
    audio_format: str | None,
    existing: Existing,
    protected: Sequence[Path] = (),
) -> Found:
    """Pair every source with its output.

    Args:
        sources: files, `-`, and folders that are searched recursively for audio, links included.
        output: a file or a device for a single source file, otherwise a folder; `-` for standard output.
        audio_format: suffix without its dot of files written into a folder; None for WAV.
        existing: what to do about outputs that are there already.
        protected: more files that must not be replaced.

    Raises:
        AudioFileError: a source does not exist, or a folder holds no audio.
        OutputError: two sources share an output, an output is a source or protected, or exists and must not
            be replaced.
    """
    from autovoice.audio.encoding import is_device

    single = len(sources) == 1 and not sources[0].is_dir()
    if str(output) in STANDARD_OUTPUTS or is_device(output):
        if not single:
            raise OutputError(f"{output} takes one recording, and there are more; give -o a folder")
        found = Found()
        (file, _), *_ = _files(sources[0], output, found)
        return Found([FilePair(file, output)])
    found = Found()
    files = [pair for source in sources for pair in _files(source, output, found)]
    into_folder = output.is_dir() or not output.suffix or not single
    if into_folder and output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file, but several sources need a folder; give -o a folder")
    if into_folder and not output.exists() and output.suffix.lower() in AUDIO_SUFFIXES:
        raise OutputError(f"-o {output} names one file, but several sources need a folder; give -o a folder")
    first: dict[Path, Path] = {}
    for file, relative in files:
        target = output / relative.with_suffix(f".{audio_format or 'wav'}") if into_folder else output
        resolved = file.resolve()
        if resolved in first:
            found.skipped.append(Skipped(file, f"the same file as {first[resolved]}"))
            continue
        first[resolved] = file
        found.pairs.append(FilePair(file, target))
    return _checked(found, existing, protected)


def require_writable(output: Path, overwrite: bool) -> None:
    """Refuse an output that could not be written, before the work that leads to it.

    Raises:
        OutputError: it is a folder, exists and must not be replaced, or its folder is missing or read-only.
    """
    from autovoice.audio.encoding import is_device

    if is_device(output):
        return
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give -o a file name")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists; choose another name or pass --overwrite")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output}: the folder {output.absolute().parent} does not exist; create it first")
    if not os.access(output.absolute().parent, os.W_OK):
        raise OutputError(f"{output}: no permission to write into {output.absolute().parent}")


def about(file: Path, error: VoiceConversionError) -> str:
    """The error's sentence, with the file it is about in front where it does not name it."""
    return str(error) if file.name in str(error) else f"{file}: {error}"


def _files(source: Path, exclude: Path, found: Found) -> Iterator[tuple[Path, Path]]:
    """Yield (file, path relative to where it was found) of one source argument; note what is left out."""
    if source == STANDARD_INPUT:
        yield source, Path("stdin")
        return
    if not source.is_dir():
        if not source.exists():
            raise AudioFileError(f"{source} does not exist; check the path")
        yield source, Path(source.name)
        return
    # Earlier results may lie below the source folder; converting them again is never meant.
    results = exclude.resolve() if exclude.resolve() != source.resolve() else None
    before, audio = len(found.skipped), False
    seen: set[Path] = set()

    def unreadable(error: OSError) -> None:
        found.skipped.append(Skipped(Path(error.filename), error.strerror or "it cannot be read"))

    for place, names, files in os.walk(source, followlinks=True, onerror=unreadable):
        folder = Path(place)
        seen.add(folder.resolve())
        for name in sorted(names):
            resolved = (folder / name).resolve()
            if resolved == results:
                found.skipped.append(Skipped(folder / name, "the folder of the results"))
            elif resolved in seen:
                found.skipped.append(Skipped(folder / name, f"the same folder as {resolved}"))
            else:
                seen.add(resolved)
                continue
            names.remove(name)
        names.sort()
        for name in sorted(files):
            file = folder / name
            reason = _why_not(file)
            if reason is None:
                audio = True
                yield file, file.relative_to(source)
            else:
                found.skipped.append(Skipped(file, reason))
    if not audio:
        left = found.skipped[before:]
        example = f", only such as {left[0].path.name} ({left[0].reason})" if left else ""
        raise AudioFileError(f"the folder {source} holds no audio files{example}; check the path")


def _why_not(file: Path) -> str | None:
    """Why a file that was found in a folder is not to be converted; None where it is."""
    from autovoice.audio.encoding import is_device
    from autovoice.audio.files import why_not_audio

    if file.name.startswith("."):
        return "hidden"
    if not file.exists():
        return "a link to nothing" if file.is_symlink() else "it is gone"
    if is_device(file):
        return "no file but a pipe or a device"
    return None if file.suffix.lower() in AUDIO_SUFFIXES else why_not_audio(file)


def _checked(found: Found, existing: Existing, protected: Sequence[Path]) -> Found:
    sources = {pair.source.resolve() for pair in found.pairs}
    kept = {path.resolve() for path in protected}
    writers: dict[Path, FilePair] = {}
    for pair in found.pairs:
        resolved = pair.output.resolve()
        if resolved in sources:
            raise OutputError(
                f"{pair.output} is also a source and would be replaced; write to another folder"
            )
        if resolved in kept:
            raise OutputError(f"{pair.output} is also the target and would be replaced; choose another name")
        if resolved in writers:
            raise OutputError(
                f"{writers[resolved].source} and {pair.source} would both be written to {pair.output}; "
                "rename one or convert them into separate folders"
            )
        writers[resolved] = pair
    present = [pair for pair in found.pairs if pair.output.exists()]
    if existing == "skip":
        skipped = [Skipped(pair.source, f"{pair.output} exists") for pair in present]
        return Found([pair for pair in found.pairs if pair not in present], [*found.skipped, *skipped])
    for pair in present:
        if pair.output.is_dir():
            raise OutputError(f"{pair.output} is a folder; give -o another name")
    if existing == "refuse" and present:
        more = f" and {len(present) - 1} more exist" if len(present) > 1 else " exists"
        raise OutputError(
            f"{present[0].output}{more}; pass --overwrite to replace or --skip-existing to keep"
        )
    return found
