"""`autovoice embed`, and how every command turns its `--target` into an embedding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autovoice.cli.console import load_engine
from autovoice.cli.options import (
    ApiKeyFileOption,
    DeviceOption,
    EmbedFallbackOption,
    JsonOption,
    OverwriteOption,
    RepositoryOption,
    RetriesOption,
    ServerOption,
    ThreadsOption,
    TimeoutOption,
    TlsCaOption,
    TlsCertificateOption,
    TlsKeyOption,
    pipeline_config,
)
from autovoice.cli.outputs import about, require_writable

if TYPE_CHECKING:
    from autovoice import VoiceConversionPipeline
    from autovoice.results import FloatArray

EMBEDDING_SUFFIX = ".npy"


@dataclass(frozen=True)
class TargetVoice:
    """The voice that `--target` names.

    Attributes:
        embedding: unit length, [E]; None where the voice needs none.
        median_f0: of the recording it came from, Hz; None where there is no recording.
    """

    embedding: FloatArray | None
    median_f0: float | None


def embed(
    references: Annotated[
        list[Path],
        typer.Argument(metavar="REFERENCE", help="Recordings of one voice, a few seconds each."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="VOICE.npy", help="The file to write.")],
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    repository: RepositoryOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    fallback: EmbedFallbackOption = "cpu",
    server: ServerOption = None,
    api_key_file: ApiKeyFileOption = None,
    tls_ca: TlsCaOption = None,
    tls_certificate: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    timeout: TimeoutOption = None,
    retries: RetriesOption = 2,
) -> int:
    """Write the embedding of a voice; several recordings are joined."""
    from autovoice.errors import OutputError

    config = pipeline_config(
        repository=repository,
        device=device,
        threads=threads,
        fallback=fallback,
        server=server,
        api_key_file=api_key_file,
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        timeout=timeout,
        retries=retries,
    )
    if output.suffix.lower() != EMBEDDING_SUFFIX:
        raise OutputError(f"-o {output} is not a .npy file; embeddings are stored as NumPy files")
    require_writable(output, overwrite)
    load_engine()

    from autovoice import VoiceConversionPipeline, save_embedding

    with VoiceConversionPipeline(config) as pipeline:
        embeddings = [pipeline.embed_file(path) for path in references]
        embedding = pipeline.join_embeddings(embeddings)
        similarities = [pipeline.similarity(each, embedding) for each in embeddings]
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


def load_target(pipeline: VoiceConversionPipeline, target: Path | None, *, with_pitch: bool) -> TargetVoice:
    """Read an embedding file, or embed a recording (and measure its pitch when asked).

    Raises:
        EmbeddingError: no target where the pipeline's voice needs one, or one where it takes none.
    """
    from autovoice import load_embedding
    from autovoice.errors import EmbeddingError
    from autovoice.voices.embedding import check_embedding

    name = pipeline.voice.name
    if target is None:
        if pipeline.voice.takes_embedding:
            raise EmbeddingError(
                f"the voice {name!r} needs --target, a recording or a .npy; or name another by --voice"
            )
        return TargetVoice(None, None)
    if not pipeline.voice.takes_embedding:
        raise EmbeddingError(f"--target is {target}, but the voice {name!r} takes none; leave it out")
    if target.suffix.lower() == EMBEDDING_SUFFIX:
        try:
            return TargetVoice(check_embedding(load_embedding(target), pipeline.embedding_size), None)
        except EmbeddingError as error:
            raise EmbeddingError(about(target, error)) from error
    embedding = pipeline.embed_file(target)
    median_f0 = pipeline.median_f0_file(target) if with_pitch else 0.0
    # A reference without a voiced frame has no median; the model's estimate from the embedding serves then.
    return TargetVoice(embedding, median_f0 or None)
