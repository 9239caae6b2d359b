"""Where a server is: `grpc://host:port`, `http://host:port`, and `grpcs://`, `https://` with TLS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from autovoice.errors import ConfigurationError

API_KEY_HEADER = "autovoice-key"
RELEASE_HEADER = "autovoice-release"  # the release that a request has to go to, or that an answer came from
SEQUENCE_HEADER = "autovoice-sequence"  # the sequence of a request: all of its chunks go to one replica
RELEASE_GONE = "no such release is served"  # in what a proxy answers, HTTP 410 or gRPC UNAVAILABLE
GRPC_HEADER_PREFIX = "triton-grpc-protocol-"  # before the header in gRPC metadata
_DEFAULT_PORTS = {"http": 8000, "grpc": 8001}


@dataclass(frozen=True)
class ServerAddress:
    """A server's address.

    Attributes:
        protocol: `"grpc"` or `"http"`.
        host: name or address, IPv6 without brackets.
        port: TCP port.
        tls: whether the connection is encrypted.
    """

    protocol: Literal["grpc", "http"]
    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"{self.protocol}{'s' if self.tls else ''}://{self.authority}"

    @property
    def authority(self) -> str:
        """`host:port`, as both protocols write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(backend: str) -> ServerAddress:
    """Read an address; the port may be left out for Triton's own (HTTP 8000, gRPC 8001).

    Raises:
        ConfigurationError: for what is no such address.
    """
    if not isinstance(backend, str):
        raise _refusal(backend)
    try:
        parts = urlsplit(backend)
        port = parts.port
    except ValueError:
        raise _refusal(backend) from None
    protocol = parts.scheme.removesuffix("s")
    extra = parts.path.rstrip("/") or parts.query or parts.fragment or parts.username
    if protocol not in _DEFAULT_PORTS or not parts.hostname or extra or port == 0:
        raise _refusal(backend)
    return ServerAddress(
        "grpc" if protocol == "grpc" else "http",
        parts.hostname,
        _DEFAULT_PORTS[protocol] if port is None else port,
        parts.scheme.endswith("s"),
    )


def _refusal(backend: str) -> ConfigurationError:
    return ConfigurationError(
        f"backend is {backend!r}; use 'embedded', 'grpc://host:port' or 'http://host:port' (with TLS "
        "'grpcs://' or 'https://')"
    )
