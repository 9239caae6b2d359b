"""`PipelineConfig`: what a pipeline runs on and how it behaves when that fails."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from autovoice.address import parse_address
from autovoice.errors import ConfigurationError, RepositoryError
from autovoice.settings import RvcSettings

BASE_VOICE = "voice_conversion"  # the ensemble of the voice that `voice=None` names
DEVICES = ("auto", "cuda", "cpu")
FALLBACKS = ("cpu", "passthrough", "raise")
REPOSITORY_VARIABLE = "AUTOVOICE_REPOSITORY"
MODELS = "model_repository"  # the folder's name in a checkout, in the installed package and elsewhere
API_KEY_VARIABLE = "AUTOVOICE_API_KEY"
DEFAULT_MAX_THREADS = 4
_HEADER_VALUE = re.compile(r"[!-~]+")
_VOICE_NAME = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True)
class PipelineConfig:
    """Everything a `VoiceConversionPipeline` can be told, checked when it is made.

    Attributes:
        backend: `"embedded"` runs the repository in this process; `"grpc://host:port"` and
            `"http://host:port"` name a Triton server, `"grpcs://..."` and `"https://..."` one behind TLS.
        repository: folder of the models. None: `$AUTOVOICE_REPOSITORY`, else the `model_repository` of the
            checkout this package runs from, else the one installed with this package, else
            `./model_repository`.
        voice: the voice to convert with, one of `list_voices`; None for the base voice, which takes a target
            embedding with every conversion.
        voice_settings: of an imported voice, for every conversion that does not say otherwise.
        device: `"auto"` uses CUDA where ONNX Runtime offers it, `"cuda"` asks for it, `"cpu"` never touches
            it.
        threads: ONNX Runtime threads per model. None: the usable cores, at most four.
        retries: how often a transient failure is tried again before the fallback, 0 or more.
        retry_delay_seconds: pause before the first retry, somewhat random; doubles with each one.
        timeout_seconds: limit for one request to the engine (one block), its retries included. None: no limit
            in this process, 60 s for a server.
        fallback: when retries are used up: `"cpu"` moves to CPU sessions of the same repository (from a
            server to the embedded runtime), `"passthrough"` returns the level-normalised input and says so,
            `"raise"` raises.
        f0_min: lowest voiced value accepted in `source_f0`, Hz.
        f0_max: highest voiced value accepted in `source_f0`, Hz.
        block_seconds: audio handled at once; bounds memory on long inputs.
        embedding_cache_size: how many results of `embed` are kept, 0 for none.
        replay_seconds: how much of its latest input a live stream keeps, to be played again to an engine that
            lost the stream's state (a server that restarted).
        api_key: sent to the server with every request. None: `$AUTOVOICE_API_KEY`, else no key.
        tls_root_certificates: PEM file of the authorities that may vouch for the server; None for the usual.
        tls_client_certificate: PEM file that identifies this client, where the server asks for one.
        tls_client_key: PEM file of its key.

    Raises:
        ConfigurationError: naming the first field that makes no sense.
    """

    backend: str = "embedded"
    repository: str | Path | None = None
    voice: str | None = None
    voice_settings: RvcSettings | None = None
    device: Literal["auto", "cuda", "cpu"] = "auto"
    threads: int | None = None
    retries: int = 2
    retry_delay_seconds: float = 0.1
    timeout_seconds: float | None = None
    fallback: Literal["cpu", "passthrough", "raise"] = "cpu"
    f0_min: float = 50.0
    f0_max: float = 1100.0
    block_seconds: float = 10.0
    embedding_cache_size: int = 32
    replay_seconds: float = 10.0
    api_key: str | None = field(default=None, repr=False)
    tls_root_certificates: str | Path | None = None
    tls_client_certificate: str | Path | None = None
    tls_client_key: str | Path | None = None

    def __post_init__(self) -> None:
        if self.backend != "embedded":
            parse_address(self.backend)
        self._require_choice("device", DEVICES)
        self._require_choice("fallback", FALLBACKS)
        if self.repository is not None and not isinstance(self.repository, (str, os.PathLike)):
            raise ConfigurationError(f"repository is {self.repository!r}; give a folder path or None")
        if self.voice is not None and not (isinstance(self.voice, str) and _VOICE_NAME.fullmatch(self.voice)):
            raise ConfigurationError(
                f"voice is {self.voice!r}; give a voice's name (a-z, 0-9, _ and -) or None for the base voice"
            )
        if self.voice_settings is not None and not isinstance(self.voice_settings, RvcSettings):
            raise ConfigurationError(
                f"voice_settings is {self.voice_settings!r}; give an RvcSettings or None"
            )
        if self.threads is not None:
            self._require_number("threads", 1, 1024, integer=True)
        self._require_number("retries", 0, 100, integer=True)
        self._require_number("retry_delay_seconds", 0.0, 60.0)
        if self.timeout_seconds is not None:
            self._require_number("timeout_seconds", 1e-3, 86400.0)
        self._require_number("f0_min", 1.0, 20000.0)
        self._require_number("f0_max", 1.0, 20000.0)
        if self.f0_min >= self.f0_max:
            raise ConfigurationError(
                f"f0_min {self.f0_min} Hz is not below f0_max {self.f0_max} Hz; swap or widen them"
            )
        self._require_number("block_seconds", 0.1, 600.0)
        self._require_number("embedding_cache_size", 0, 1_000_000, integer=True)
        self._require_number("replay_seconds", 0.0, 3600.0)
        if self.api_key is not None and not _HEADER_VALUE.fullmatch(self.api_key):
            raise ConfigurationError("api_key is empty or no header could hold it; give the server's key")
        for name in ("tls_root_certificates", "tls_client_certificate", "tls_client_key"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ConfigurationError(f"{name} is {str(path)!r}, which is no file; give a PEM file")
        if (self.tls_client_certificate is None) != (self.tls_client_key is None):
            raise ConfigurationError(
                "tls_client_certificate and tls_client_key go together; give both or neither"
            )

    @property
    def thread_count(self) -> int:
        """ONNX Runtime threads per model, with None resolved."""
        return self.threads if self.threads is not None else min(usable_cores(), DEFAULT_MAX_THREADS)

    @property
    def server_key(self) -> str | None:
        """The API key, with None resolved."""
        return self.api_key if self.api_key is not None else os.environ.get(API_KEY_VARIABLE) or None

    def repository_path(self) -> Path:
        """Return the folder of the models, with None resolved.

        Raises:
            RepositoryError: when nothing was configured and none of the usual places exists.
        """
        if self.repository is not None:
            return Path(self.repository).expanduser()
        configured = os.environ.get(REPOSITORY_VARIABLE)
        if configured:
            return Path(configured).expanduser()
        package = Path(__file__).resolve().parent
        checkout = package.parents[1]
        places = (checkout / MODELS, package / MODELS, Path(MODELS))
        for place in places:
            if place.is_dir():
                return place
        raise RepositoryError(
            f"no model repository found in {', '.join(map(str, places))}; pass "
            f"PipelineConfig(repository=...) or set {REPOSITORY_VARIABLE}"
        )

    def _require_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise ConfigurationError(f"{name} is {value!r}; use one of {', '.join(map(repr, choices))}")

    def _require_number(self, name: str, low: float, high: float, *, integer: bool = False) -> None:
        value = getattr(self, name)
        kinds = (int,) if integer else (int, float)
        if (
            isinstance(value, bool)
            or not isinstance(value, kinds)
            or not math.isfinite(value)
            or not low <= value <= high
        ):
            noun = "an integer" if integer else "a number"
            raise ConfigurationError(f"{name} is {value!r}; give {noun} from {low} to {high}")


def usable_cores() -> int:
    """Number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
