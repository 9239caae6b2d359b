"""Files written whole: their names, modes and links, and what stays after an error."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from autovoice.atomic import atomic_path
from autovoice.errors import OutputError


def write(path: Path, text: str = "new") -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_half(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError


@pytest.mark.parametrize("length", [1, 240, 255])
def test_every_name_that_fits_can_be_written(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("n" * length)
    write(path)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o000])
def test_the_mode_of_a_new_file_is_that_of_a_plain_open(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "new")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    write(path)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o640)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(Path("real", "file"))
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "new"


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write(pipe)
    reader.join(60)
    assert read == ["new"]
    assert pipe.is_fifo()


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_disk_refuses_at_the_end_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match="cannot be written \\(No space left on device\\)"):
        write(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_the_file_and_its_folder_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write(tmp_path / "file")
    file, folder = synced
    assert Path(file).parent == tmp_path
    assert Path(folder) == tmp_path


def test_a_file_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write_late() -> None:
        with atomic_path(path, overwrite=False) as temporary:
            temporary.write_text("late")
            path.write_text("early")

    with pytest.raises(OutputError, match="exists and was left as it is"):
        write_late()
    with pytest.raises(OutputError, match="exists and was left as it is"), atomic_path(path, overwrite=False):
        pass
    assert path.read_text() == "early"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_path(tmp_path / "other", overwrite=False) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "other").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_appeared_meanwhile_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_a_file_that_appeared_meanwhile_is_not_replaced(tmp_path)


def test_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a directory"):
        write(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "missing" / "file")
    with pytest.raises(OutputError, match="File name too long"):
        write(tmp_path / ("n" * 256))
    assert list(tmp_path.iterdir()) == []


def test_a_signal_right_behind_the_making_of_the_file_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch = Path.touch

    def ended(path: Path, **options: bool) -> None:
        touch(path, **options)
        raise SystemExit(143)  # what the command's handler of SIGTERM raises, wherever the program is

    monkeypatch.setattr(Path, "touch", ended)
    with pytest.raises(SystemExit):
        write(tmp_path / "x.wav")
    assert list(tmp_path.iterdir()) == []
