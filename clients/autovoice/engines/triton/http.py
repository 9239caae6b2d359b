"""Triton's HTTP protocol with the binary tensor extension.

The standard library's connections are used rather than `tritonclient.http`: that client belongs to the one
thread that made it, and knows no limit for a single request.
"""

from __future__ import annotations

import http.client
import json
import select
import ssl
import threading
import time
from pathlib import Path
from typing import Any

from autovoice.address import API_KEY_HEADER, ServerAddress
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
)
from autovoice.repository.model_config import protobuf_module

HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_IDLE_CONNECTIONS = 32
_READ_BYTES = 1 << 20
_KINDS = {
    400: FailureKind.REFUSED,
    401: FailureKind.FORBIDDEN,
    403: FailureKind.FORBIDDEN,
    404: FailureKind.UNKNOWN_MODEL,
    413: FailureKind.REFUSED,
    429: FailureKind.BUSY,
    501: FailureKind.REFUSED,
    502: FailureKind.UNREACHABLE,
    503: FailureKind.UNREACHABLE,
    504: FailureKind.TIMEOUT,
}


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
        self._address = address
        self._headers = {} if api_key is None else {API_KEY_HEADER: api_key}
        self._context: ssl.SSLContext | None = None
        if address.tls:
            self._context = ssl.create_default_context(cafile=root_certificates)
            if client_certificate is not None:
                self._context.load_cert_chain(client_certificate, client_key)
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._closed = False

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
        body = [text, *(tensor.data for tensor in request.tensors)]
        headers = {HEADER_LENGTH: str(len(text)), "Content-Type": "application/octet-stream"}
        answer, answer_headers = self._exchange(
            "POST", f"/v2/models/{request.model}/infer", body, headers, timeout
        )
        try:
            return _parse(answer, int(answer_headers.get(HEADER_LENGTH, len(answer))))
        except (ValueError, KeyError, TypeError) as error:
            raise TransportError(FailureKind.BROKEN, f"the answer cannot be read ({error!r})") from error

    def ready(self, timeout: float | None) -> bool:
        """Whether the server is ready; see `Transport.ready`."""
        try:
            self._get("/v2/health/ready", timeout)
        except TransportError as error:
            if error.kind is FailureKind.REFUSED:
                return False
            raise
        return True

    def server_version(self, timeout: float | None) -> tuple[str, str]:
        """Name and version; see `Transport.server_version`."""
        try:
            metadata = json.loads(self._get("/v2", timeout))
            return str(metadata["name"]), str(metadata["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise TransportError(FailureKind.BROKEN, f"the version cannot be read ({error!r})") from error

    def statistics(self, timeout: float | None) -> list[ModelStatistics]:
        """What each model did; see `Transport.statistics`."""
        answer = self._get("/v2/models/stats", timeout)
        try:
            return [
                ModelStatistics(
                    model["name"],
                    int(model["version"]),
                    model["inference_count"],
                    model["execution_count"],
                    {name: Duration(**model["inference_stats"][name]) for name in DURATIONS},
                )
                for model in json.loads(answer)["model_stats"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise TransportError(FailureKind.BROKEN, f"statistics cannot be read ({error!r})") from error

    def _get(self, path: str, timeout: float | None) -> bytes:
        return self._exchange("GET", path, [], {}, timeout)[0]

    def models(self, timeout: float | None) -> dict[str, int]:
        """Names and versions of the models; see `Transport.models`."""
        answer, _ = self._exchange("GET", "/v2/models/stats", [], {}, timeout)
        try:
            return newest((model["name"], model["version"]) for model in json.loads(answer)["model_stats"])
        except (ValueError, KeyError, TypeError) as error:
            raise TransportError(FailureKind.BROKEN, f"the models cannot be read ({error!r})") from error

    def model_config(self, model: str, timeout: float | None) -> Any:
        """The model's config; see `Transport.model_config`."""
        from google.protobuf import json_format

        answer, _ = self._exchange("GET", f"/v2/models/{model}/config", [], {}, timeout)
        try:
            return json_format.Parse(answer, protobuf_module().ModelConfig(), ignore_unknown_fields=True)
        except json_format.ParseError as error:
            raise TransportError(FailureKind.BROKEN, f"the config cannot be read ({error})") from error

    def close(self) -> None:
        """Close idle connections; those in use are closed when their request ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _exchange(
        self,
        method: str,
        path: str,
        body: list[bytes | memoryview],
        headers: dict[str, str],
        timeout: float | None,
    ) -> tuple[bytes, http.client.HTTPMessage]:
        deadline = None if timeout is None else time.monotonic() + timeout
        connection = self._connection()
        try:
            _limit(connection, deadline)
            size = sum(len(part) for part in body)
            connection.request(
                method, path, iter(body), {**self._headers, **headers, "Content-Length": str(size)}
            )
            _limit(connection, deadline)
            response = connection.getresponse()
            content = bytearray()
            # `read` would gather all of it under the limit of a single receipt.
            while part := response.read1(_READ_BYTES):
                content += part
                _limit(connection, deadline)
            if response.length:
                raise http.client.IncompleteRead(bytes(content), response.length)
            response.close()
        except TimeoutError as error:
            connection.close()
            raise TransportError(FailureKind.TIMEOUT, "no answer in time") from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            reason = str(error) or type(error).__name__
            raise TransportError(FailureKind.UNREACHABLE, reason) from error
        except BaseException:  # an interrupt: what is still to come must not answer the next request
            connection.close()
            raise
        self._keep(connection, response)
        if response.status != http.client.OK:
            reason = _reason(bytes(content)) or f"HTTP status {response.status} {response.reason}"
            raise TransportError(_KINDS.get(response.status, FailureKind.BROKEN), reason)
        return bytes(content), response.headers

    def _connection(self) -> http.client.HTTPConnection:
        while True:
            with self._lock:
                if self._closed:
                    raise TransportError(FailureKind.BROKEN, "the connection has been closed")
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                break
            if _is_quiet(connection):
                return connection
            connection.close()
        address = self._address
        if self._context is not None:
            return http.client.HTTPSConnection(address.host, address.port, context=self._context)
        return http.client.HTTPConnection(address.host, address.port)

    def _keep(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        with self._lock:
            keep = not (self._closed or response.will_close) and len(self._idle) < MAX_IDLE_CONNECTIONS
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()


def _parse(answer: bytes, header_length: int) -> WireResponse:
    header = json.loads(answer[:header_length])
    tensors = []
    data = memoryview(answer)[header_length:]
    for output in header["outputs"]:
        size = int(output["parameters"]["binary_data_size"])
        shape = tuple(int(axis) for axis in output["shape"])
        tensors.append(WireTensor(output["name"], output["datatype"], shape, data[:size]))
        data = data[size:]
    return WireResponse(header.get("id", ""), tuple(tensors))


def _limit(connection: http.client.HTTPConnection, deadline: float | None) -> None:
    """Let the connection's next step take no longer than what is left."""
    left = None if deadline is None else deadline - time.monotonic()
    if left is not None and left <= 0:
        raise TimeoutError
    connection.timeout = left
    if connection.sock is not None:
        connection.sock.settimeout(left)


def _is_quiet(connection: http.client.HTTPConnection) -> bool:
    """Whether an idle connection is still good: one with something to read was closed by the server."""
    if connection.sock is None:
        return False
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN | select.POLLERR | select.POLLHUP)
    return not poll.poll(0)


def _reason(answer: bytes) -> str:
    try:
        lines = str(json.loads(answer)["error"]).strip().splitlines()
    except (ValueError, KeyError, TypeError):
        return ""
    return lines[0] if lines else ""


TRANSPORT = HttpTransport
