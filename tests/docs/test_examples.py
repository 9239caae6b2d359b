"""The examples of README and the documentation, run as printed."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from printed_examples import (
    RUN,
    SHELL,
    Block,
    Runner,
    blocks_of,
    check_commands,
    check_output,
    run_all,
)

from autovoice import PipelineConfig, VoiceConversionPipeline, read_audio

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT / "model_repository"
PAGES = sorted(
    {
        file.resolve()
        for pattern in ("*.md", "docs/*.md", "demo/*.md", "benchmarks/*.md")
        for file in ROOT.glob(pattern)
    }
)
BLOCKS = {page: blocks_of(page) for page in PAGES}
MAX_NOT_RUN = 17  # each of them is an example that nothing holds
RATE = 24_000


def pages() -> list[object]:
    """Pages with blocks to run, those with a server marked."""
    found = []
    for page, blocks in BLOCKS.items():
        if any(block.language in RUN and block.how != "not run" for block in blocks):
            marks = [pytest.mark.server] if any(block.serves for block in blocks) else []
            marks += [pytest.mark.slow] if page.name == "own_voices.md" else []
            found.append(pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the examples read: parts of the demo's recordings under other names."""
    made = tmp_path / "here"
    (made / "recordings").mkdir(parents=True)
    source, rate = read_audio(ROOT / "demo" / "source_rms.flac")
    soundfile.write(made / "speech.wav", source[: 2 * rate], rate)
    soundfile.write(made / "recordings" / "part.flac", source[2 * rate : 3 * rate], rate)
    soundfile.write(made / "more.mp3", source[3 * rate : 4 * rate], rate)
    target, rate = read_audio(ROOT / "demo" / "target_slt.flac")
    soundfile.write(made / "friend.flac", target[: 3 * rate], rate)
    for number in (1, 2):
        soundfile.write(made / f"friend{number}.wav", target[number * rate : (number + 1) * rate], rate)
    soxr.resample(source[:16_000], 16_000, RATE).tofile(made / "source.f32")
    soxr.resample(target[:32_000], rate, RATE).tofile(made / "reference.f32")
    return made


@pytest.fixture
def repository(request: pytest.FixtureRequest, folder: Path) -> Path:
    """The models; a copy, and files of a voice to import, where a page imports one."""
    if "own_voices" not in request.node.name:
        return REPOSITORY
    import faiss
    import published

    shutil.copytree(REPOSITORY, folder.parent / "models", symlinks=True)
    published.save_voice(folder / "VOICE.pth", widths=published.NARROW, speakers=1)
    published.save_hubert(folder / "contentvec")
    vectors = np.random.default_rng(4).standard_normal((400, 768)).astype(np.float32)
    index = faiss.index_factory(768, "IVF9,Flat")
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, os.fspath(folder / "VOICE.index"))
    return folder.parent / "models"


@pytest.mark.parametrize("page", pages())
def test_examples_run_as_printed(page: Path, folder: Path, repository: Path) -> None:
    blocks = BLOCKS[page]
    if any(block.serves for block in blocks) and not (
        shutil.which("tritonserver") or importlib.util.find_spec("pytriton")
    ):
        pytest.skip("no tritonserver: pip install 'autovoice[server]'")
    printed = run_all(blocks, Runner(folder, {"AUTOVOICE_REPOSITORY": str(repository)}))
    if page.name in ("README.md", "python.md", "serving.md"):
        check_conversion(folder)
    if page.name == "rollout.md":
        assert check_output(blocks, printed) >= 3
    if page.name == "serving.md":
        check_served(folder, blocks, printed)


def check_conversion(folder: Path) -> None:
    """Hold the file that the examples write to a conversion made here."""
    with VoiceConversionPipeline(PipelineConfig(repository=REPOSITORY, threads=1)) as pipeline:
        audio, rate = read_audio(folder / "speech.wav")
        expected = pipeline.convert(
            audio, pipeline.embed_file(folder / "friend.flac"), source_sample_rate=rate
        )
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(soundfile.read(folder / "out.wav")[0], expected, atol=2e-4)  # 16 bits


def check_served(folder: Path, blocks: list[Block], printed: dict[str, str]) -> None:
    """Hold what the server answered to conversions made here."""

    def output(words: str) -> str:
        return printed[next(block.where for block in blocks if words in block.code)]

    assert "succeeded=1, failed=0" in output("print(pipeline.stats)")
    assert "fallbacks=0" in output("print(pipeline.stats)")
    assert float(output("secrets.randbits")) < 1e-4
    source = np.fromfile(folder / "source.f32", np.float32)
    reference = np.fromfile(folder / "reference.f32", np.float32)
    with VoiceConversionPipeline(PipelineConfig(repository=REPOSITORY, threads=1)) as pipeline:
        by_itself, by_reference = (
            pipeline.convert(
                source,
                pipeline._engine.infer("speaker_encoder", {"REFERENCE_AUDIO": audio[np.newaxis]})[
                    "EMBEDDING"
                ],
                source_sample_rate=RATE,
                input_gain_db=0.0,
            )
            for audio in (source, reference)
        )
    np.testing.assert_allclose(soundfile.read(folder / "whole.wav")[0], by_itself, atol=2e-4)
    made = np.fromfile(folder / "converted.f32", np.float32)
    np.testing.assert_allclose(made, by_reference, atol=1e-4)
    served, local = (soundfile.read(folder / name)[0] for name in ("served.wav", "out.wav"))
    np.testing.assert_allclose(served, local, atol=2e-4)


def test_examples_that_cannot_run_are_few_and_name_options_that_exist() -> None:
    left_out = [block for blocks in BLOCKS.values() for block in blocks if block.how == "not run"]
    assert len(left_out) <= MAX_NOT_RUN, [block.where for block in left_out]
    assert sum(check_commands(block) for block in left_out) >= 4


def test_every_block_has_a_language() -> None:
    """A block without one would be run by nothing, and no one would notice."""
    known = {*RUN, "text"}
    assert not [block.where for blocks in BLOCKS.values() for block in blocks if block.language not in known]
    assert sum(block.language in SHELL for blocks in BLOCKS.values() for block in blocks) > 10


def test_a_stream_in_the_documentation_has_a_random_id() -> None:
    codes = [block.code for blocks in BLOCKS.values() for block in blocks if "sequence_id" in block.code]
    assert codes
    for code in codes:
        assert "secrets.randbits(63) | 1" in code
