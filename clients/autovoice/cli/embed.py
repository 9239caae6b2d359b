"""`autovoice embed`, and how every command turns its `--target` into an embedding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autovoice import PipelineConfig, VoiceConversionPipeline, load_embedding, save_embedding
from autovoice.cli.console import load_engine
from autovoice.cli.outputs import about, require_writable
from autovoice.errors import EmbeddingError, OutputError
from autovoice.results import FloatArray
from autovoice.voices.embedding import check_embedding

EMBEDDING_SUFFIX = ".npy"


@dataclass(frozen=True)
class Voice:
    """A target voice.

    Attributes:
        embedding: unit length, [E]; None where the voice needs none.
        median_f0: of the recording it came from, Hz; None where there is no recording.
    """

    embedding: FloatArray | None
    median_f0: float | None


def load_voice(pipeline: VoiceConversionPipeline, target: Path | None, *, with_pitch: bool) -> Voice:
    """Read an embedding file, or embed a recording (and measure its pitch when asked).

    Raises:
        EmbeddingError: no target where the pipeline's voice needs one, or one where it takes none.
    """
    name = pipeline.voice.name
    if target is None:
        if pipeline.voice.takes_embedding:
            raise EmbeddingError(
                f"the voice {name!r} needs --target, a recording or a .npy; or name another by --voice"
            )
        return Voice(None, None)
    if not pipeline.voice.takes_embedding:
        raise EmbeddingError(f"--target is {target}, but the voice {name!r} takes none; leave it out")
    if target.suffix.lower() == EMBEDDING_SUFFIX:
        try:
            return Voice(check_embedding(load_embedding(target), pipeline.embedding_size), None)
        except EmbeddingError as error:
            raise EmbeddingError(about(target, error)) from error
    embedding = pipeline.embed_file(target)
    median_f0 = pipeline.median_f0_file(target) if with_pitch else 0.0
    # A reference without a voiced frame has no median; the model's estimate from the embedding serves then.
    return Voice(embedding, median_f0 or None)


def embed_references(
    references: Sequence[Path], output: Path, config: PipelineConfig, *, overwrite: bool, as_json: bool
) -> int:
    """Average the embeddings of `references`, normalise the mean to unit length and write it to `output`."""
    if output.suffix.lower() != EMBEDDING_SUFFIX:
        raise OutputError(f"-o {output} is not a .npy file; embeddings are stored as NumPy files")
    require_writable(output, overwrite)
    load_engine()
    with VoiceConversionPipeline(config) as pipeline:
        embeddings = np.stack([pipeline.embed_file(path) for path in references]).astype(np.float64)
    mean = embeddings.mean(axis=0)
    norm = float(np.linalg.norm(mean))
    if norm < 1e-3:
        raise EmbeddingError("the references cancel each other out; give recordings of one voice")
    embedding = (mean / norm).astype(np.float32)
    similarities = [float(np.dot(each, embedding)) for each in embeddings]
    save_embedding(output, embedding)
    if as_json:
        report = {
            "output": str(output),
            "size": len(embedding),
            "references": [
                {"file": str(path), "similarity_to_mean": similarity}
                for path, similarity in zip(references, similarities, strict=True)
            ],
        }
        print(json.dumps(report, indent=2))
        return 0
    if len(references) > 1:
        for path, similarity in zip(references, similarities, strict=True):
            print(f"{path}: similarity to the mean {similarity:.3f}")
    print(f"{output}: {len(embedding)} values from {len(references)} recording{'s' * (len(references) > 1)}")
    return 0
