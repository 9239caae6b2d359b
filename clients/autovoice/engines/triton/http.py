"""Triton's HTTP protocol with the binary tensor extension.

urllib3 is used rather than `tritonclient.http`: that client belongs to the one thread that made it, and knows
no limit for a single request. A connection pool of urllib3 goes straight to its host, whatever proxies the
environment names.
"""

from __future__ import annotations

import json
import socket
import ssl
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.response import BaseHTTPResponse

from autovoice.address import API_KEY_HEADER, ServerAddress
from autovoice.engines.engine import time_limit
from autovoice.engines.triton.wire import (
    DURATIONS,
    Duration,
    FailureKind,
    ModelStatistics,
    TransportError,
    WireRequest,
    WireResponse,
    WireTensor,
    newest,
    parse_version,
    refine_kind,
)
from autovoice.repository.model_config import protobuf_module

HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_IDLE_CONNECTIONS = 1024  # more than requests are under way at once, so that none is made anew
_KINDS = {
    400: FailureKind.REFUSED,
    401: FailureKind.FORBIDDEN,
    403: FailureKind.FORBIDDEN,
    404: FailureKind.UNKNOWN_MODEL,
    410: FailureKind.GONE,
    413: FailureKind.REFUSED,
    429: FailureKind.BUSY,
    501: FailureKind.REFUSED,
    502: FailureKind.UNREACHABLE,
    503: FailureKind.UNREACHABLE,
    504: FailureKind.TIMEOUT,
}
_NOT_TRITONS = {301, 302, 303, 307, 308, 404, 405}  # without Triton's words: that of another server


class _TimedConnection(HTTPConnection):
    """A connection whose whole answer has to come within `timeout`, which is urllib3's limit for one read."""

    def getresponse(self) -> Any:
        with time_limit(self.timeout, partial(_hang_up, self.sock)):
            return super().getresponse()


class _TimedTlsConnection(_TimedConnection, HTTPSConnection):
    """The same over TLS."""


class HttpTransport:
    """A pool of connections, one request on each at a time.

    Args:
        address: the server's.
        api_key: sent with every request; None for none.
        root_certificates: PEM file of the authorities to trust; None for the usual ones.
        client_certificate: PEM file that identifies this client; None for none.
        client_key: its key.
    """

    def __init__(
        self,
        address: ServerAddress,
        *,
        api_key: str | None = None,
        root_certificates: Path | None = None,
        client_certificate: Path | None = None,
        client_key: Path | None = None,
    ) -> None:
        host = f"[{address.host}]" if ":" in address.host else address.host
        if address.tls:
            context = ssl.create_default_context(cafile=root_certificates)
            if client_certificate is not None:
                context.load_cert_chain(client_certificate, client_key)
            self._pool: urllib3.HTTPConnectionPool = urllib3.HTTPSConnectionPool(
                host, address.port, maxsize=MAX_IDLE_CONNECTIONS, ssl_context=context
            )
            self._pool.ConnectionCls = _TimedTlsConnection
        else:
            self._pool = urllib3.HTTPConnectionPool(host, address.port, maxsize=MAX_IDLE_CONNECTIONS)
            self._pool.ConnectionCls = _TimedConnection
        self._headers = {} if api_key is None else {API_KEY_HEADER: api_key}

    def infer(self, request: WireRequest, timeout: float | None) -> WireResponse:
        """Send a request; see `Transport.infer`."""
        header = {
            "id": request.id,
            "parameters": {**request.parameters, "binary_data_output": True},
            "inputs": [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": tensor.shape,
                    "parameters": {"binary_data_size": len(tensor.data)},
                }
                for tensor in request.tensors
            ],
        }
        text = json.dumps(header).encode()
        body = b"".join((text, *(tensor.data for tensor in request.tensors)))
        headers = {
            HEADER_LENGTH: str(len(text)),
            "Content-Type": "application/octet-stream",
            **request.headers,
        }
        answer = self._exchange("POST", f"/v2/models/{request.model}/infer", timeout, body, headers)
        try:
            return _parse(answer.data, int(answer.headers.get(HEADER_LENGTH, len(answer.data))))
        except (ValueError, KeyError, TypeError) as error:
            raise TransportError(FailureKind.BROKEN, f"the answer cannot be read ({error!r})") from error

    def ready(self, timeout: float | None) -> bool:
        """Whether the server is ready; see `Transport.ready`."""
        return self._is_ready("/v2/health/ready", timeout)

    def model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether a model is ready; see `Transport.model_ready`."""
        return self._is_ready(f"/v2/models/{model}/ready", timeout)

    def _is_ready(self, path: str, timeout: float | None) -> bool:
        try:
            self._exchange("GET", path, timeout)
        except TransportError as error:
            if error.kind is FailureKind.REFUSED:
                return False
            raise
        return True

    def server_version(self, timeout: float | None) -> tuple[str, str]:
        """Name and version; see `Transport.server_version`."""
        metadata = self._get_json("/v2", timeout)
        try:
            return str(metadata["name"]), str(metadata["version"])
        except KeyError as error:
            raise TransportError(FailureKind.FOREIGN, f"its version has no {error}") from error

    def statistics(self, timeout: float | None) -> list[ModelStatistics]:
        """What each model did; see `Transport.statistics`."""
        answer = self._get_json("/v2/models/stats", timeout)
        try:
            return [
                ModelStatistics(
                    model["name"],
                    int(model["version"]),
                    model["inference_count"],
                    model["execution_count"],
                    {name: Duration(**model["inference_stats"][name]) for name in DURATIONS},
                )
                for model in answer["model_stats"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise TransportError(FailureKind.BROKEN, f"statistics cannot be read ({error!r})") from error

    def _get_json(self, path: str, timeout: float | None) -> dict[str, Any]:
        """The object that Triton answers with."""
        answer = self._exchange("GET", path, timeout)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            kind = answer.headers.get("Content-Type", "no type")
            raise TransportError(FailureKind.FOREIGN, f"{path} is answered with {kind}, not with JSON")
        return found

    def models(self, timeout: float | None) -> dict[str, int]:
        """Names and versions of the models; see `Transport.models`."""
        return newest((model.name, model.version) for model in self.statistics(timeout))

    def model_config(self, model: str, timeout: float | None) -> Any:
        """The model's config; see `Transport.model_config`."""
        from google.protobuf import json_format

        answer = self._get_json(f"/v2/models/{model}/config", timeout)
        try:
            return json_format.ParseDict(answer, protobuf_module().ModelConfig(), ignore_unknown_fields=True)
        except json_format.ParseError as error:
            raise TransportError(FailureKind.BROKEN, f"the config cannot be read ({error})") from error

    def close(self) -> None:
        """Close idle connections; those in use are closed when their request ends."""
        self._pool.close()

    def _exchange(
        self,
        method: str,
        path: str,
        timeout: float | None,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> BaseHTTPResponse:
        try:
            answer = self._pool.urlopen(
                method,
                path,
                body,
                {**self._headers, **(headers or {})},
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(total=timeout),
            )
        except HTTPError as error:
            # urllib3 wraps what the connection said: as the cause, or as the last argument.
            cause = error.__cause__ or error.args[-1]
            if isinstance(error, ReadTimeoutError) or isinstance(cause, TimeoutError):
                raise TransportError(FailureKind.TIMEOUT, "no answer in time") from error
            raise TransportError(FailureKind.UNREACHABLE, str(cause) or type(cause).__name__) from error
        if answer.status != 200:
            reason = _reason(answer) or f"HTTP status {answer.status} {answer.reason}"
            kind = refine_kind(_KINDS.get(answer.status, FailureKind.BROKEN), reason)
            if method == "GET" and answer.status in _NOT_TRITONS and not _reason(answer):
                kind = FailureKind.FOREIGN
                reason += f", to {answer.headers['Location']}" if "Location" in answer.headers else ""
            raise TransportError(kind, reason)
        return answer


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # the other side may have been faster
        connection.shutdown(socket.SHUT_RDWR)


def _parse(answer: bytes, header_length: int) -> WireResponse:
    header = json.loads(answer[:header_length])
    tensors = []
    data = memoryview(answer)[header_length:]
    for output in header["outputs"]:
        size = int(output["parameters"]["binary_data_size"])
        shape = tuple(int(axis) for axis in output["shape"])
        tensors.append(WireTensor(output["name"], output["datatype"], shape, data[:size]))
        data = data[size:]
    return WireResponse(header.get("id", ""), tuple(tensors), parse_version(header.get("model_version")))


def _reason(answer: BaseHTTPResponse) -> str:
    try:
        lines = str(answer.json()["error"]).strip().splitlines()
    except (ValueError, KeyError, TypeError):
        return ""
    return lines[0] if lines else ""


TRANSPORT = HttpTransport
