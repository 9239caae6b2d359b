"""`TritonEngine`: an `Engine` whose models run in a Triton server."""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy.typing as npt

from autovoice.address import ServerAddress
from autovoice.config import BASE_VOICE
from autovoice.engines.engine import Sequence, StepTiming, Tensors, current_pin, report_step
from autovoice.engines.triton.probing import explain_protocol
from autovoice.engines.triton.wire import (
    LOADING,
    FailureKind,
    ModelStatistics,
    Transport,
    TransportError,
    decode,
    encode,
)
from autovoice.errors import (
    ConfigurationError,
    InferenceError,
    InferenceTimeoutError,
    ReleaseGoneError,
    RepositoryError,
    RequestError,
    SequenceError,
    StreamClosedError,
    UnavailableError,
    VoiceConversionError,
)
from autovoice.repository.model_config import ModelSpec, spec_from_config

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
SPEC_SECONDS = 10.0  # how long a server may take to tell a model's config
END_SECONDS = 2.0  # how long it may take to drop a sequence that was given up
_PROXY_VARIABLES = ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy")


class TritonEngine:
    """`Engine` over a server.

    The server keeps the states of sequences, and drops those of a request that fails: any failure inside a
    sequence is a `SequenceError`. Requests under a `ReleasePin` go to the release that answered the first of
    them, where a proxy stands before several.

    Args:
        address: the server's.
        transport: speaks its protocol.
        spec_timeout: seconds to wait for a model's config.
    """

    def __init__(
        self, address: ServerAddress, transport: Transport, *, spec_timeout: float = SPEC_SECONDS
    ) -> None:
        self._address = address
        self._transport = transport
        self._spec_timeout = spec_timeout
        self._specs: dict[str, ModelSpec] = {}
        self._versions: dict[str, int] = {}
        self._answered = False  # a server of this protocol has, at some time
        self._closed = False

    @property
    def device(self) -> str:
        """The server's address."""
        return str(self._address)

    def spec(self, model: str) -> ModelSpec:
        """The config of a model as the server has it, asked for once; see `Engine.spec`.

        Raises:
            ConfigurationError: the server wants another API key.
            InferenceError: the server does not answer.
        """
        self._check_open()
        spec = self._specs.get(model)
        if spec is None:
            config = self._ask(model, lambda seconds: self._transport.model_config(model, seconds))
            spec = spec_from_config(config, f"model {model} on {self.device}")
            spec = self._specs[model] = replace(spec, version=self._versions.get(model, 0))
        return spec

    def names(self) -> list[str]:
        """Names of all models that the server has now, sorted; fills in the versions of their specs.

        Raises:
            ConfigurationError: the server wants another API key.
            InferenceError: the server does not answer.
        """
        self._check_open()
        self._versions = self._ask("list of models", self._transport.models)
        return sorted(self._versions)

    def known_spec(self, model: str) -> ModelSpec | None:
        """The config of a model if the server has been asked for it before."""
        return self._specs.get(model)

    def check_ready(self) -> None:
        """Make sure that the server answers and the ensembles that it has loaded are ready.

        What it says of itself counts only where it lists its models to nobody without a key: Triton calls
        itself not ready while it loads any model, and for ever after one failed to load.

        Raises:
            ConfigurationError: no Triton server listens there, or it speaks another protocol.
            InferenceError: it does not answer, or is not ready.
        """
        ready = self._ask("readiness", self._transport.ready)
        try:
            ensembles = [model for model in self.names() if self._is_ensemble(model)]
        except _KeyError:
            ready = ready or self._is_ready(BASE_VOICE)
        except RequestError:  # what is not ready at all lists nothing
            ready = False
        else:
            ready = all(map(self._is_ready, ensembles)) if ensembles else ready
        if not ready:
            raise UnavailableError(f"{self._address} is not ready; wait until its models are loaded")

    def _is_ensemble(self, model: str) -> bool:
        config = self._ask(model, lambda seconds: self._transport.model_config(model, seconds))
        return bool(config.HasField("ensemble_scheduling"))

    def _is_ready(self, model: str) -> bool:
        return self._ask(model, lambda seconds: self._transport.model_ready(model, seconds))

    def server_version(self) -> tuple[str, str]:
        """The server's name and version; see `check_ready` for errors."""
        return self._ask("version", self._transport.server_version)

    def statistics(self) -> list[ModelStatistics]:
        """What the server did with its models, sorted by name; see `check_ready` for errors."""
        found = self._ask("statistics", self._transport.statistics)
        return sorted(found, key=lambda model: (model.name, model.version))

    def _ask(self, what: str, question: Callable[[float], Answer]) -> Answer:
        try:
            answer = question(self._spec_timeout)
        except TransportError as error:
            raise self._explain(what, "", error) from error
        self._answered = True
        return answer

    def infer(
        self, model: str, inputs: Tensors, *, sequence: Sequence | None = None, timeout: float | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run one request; see `Engine.infer`.

        Raises:
            ConfigurationError: the server wants another API key.
            ReleaseGoneError: the release of the pin is not served any more; the pin is taken off.
        """
        self._check_open()
        if timeout is not None and timeout <= 0:
            raise InferenceTimeoutError(f"no time was left for {model}; raise timeout_seconds")
        pin = current_pin()
        release = None if pin is None else pin.number
        request = encode(model, secrets.token_hex(8), inputs, sequence, release)
        started = time.perf_counter()
        try:
            answer = self._transport.infer(request, timeout)
            outputs = decode(request, answer)
        except TransportError as error:
            explained = self._explain(model, request.id, error)
            if isinstance(explained, ReleaseGoneError):
                if pin is not None:
                    pin.clear()
                raise explained from error
            # Whether the server had already moved the state on is not known here.
            if sequence is None or sequence.start or not isinstance(explained, InferenceError):
                raise explained from error
            raise SequenceError(f"sequence {sequence.id} is lost, start it again: {explained}") from explained
        self._answered = True
        elapsed = time.perf_counter() - started
        logger.debug("request %s: %s took %.1f ms on %s", request.id, model, elapsed * 1e3, self._address)
        if pin is not None and answer.version:
            pin.note(model, answer.version)
        report_step(StepTiming(model, elapsed, self.device, answer.version or None))
        return outputs

    def end_sequence(self, model: str, inputs: Tensors, sequence_id: int) -> None:
        """Have the server drop the states of a sequence; see `Engine.end_sequence`."""
        with suppress(VoiceConversionError):
            self.infer(model, inputs, sequence=Sequence(sequence_id, end=True), timeout=END_SECONDS)

    def close(self) -> None:
        """Close the connections; see `Engine.close`."""
        self._closed = True
        self._transport.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError("this pipeline has been closed; make another")

    def _explain(self, model: str, request_id: str, error: TransportError) -> VoiceConversionError:
        where = f"{self._address}, {model}"
        if request_id:
            where += f", request {request_id}"
        kind, reason = error.kind, error.reason
        unheard = kind in (FailureKind.UNREACHABLE, FailureKind.FOREIGN) and not self._answered
        if unheard and (clause := explain_protocol(self._address)):
            return ConfigurationError(f"{self._address}: {clause}")
        if kind is FailureKind.FOREIGN:
            return ConfigurationError(
                f"{where}: what listens there is no Triton server ({reason}); check the port: "
                "Triton's metrics have one of their own"
            )
        if kind is FailureKind.FORBIDDEN:
            return _KeyError(
                f"{where}: the server asks for another API key ({reason}); pass PipelineConfig(api_key=...) "
                "or set AUTOVOICE_API_KEY"
            )
        if kind is FailureKind.GONE:
            return ReleaseGoneError(f"{where}: {reason}; begin the stream or the conversion again")
        if kind is FailureKind.UNKNOWN_MODEL:
            return RepositoryError(f"{where}: {reason}; load the model or ask another server")
        if kind is FailureKind.REFUSED:
            return RequestError(f"{where}: {reason}")
        if kind is FailureKind.TIMEOUT:
            return InferenceTimeoutError(
                f"{where}: {reason}; raise timeout_seconds or look at the server's load"
            )
        if kind is FailureKind.BROKEN:
            return InferenceError(f"{where}: {reason}; see the server's log")
        return UnavailableError(
            f"{where}: {reason}; check that the server runs and is ready{self._hint(reason)}"
        )

    def _hint(self, reason: str) -> str:
        """What keeps a server from being reached, as far as can be told."""
        if LOADING in reason:
            hint = ": it loads the model, or has unloaded it; send the request again in a moment"
        elif self._answered:
            hint = ": it may be starting again; send the request again in a moment"
        else:
            hint = ": until its models are loaded it takes no connections"
        if not _is_loopback(self._address.host) and (found := _proxies()):
            hint += f" (no proxy is asked, whatever {found[0]} says: the server has to be reached directly)"
        return hint


class _KeyError(ConfigurationError):
    """The server asks for another API key."""


def _proxies() -> list[str]:
    """Variables of the environment that name a proxy."""
    return [f"${name}" for each in _PROXY_VARIABLES for name in (each, each.upper()) if os.environ.get(name)]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
