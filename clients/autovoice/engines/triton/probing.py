"""What listens at an address that no request got through to: the address may name the wrong port or protocol.

What gRPC and TLS libraries report of that, such as "Socket closed", is the same for most mistakes.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from autovoice.address import ServerAddress

PROBE_SECONDS = 2.0  # for all attempts together
_HTTP1_REQUEST = b"GET /v2/health/live HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"
_HTTP2_START = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # and empty SETTINGS
_HTTP2_SETTINGS = 4  # type of the frame that an HTTP/2 server sends first, its fourth byte
_ALPN = {"http": "http/1.1", "grpc": "h2"}
_NAMES = {"http": "HTTP", "grpc": "gRPC"}
_SHOWN_BYTES = 40


def explain_protocol(address: ServerAddress) -> str | None:
    """Say what else than the address names is spoken there, and the address that would fit.

    Args:
        address: that did not answer.

    Returns:
        A clause for an error message; None when nothing listens, nothing answers, or the address is right.
    """
    other: Literal["http", "grpc"] = "grpc" if address.protocol == "http" else "http"
    # TLS first where the address has none: some TLS servers answer in plain HTTP that they want TLS.
    plain = [replace(address, protocol=name, tls=False) for name in (address.protocol, other)]
    encrypted = [replace(address, protocol=name, tls=True) for name in (address.protocol, other)]
    deadline = time.monotonic() + PROBE_SECONDS
    heard = b""
    has_tls = False
    for candidate in encrypted + plain:
        if has_tls and not candidate.tls:
            break
        try:
            answer = _ask(candidate, deadline)
        except (ConnectionRefusedError, socket.gaierror):
            return None
        except ssl.SSLError as error:
            has_tls = has_tls or "ALERT" in (error.reason or "")  # TLS it is, but it wants something else
            continue
        except OSError:
            continue
        has_tls = has_tls or candidate.tls
        if _speaks(candidate.protocol, answer):
            return None if candidate == address else _difference(address, candidate)
        heard = answer or heard
    if has_tls:  # which a server breaks off that asks clients for a certificate
        return None if address.tls else _difference(address, replace(address, tls=True))
    if not heard:
        return None
    shown = heard[:_SHOWN_BYTES].decode("ascii", "backslashreplace").strip()
    return f"what listens there is no Triton server (it says {shown!r}); check the port"


def _difference(address: ServerAddress, found: ServerAddress) -> str:
    there, here = _NAMES[found.protocol], _NAMES[address.protocol]
    if found.tls != address.tls:
        there += " with TLS" if found.tls else " without TLS"
        here += " with TLS" if address.tls else " without TLS"
    return f"what listens there speaks {there}, not {here}; use {found}"


def _ask(address: ServerAddress, deadline: float) -> bytes:
    """The first bytes of an answer to the start of a conversation in the protocol of the address.

    Raises:
        OSError: there is none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    with socket.create_connection((address.host, address.port), left) as plain:
        connection: socket.socket = plain
        if address.tls:
            # Nothing secret is sent: what is asked is whether there is TLS at all.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.set_alpn_protocols([_ALPN[address.protocol]])
            connection = context.wrap_socket(plain, server_hostname=address.host)
        with connection:
            is_http = address.protocol == "http"
            connection.sendall(_HTTP1_REQUEST % address.authority.encode() if is_http else _HTTP2_START)
            answer = b""
            with suppress(OSError):  # what came before the end counts
                while len(answer) < 9 and (more := connection.recv(_SHOWN_BYTES)):
                    answer += more
            return answer


def _speaks(protocol: str, answer: bytes) -> bool:
    if protocol == "http":
        return answer.startswith(b"HTTP/1.")
    return len(answer) >= 9 and answer[3] == _HTTP2_SETTINGS and not answer.startswith(b"HTTP")
