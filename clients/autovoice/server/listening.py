"""Makes a server that is ending refuse new connections."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket

import psutil

_PIDFD_GETFD = 438  # the system call's number on every architecture of Linux
_libc = ctypes.CDLL(None, use_errno=True)


def refuse_connections(pid: int, port: int) -> contextlib.ExitStack:
    """Have the kernel refuse what connects to a TCP port of a child process; its open connections go on.

    Triton 2.51 accepts connections over HTTP until its process ends, and resets those that come after it was
    told to stop. Refused clients know that nothing was taken and may turn to another server.

    The listening socket is stopped, and then connected to a socket that sends nothing: the process would
    otherwise be woken again and again by a socket that has nothing to accept.

    Args:
        pid: of the process.
        port: that it listens to.

    Returns:
        What has to stay open as long as the process lives.

    Raises:
        OSError: the process ended, or the kernel keeps its sockets from this one.
    """
    held = contextlib.ExitStack()
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error as error:
        raise OSError(str(error)) from error
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
            with _copy_of(pid, connection.fd) as listener:
                family = listener.family
                silent = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
                silent.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
                silent.listen()
                address = silent.getsockname()
                listener.shutdown(socket.SHUT_RD)
                with contextlib.suppress(BlockingIOError):
                    listener.connect(address)
    return held


def _copy_of(pid: int, number: int) -> socket.socket:
    """A file descriptor of another process in this one."""
    process = os.pidfd_open(pid)
    try:
        copy = _libc.syscall(_PIDFD_GETFD, process, number, 0)
    finally:
        os.close(process)
    if copy < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return socket.socket(fileno=copy)
