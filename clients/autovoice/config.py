"""`PipelineConfig`: what a pipeline runs on and how it behaves when that fails."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, Literal

from autovoice.address import parse_address
from autovoice.errors import ConfigurationError, RepositoryError
from autovoice.settings import RvcSettings

BASE_VOICE = "voice_conversion"  # the ensemble of the voice that `voice=None` names
FALLBACKS = ("cpu", "passthrough", "raise")
REPOSITORY_VARIABLE = "AUTOVOICE_REPOSITORY"
MODELS = "model_repository"  # the folder's name in a checkout, in the installed package and elsewhere
API_KEY_VARIABLE = "AUTOVOICE_API_KEY"
DEFAULT_MAX_THREADS = 4
_HEADER_VALUE = re.compile(r"[!-~]+")
_VOICE_NAME = re.compile(r"[a-z0-9_-]+")
_DEVICE = re.compile(r"auto|cpu|(cuda|rtx)(:[0-9]{1,3})?")
_PATH_FIELDS = ("repository", "tls_root_certificates", "tls_client_certificate", "tls_client_key")


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
        device: `"auto"` uses TensorRT for RTX or CUDA where ONNX Runtime offers it, `"rtx"` and `"cuda"` ask
            for one, `"rtx:N"` and `"cuda:N"` for the GPU of that number, from 0 on, and `"cpu"` uses none.
            Several GPUs, as `"cuda:0,cuda:1"` or a tuple (kept as text), share the items of `batch_convert`
            and conversions that run at the same time; one that fails leaves its work to the others. A single
            conversion, and every stream, uses the first.
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
        tls_root_certificates: PEM file of the authorities to trust; None for the system's.
        tls_client_certificate: PEM file that identifies this client, where the server asks for one.
        tls_client_key: PEM file of its key.

    Args:
        use_cuda: another way to set `device`: True means `"cuda"`, with the CPU taking over where there is no
            GPU unless `fallback` says otherwise; False means `"cpu"`.

    Raises:
        ConfigurationError: naming the first field that makes no sense.
    """

    backend: str = "embedded"
    repository: str | Path | None = None
    voice: str | None = None
    voice_settings: RvcSettings | None = None
    device: str | Sequence[str] = "auto"
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
    use_cuda: InitVar[bool | None] = None

    def __post_init__(self, use_cuda: bool | None) -> None:
        if not (isinstance(self.backend, str) and self.backend == "embedded"):
            parse_address(self.backend)
        device = ",".join(split_devices(self.device))
        if use_cuda is not None:
            device = _device_for(use_cuda, device)
        object.__setattr__(self, "device", device)
        if not (isinstance(self.fallback, str) and self.fallback in FALLBACKS):
            raise ConfigurationError(
                f"fallback is {self.fallback!r}; use one of {', '.join(map(repr, FALLBACKS))}"
            )
        for name in _PATH_FIELDS:
            self._require_path(name)
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
        if self.api_key is not None:
            _check_key(self.api_key, "api_key")
        if (self.tls_client_certificate is None) != (self.tls_client_key is None):
            raise ConfigurationError(
                "tls_client_certificate and tls_client_key go together; give both or neither"
            )

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that `device` names."""
        return split_devices(self.device)

    @property
    def thread_count(self) -> int:
        """ONNX Runtime threads per model, with None resolved."""
        return self.threads if self.threads is not None else min(usable_cores(), DEFAULT_MAX_THREADS)

    @property
    def server_key(self) -> str | None:
        """The API key, with None resolved.

        Raises:
            ConfigurationError: when `$AUTOVOICE_API_KEY` is no key.
        """
        key = (
            self.api_key
            if self.api_key is not None
            else strip_key(os.environ.get(API_KEY_VARIABLE, "")) or None
        )
        return key if key is None else _check_key(key, f"${API_KEY_VARIABLE}")

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

    def _require_path(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        kind = "folder" if name == "repository" else "PEM file"
        try:
            path = Path(value).expanduser()
            fits = "\0" not in str(path) and (kind == "folder" or path.is_file())
        except (TypeError, RuntimeError, OSError):  # no path, an unknown user's home, no permission
            fits = False
        if not fits:
            raise ConfigurationError(
                f"{name} is {value!r}, which is no {kind}; give the path of one, or None"
            )

    def _require_number(self, name: str, low: float, high: float, *, integer: bool = False) -> None:
        value = getattr(self, name)
        kinds = (int,) if integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            noun = "an integer" if integer else "a number"
            raise ConfigurationError(f"{name} is {value!r}; give {noun} from {low} to {high}")


def as_config(config: PipelineConfig | None) -> PipelineConfig:
    """Return `config`, or the defaults for None.

    Raises:
        ConfigurationError: when it is something else.
    """
    if config is None:
        return PipelineConfig()
    if not isinstance(config, PipelineConfig):
        raise ConfigurationError(f"config is {config!r}; give a PipelineConfig or None")
    return config


def check_device(device: Any) -> None:
    """Refuse what is no device.

    Raises:
        ConfigurationError: naming it.
    """
    if not (isinstance(device, str) and _DEVICE.fullmatch(device)):
        raise ConfigurationError(
            f"device is {device!r}; use 'auto', 'cpu', 'cuda', 'rtx', or 'cuda:N' or 'rtx:N' with a GPU's "
            "number from 0 on"
        )


def split_devices(device: Any) -> tuple[str, ...]:
    """The devices of a name, a comma list or a sequence of names.

    Raises:
        ConfigurationError: one is none, or those of several are no different GPUs of one kind.
    """
    names = device.split(",") if isinstance(device, str) else device
    if not isinstance(names, (list, tuple)) or not names:
        names = [device]
    if len(names) > 1:
        names = [name.strip(" ") if isinstance(name, str) else name for name in names]
    for name in names:
        check_device(name)
    numbered = [tuple(name.split(":")) for name in names]
    if len(names) > 1 and (
        any(len(parts) < 2 for parts in numbered)
        or len({kind for kind, _ in numbered}) > 1
        or len({int(number) for _, number in numbered}) < len(names)
    ):
        raise ConfigurationError(
            f"device is {device!r}; give several GPUs by their numbers, each once, as 'cuda:0,cuda:1'"
        )
    return tuple(names)


def strip_key(text: str) -> str:
    """A key as a file or a variable holds it, without the byte-order mark and the space around it."""
    return text.strip().removeprefix("\ufeff").strip()


def _check_key(key: Any, name: str) -> str:
    """Refuse what no header can hold, without showing it."""
    if not (isinstance(key, str) and _HEADER_VALUE.fullmatch(key)):
        raise ConfigurationError(f"{name} is empty or no header could hold it; give the server's key")
    return key


def _device_for(use_cuda: Any, device: str) -> str:
    """The device that `use_cuda` and `device` together name."""
    if not isinstance(use_cuda, bool):
        raise ConfigurationError(f"use_cuda is {use_cuda!r}; give True, False or None")
    usual = "cuda" if use_cuda else "cpu"
    if device != "auto" and not device.startswith(usual):
        raise ConfigurationError(f"use_cuda is {use_cuda} but device is {device!r}; leave one of them out")
    return usual if device == "auto" else device


def usable_cores() -> int:
    """Number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
