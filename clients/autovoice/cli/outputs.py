"""Which file each source is written to, decided and checked before the first one is converted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autovoice.errors import AudioFileError, OutputError, VoiceConversionError

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"})
Existing = Literal["refuse", "replace", "skip"]


@dataclass(frozen=True)
class FilePair:
    """One source file and the file its conversion is written to."""

    source: Path
    output: Path


def pair_files(
    sources: Sequence[Path], output: Path, audio_format: str, existing: Existing
) -> list[FilePair]:
    """Pair every source with its output.

    Args:
        sources: files, and folders that are searched recursively for `AUDIO_SUFFIXES`.
        output: a file for a single source file (it has a suffix and is no folder), otherwise a folder.
        audio_format: suffix without its dot of files written into a folder.
        existing: what to do about outputs that are there already.

    Returns:
        The pairs in the order of the sources; those to skip are left out.

    Raises:
        AudioFileError: a source does not exist, or a folder holds no audio.
        OutputError: two sources share an output, an output is a source, or exists and must not be replaced.
    """
    found = [pair for source in sources for pair in _files(source, exclude=output)]
    into_folder = output.is_dir() or not output.suffix or len(sources) > 1 or sources[0].is_dir()
    if into_folder and output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file, but several sources need a folder; give -o a folder")
    if into_folder and not output.exists() and output.suffix.lower() in AUDIO_SUFFIXES:
        raise OutputError(f"-o {output} names one file, but several sources need a folder; give -o a folder")
    pairs: dict[Path, FilePair] = {}
    for file, relative in found:
        target = output / relative.with_suffix("." + audio_format) if into_folder else output
        pairs.setdefault(file.resolve(), FilePair(file, target))
    return _checked(list(pairs.values()), existing)


def require_writable(output: Path, overwrite: bool) -> None:
    """Refuse an output that could not be written, before the work that leads to it.

    Raises:
        OutputError: it is a folder, exists and must not be replaced, or its folder is missing or read-only.
    """
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


def _files(source: Path, exclude: Path) -> Iterable[tuple[Path, Path]]:
    """Yield (file, path relative to where it was found) of one source argument."""
    if not source.is_dir():
        if not source.exists():
            raise AudioFileError(f"{source} does not exist; check the path")
        yield source, Path(source.name)
        return
    # Earlier results may lie below the source folder; converting them again is never meant.
    skipped = exclude.resolve() if exclude.resolve() != source.resolve() else None
    found = False
    for folder, names, files in os.walk(source):
        names[:] = sorted(name for name in names if (Path(folder) / name).resolve() != skipped)
        for name in sorted(files):
            file = Path(folder) / name
            if file.suffix.lower() in AUDIO_SUFFIXES and not name.startswith("."):
                found = True
                yield file, file.relative_to(source)
    if not found:
        suffixes = ", ".join(sorted(suffix[1:] for suffix in AUDIO_SUFFIXES))
        raise AudioFileError(f"the folder {source} holds no audio files ({suffixes})")


def _checked(pairs: list[FilePair], existing: Existing) -> list[FilePair]:
    sources = {pair.source.resolve() for pair in pairs}
    writers: dict[Path, FilePair] = {}
    for pair in pairs:
        resolved = pair.output.resolve()
        if resolved in sources:
            raise OutputError(
                f"{pair.output} is also a source and would be replaced; write to another folder"
            )
        if resolved in writers:
            raise OutputError(
                f"{writers[resolved].source} and {pair.source} would both be written to {pair.output}; "
                "rename one or convert them into separate folders"
            )
        writers[resolved] = pair
    present = [pair for pair in pairs if pair.output.exists()]
    if existing == "skip":
        return [pair for pair in pairs if pair not in present]
    for pair in present:
        if pair.output.is_dir():
            raise OutputError(f"{pair.output} is a folder; give -o another name")
    if existing == "refuse" and present:
        more = f" and {len(present) - 1} more exist" if len(present) > 1 else " exists"
        raise OutputError(
            f"{present[0].output}{more}; pass --overwrite to replace or --skip-existing to keep"
        )
    return pairs
