"""Options that several commands of `autovoice` share, and what they mean to the Python API."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from autovoice import PipelineConfig

ENGINE = "Engine"
IMPORTED = "Imported voice (default: the voice's own)"
RESULT = "Result"
SERVER = "Server"
SOURCE = "Source"

TargetOption = Annotated[
    Path | None,
    typer.Option(
        "--target",
        "-t",
        metavar="FILE",
        help="For the base voice: a recording of the target, or a .npy made by `embed`.",
    ),
]
VoiceOption = Annotated[
    str | None,
    typer.Option(
        "--voice",
        "-v",
        metavar="NAME",
        help="An imported voice, which needs no --target; `autovoice voices` lists them. Default: the base "
        "voice.",
    ),
]
ChannelOption = Annotated[
    str,
    typer.Option(
        metavar="mix|left|right|N|loudest",
        help="Channel of the source; N counts from 1.",
        rich_help_panel=SOURCE,
    ),
]
InputFormatOption = Annotated[
    str | None,
    typer.Option(
        metavar="CODE:HZ:N",
        help="Read the source as samples without a header, such as f32le:24000:1: encoding, rate, channels.",
        rich_help_panel=SOURCE,
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option("--strict", help="Refuse a damaged source.", rich_help_panel=SOURCE),
]
SpeakerOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Speaker of a voice that holds several.", rich_help_panel=IMPORTED),
]
IndexRateOption = Annotated[
    float | None,
    typer.Option(metavar="X", help="Content from the voice's index, 0 to 1 (all).", rich_help_panel=IMPORTED),
]
ProtectOption = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Keep voiceless sounds from the index, 0 (most) to 0.5 (not at all).",
        rich_help_panel=IMPORTED,
    ),
]
RmsMixOption = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Loudness, 0 (the source's) to 1 (the voice's own).",
        rich_help_panel=IMPORTED,
    ),
]
RepositoryOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Model repository. Default: $AUTOVOICE_REPOSITORY, else the one that comes with AutoVoice.",
        rich_help_panel=ENGINE,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|rtx|cuda:N,...",
        help="Where the models run; cuda:1 is the second GPU, and several files share cuda:0,cuda:1.",
        rich_help_panel=ENGINE,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="CPU threads per model. Default: the usable cores, up to 4.",
        rich_help_panel=ENGINE,
    ),
]
FallbackOption = Annotated[
    Literal["cpu", "passthrough", "raise"],
    typer.Option(
        help="When the engine fails: use the CPU, hand back the unconverted input (flagged), or stop.",
        rich_help_panel=ENGINE,
    ),
]
EmbedFallbackOption = Annotated[
    Literal["cpu", "raise"],
    typer.Option(help="When the engine fails: use the CPU, or stop.", rich_help_panel=ENGINE),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace outputs that exist.", rich_help_panel=RESULT)
]
SkipExistingOption = Annotated[
    bool,
    typer.Option(
        "--skip-existing", help="Leave outputs that exist and convert the rest.", rich_help_panel=RESULT
    ),
]
ProvenanceOption = Annotated[
    bool,
    typer.Option(
        "--provenance/--no-provenance",
        help="Say in the output's metadata that it is converted speech.",
        rich_help_panel=RESULT,
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=RESULT),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Triton server to use instead of a local repository: grpc://host:port or http://host:port, "
        "with TLS grpcs:// or https://.",
        rich_help_panel=SERVER,
    ),
]
ApiKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Key that the server asks for. Default: $AUTOVOICE_API_KEY, else none.",
        rich_help_panel=SERVER,
    ),
]
TlsCaOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PEM",
        help="Authorities that may vouch for the server. Default: the usual ones.",
        rich_help_panel=SERVER,
    ),
]
TlsCertificateOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PEM", help="Certificate of this client, where the server asks.", rich_help_panel=SERVER
    ),
]
TlsKeyOption = Annotated[
    Path | None, typer.Option(metavar="PEM", help="Its private key.", rich_help_panel=SERVER)
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Limit for one request, its retries included. Default: 60 for a server, none here.",
        rich_help_panel=SERVER,
    ),
]
RetriesOption = Annotated[
    int,
    typer.Option(metavar="N", help="How often a transient failure is tried again.", rich_help_panel=SERVER),
]


def pipeline_config(
    *,
    repository: Path | None,
    voice: str | None = None,
    speaker: int | None = None,
    index_rate: float | None = None,
    protect: float | None = None,
    rms_mix: float | None = None,
    server: str | None = None,
    api_key_file: Path | None = None,
    tls_ca: Path | None = None,
    tls_certificate: Path | None = None,
    tls_key: Path | None = None,
    timeout: float | None = None,
    **engine: Any,
) -> PipelineConfig:
    """The configuration that the options ask for.

    Args:
        engine: options that the configuration has under the same name.

    Raises:
        ConfigurationError: options that make no sense, or a key file that cannot be read.
    """
    from autovoice import PipelineConfig, RvcSettings
    from autovoice.errors import ConfigurationError

    files = {
        "--api-key-file": api_key_file,
        "--tls-ca": tls_ca,
        "--tls-certificate": tls_certificate,
        "--tls-key": tls_key,
    }
    for name, file in files.items():
        if file is not None and server is None:
            raise ConfigurationError(f"{name} {file} is for a server; give --server too, or leave it out")
    settings = RvcSettings(speaker, index_rate, protect, rms_mix)
    return PipelineConfig(
        backend="embedded" if server is None else server,
        repository=repository,
        voice=voice,
        voice_settings=None if settings == RvcSettings() else settings,
        timeout_seconds=timeout,
        api_key=None if api_key_file is None else read_key(api_key_file),
        tls_root_certificates=tls_ca,
        tls_client_certificate=tls_certificate,
        tls_client_key=tls_key,
        **engine,
    )


def require_one_place(repository: Path | None, server: str | None) -> None:
    """Refuse a repository and a server together, where only one of them can be shown.

    Raises:
        ConfigurationError: both are given.
    """
    from autovoice.errors import ConfigurationError

    if server is not None and repository is not None:
        raise ConfigurationError(
            f"--repository {repository} and --server {server} contradict each other; give one of them"
        )


def parse_pitch_shift(text: str) -> float | Literal["auto"]:
    """Read `--pitch-shift`: a number of semitones or `auto`.

    Raises:
        PitchError: it is neither. The range is the pipeline's to check.
    """
    from autovoice.errors import PitchError

    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise PitchError(f"--pitch-shift {text!r} is neither a number of semitones nor auto") from None


def parse_gain(text: str) -> float | Literal["auto"]:
    """Read `--input-gain`: dB or `auto`.

    Raises:
        ConfigurationError: it is neither, or beyond what there is.
    """
    from autovoice.audio.levels import check_gain

    try:
        return check_gain(float(text), "--input-gain")
    except ValueError:
        return check_gain(text, "--input-gain")


def read_key(path: Path | None, variable: str | None = None) -> str | None:
    """A secret from a file, else from an environment variable, else None.

    A byte-order mark is no part of it, in UTF-8 or UTF-16 (what Windows writes), nor is space around it.

    Raises:
        ConfigurationError: the file cannot be read, or does not hold one word.
    """
    from autovoice.config import strip_key
    from autovoice.errors import ConfigurationError

    if path is None:
        key = strip_key(os.environ.get(variable, "")) if variable else ""
        return key or None
    try:
        content = path.read_bytes()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        key = strip_key(content.decode("utf-16" if is_utf16 else "utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"key file {path} cannot be read ({error}); give a text file") from error
    if len(key.split()) != 1:
        held = "several words" if key else "nothing"
        raise ConfigurationError(f"key file {path} holds {held}; give a file with the key alone")
    return key
