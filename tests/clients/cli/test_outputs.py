"""Which file a source is written to, and what is refused before anything is converted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autovoice.cli.outputs import pair_files, require_writable
from autovoice.errors import AudioFileError, OutputError


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with audio on two levels, something else, and a hidden file."""
    root = tmp_path / "in"
    touch(
        root / "a.wav",
        root / "deep" / "b.FLAC",
        root / "deep" / "c.mp3",
        root / "notes.txt",
        root / ".hidden.wav",
    )
    return root


def outputs(jobs: list, base: Path) -> dict[str, str]:
    return {job.source.name: str(job.output.relative_to(base)) for job in jobs}


def test_folder_keeps_its_structure_and_takes_audio_only(tree: Path, tmp_path: Path) -> None:
    jobs = pair_files([tree], tmp_path / "out", "flac", "refuse")
    assert outputs(jobs, tmp_path / "out") == {
        "a.wav": "a.flac",
        "b.FLAC": "deep/b.flac",
        "c.mp3": "deep/c.flac",
    }


def test_output_is_a_file_only_for_one_source_file(tree: Path, tmp_path: Path) -> None:
    one = tree / "a.wav"
    existing_folder = tmp_path / "looks.wav"
    existing_folder.mkdir()
    assert pair_files([one], tmp_path / "x.ogg", "wav", "refuse")[0].output == tmp_path / "x.ogg"
    assert pair_files([one], tmp_path / "folder", "wav", "refuse")[0].output == tmp_path / "folder/a.wav"
    assert pair_files([one], existing_folder, "wav", "refuse")[0].output == existing_folder / "a.wav"
    for sources in ([tree], [one, tree / "deep" / "c.mp3"]):
        with pytest.raises(OutputError, match="give -o a folder"):
            pair_files(sources, tmp_path / "x.wav", "wav", "refuse")


def test_existing_file_is_no_folder(tree: Path, tmp_path: Path) -> None:
    touch(tmp_path / "taken")
    with pytest.raises(OutputError, match="taken is a file"):
        pair_files([tree], tmp_path / "taken", "wav", "refuse")


def test_results_inside_the_source_folder_are_not_sources(tree: Path) -> None:
    touch(tree / "out" / "old.wav")
    assert {job.source.name for job in pair_files([tree], tree / "out", "wav", "refuse")} == {
        "a.wav",
        "b.FLAC",
        "c.mp3",
    }


def test_two_sources_never_share_an_output(tree: Path, tmp_path: Path) -> None:
    touch(tree / "a.flac")
    with pytest.raises(OutputError, match=r"a\.flac and .*a\.wav would both be written to .*a\.wav"):
        pair_files([tree], tmp_path / "out", "wav", "refuse")
    touch(tmp_path / "other" / "a.wav")
    with pytest.raises(OutputError, match="would both be written"):
        pair_files([tree / "a.wav", tmp_path / "other" / "a.wav"], tmp_path / "out", "wav", "replace")


def test_the_same_source_twice_is_one_job(tree: Path, tmp_path: Path) -> None:
    jobs = pair_files(
        [tree / "a.wav", tree, tree / "deep" / ".." / "a.wav"], tmp_path / "out", "wav", "refuse"
    )
    assert sorted(job.source.name for job in jobs) == ["a.wav", "b.FLAC", "c.mp3"]


def test_a_source_is_never_replaced(tree: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.wav"
    link.symlink_to(tree / "a.wav")
    for output in (tree / "a.wav", link):
        with pytest.raises(OutputError, match="also a source"):
            pair_files([tree / "a.wav"], output, "wav", "replace")


def test_existing_outputs_are_refused_replaced_or_skipped(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    touch(out / "a.wav", out / "deep" / "b.wav")
    with pytest.raises(OutputError, match=r"a\.wav and 1 more exist.*--overwrite.*--skip-existing"):
        pair_files([tree], out, "wav", "refuse")
    assert len(pair_files([tree], out, "wav", "replace")) == 3
    assert outputs(pair_files([tree], out, "wav", "skip"), out) == {"c.mp3": "deep/c.wav"}


def test_missing_sources_and_folders_without_audio_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioFileError, match=r"nowhere\.wav does not exist"):
        pair_files([tmp_path / "nowhere.wav"], tmp_path / "out", "wav", "refuse")
    with pytest.raises(AudioFileError, match=r"empty holds no audio files \(.*flac.*\)"):
        pair_files([tmp_path / "empty"], tmp_path / "out", "wav", "refuse")


def test_folder_loops_by_symlink_end(tree: Path, tmp_path: Path) -> None:
    (tree / "deep" / "loop").symlink_to(tree)
    assert len(pair_files([tree], tmp_path / "out", "wav", "refuse")) == 3


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
            pair_files([root], root / "out", "wav", "refuse")
    else:
        jobs = pair_files([root], root / "out", "wav", "refuse")
        assert sorted(str(job.output.relative_to(root / "out").with_suffix("")) for job in jobs) == sorted(
            stems
        )


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
