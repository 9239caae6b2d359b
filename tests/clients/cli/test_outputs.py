"""Which file a source is written to, and what is refused before anything is converted."""

from __future__ import annotations

import os
import tempfile
import wave
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autovoice.cli.outputs import Existing, FilePair, Found, pair_files, require_writable
from autovoice.errors import AudioFileError, OutputError


def touch(*files: Path) -> None:
    """Make files that hold 10 ms of audio, whatever their names."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_wav(file)


def write_wav(file: Path) -> None:
    with wave.open(str(file), "wb") as audio:
        audio.setnchannels(1)
        audio.setsampwidth(2)
        audio.setframerate(16_000)
        audio.writeframes(bytes(320))


def paired(sources: list[Path], output: Path, audio_format: str, existing: Existing) -> list[FilePair]:
    return pair_files(sources, output, audio_format, existing).pairs


def reasons(found: Found) -> dict[str, str]:
    return {each.path.name: each.reason for each in found.skipped}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with audio on two levels, something else, and a hidden file."""
    root = tmp_path / "in"
    touch(
        root / "a.wav",
        root / "deep" / "b.FLAC",
        root / "deep" / "c.mp3",
        root / ".hidden.wav",
    )
    (root / "notes.txt").write_text("about the recordings")
    return root


def outputs(jobs: list, base: Path) -> dict[str, str]:
    return {job.source.name: str(job.output.relative_to(base)) for job in jobs}


def test_folder_keeps_its_structure_and_takes_audio_only(tree: Path, tmp_path: Path) -> None:
    jobs = paired([tree], tmp_path / "out", "flac", "refuse")
    assert outputs(jobs, tmp_path / "out") == {
        "a.wav": "a.flac",
        "b.FLAC": "deep/b.flac",
        "c.mp3": "deep/c.flac",
    }


def test_output_is_a_file_only_for_one_source_file(tree: Path, tmp_path: Path) -> None:
    one = tree / "a.wav"
    existing_folder = tmp_path / "looks.wav"
    existing_folder.mkdir()
    assert paired([one], tmp_path / "x.ogg", "wav", "refuse")[0].output == tmp_path / "x.ogg"
    assert paired([one], tmp_path / "folder", "wav", "refuse")[0].output == tmp_path / "folder/a.wav"
    assert paired([one], existing_folder, "wav", "refuse")[0].output == existing_folder / "a.wav"
    for sources in ([tree], [one, tree / "deep" / "c.mp3"]):
        with pytest.raises(OutputError, match="give -o a folder"):
            paired(sources, tmp_path / "x.wav", "wav", "refuse")


def test_existing_file_is_no_folder(tree: Path, tmp_path: Path) -> None:
    touch(tmp_path / "taken")
    with pytest.raises(OutputError, match="taken is a file"):
        paired([tree], tmp_path / "taken", "wav", "refuse")


def test_results_inside_the_source_folder_are_not_sources(tree: Path) -> None:
    touch(tree / "out" / "old.wav")
    assert {job.source.name for job in paired([tree], tree / "out", "wav", "refuse")} == {
        "a.wav",
        "b.FLAC",
        "c.mp3",
    }


def test_two_sources_never_share_an_output(tree: Path, tmp_path: Path) -> None:
    touch(tree / "a.flac")
    with pytest.raises(OutputError, match=r"a\.flac and .*a\.wav would both be written to .*a\.wav"):
        paired([tree], tmp_path / "out", "wav", "refuse")
    touch(tmp_path / "other" / "a.wav")
    with pytest.raises(OutputError, match="would both be written"):
        paired([tree / "a.wav", tmp_path / "other" / "a.wav"], tmp_path / "out", "wav", "replace")


def test_the_same_source_twice_is_one_job(tree: Path, tmp_path: Path) -> None:
    jobs = paired([tree / "a.wav", tree, tree / "deep" / ".." / "a.wav"], tmp_path / "out", "wav", "refuse")
    assert sorted(job.source.name for job in jobs) == ["a.wav", "b.FLAC", "c.mp3"]


def test_a_source_is_never_replaced(tree: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.wav"
    link.symlink_to(tree / "a.wav")
    for output in (tree / "a.wav", link):
        with pytest.raises(OutputError, match="also a source"):
            paired([tree / "a.wav"], output, "wav", "replace")


def test_existing_outputs_are_refused_replaced_or_skipped(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    touch(out / "a.wav", out / "deep" / "b.wav")
    with pytest.raises(OutputError, match=r"a\.wav and 1 more exist.*--overwrite.*--skip-existing"):
        paired([tree], out, "wav", "refuse")
    assert len(paired([tree], out, "wav", "replace")) == 3
    assert outputs(paired([tree], out, "wav", "skip"), out) == {"c.mp3": "deep/c.wav"}


def test_missing_sources_and_folders_without_audio_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioFileError, match=r"nowhere\.wav does not exist"):
        paired([tmp_path / "nowhere.wav"], tmp_path / "out", "wav", "refuse")
    with pytest.raises(AudioFileError, match="empty holds no audio files; check"):
        paired([tmp_path / "empty"], tmp_path / "out", "wav", "refuse")


def test_folder_loops_by_symlink_end(tree: Path, tmp_path: Path) -> None:
    (tree / "deep" / "loop").symlink_to(tree)
    assert len(paired([tree], tmp_path / "out", "wav", "refuse")) == 3


@given(
    names=st.lists(
        st.sampled_from(["a.wav", "a.flac", "b.wav", "d/a.wav", "d/b.mp3"]), min_size=1, unique=True
    )
)
def test_outputs_are_distinct_or_refused(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    root = tmp_path_factory.mktemp("tree")
    touch(*(root / name for name in names))
    stems = [str(Path(name).with_suffix("")) for name in names]
    if len(set(stems)) < len(stems):
        with pytest.raises(OutputError, match="would both be written"):
            paired([root], root / "out", "wav", "refuse")
    else:
        jobs = paired([root], root / "out", "wav", "refuse")
        assert sorted(str(job.output.relative_to(root / "out").with_suffix("")) for job in jobs) == sorted(
            stems
        )


def test_what_is_skipped_in_a_folder_is_named(tree: Path, tmp_path: Path) -> None:
    touch(tmp_path / "other" / "z.wav", tree / "speech")
    (tree / "deep" / "linked").symlink_to(tmp_path / "other")
    (tree / "deep" / "again").symlink_to(tmp_path / "other")
    (tree / "same.wav").symlink_to(tree / "a.wav")
    (tree / "dangling.wav").symlink_to(tree / "nowhere.wav")
    os.mkfifo(tree / "pipe.wav")
    found = pair_files([tree], tmp_path / "out", "wav", "refuse")
    assert [str(pair.output.relative_to(tmp_path / "out")) for pair in found.pairs] == [
        "a.wav",
        "speech.wav",
        "deep/b.wav",
        "deep/c.wav",
        "deep/again/z.wav",
    ]
    assert reasons(found) == {
        ".hidden.wav": "hidden",
        "dangling.wav": "a link to nothing",
        "notes.txt": "Invalid data found when processing input",
        "pipe.wav": "no file but a pipe or a device",
        "linked": f"the same folder as {tmp_path / 'other'}",
        "same.wav": f"the same file as {tree / 'a.wav'}",
    }


def test_a_folder_that_may_not_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as place:  # not below a folder that is for the owner only
        tree = Path(place, "in")
        touch(tree / "a.wav", tree / "deep" / "b.wav")
        (tree / "deep").chmod(0o700 if os.geteuid() == 0 else 0)
        Path(place).chmod(0o755)
        before = os.geteuid()
        try:
            if before == 0:  # whom no mode keeps out
                os.seteuid(65534)
            found = pair_files([tree], Path(place, "out"), "wav", "refuse")
        finally:
            os.seteuid(before)
            (tree / "deep").chmod(0o700)
    assert [pair.source.name for pair in found.pairs] == ["a.wav"]
    assert reasons(found) == {"deep": "Permission denied"}


def test_the_target_is_never_replaced(tree: Path, tmp_path: Path) -> None:
    voice = tree / "deep" / "c.mp3"
    with pytest.raises(OutputError, match="also the target"):
        pair_files([tree / "a.wav"], voice, None, "replace", [voice])
    assert len(pair_files([tree], tmp_path / "out", None, "replace", [voice]).pairs) == 3


def test_standard_streams_and_devices_take_one_recording(tree: Path, tmp_path: Path) -> None:
    for output in ("-", "/dev/stdout", "/dev/null"):
        (pair,) = pair_files([tree / "a.wav"], Path(output), None, "refuse").pairs
        assert pair == FilePair(tree / "a.wav", Path(output))
        with pytest.raises(OutputError, match="takes one recording"):
            pair_files([tree], Path(output), None, "refuse")
    (pair,) = pair_files([Path("-")], tmp_path / "out", "flac", "refuse").pairs
    assert pair == FilePair(Path("-"), tmp_path / "out" / "stdin.flac")


def test_single_outputs_are_checked_first(tmp_path: Path) -> None:
    touch(tmp_path / "there.npy")
    require_writable(tmp_path / "new.npy", overwrite=False)
    require_writable(tmp_path / "there.npy", overwrite=True)
    for path, reason in (
        (tmp_path, "is a folder"),
        (tmp_path / "there.npy", "pass --overwrite"),
        (tmp_path / "no" / "x.npy", "does not exist"),
    ):
        with pytest.raises(OutputError, match=reason):
            require_writable(path, overwrite=False)
