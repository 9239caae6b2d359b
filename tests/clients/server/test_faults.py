"""Servers that are killed, reloaded, locked and given broken models."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from triton_calls import (
    Array,
    Client,
    Connect,
    cut,
    grpc_client,
    http_client,
    hum,
    joined,
    local_options,
    voice,
)
from tritonclient.utils import InferenceServerException

from autovoice.address import API_KEY_HEADER, GRPC_HEADER_PREFIX
from autovoice.errors import ConfigurationError
from autovoice.server.server import TritonServer

FEEDS = {"SOURCE_AUDIO": hum(4800), **voice(0)}
STREAM = "voice_conversion_stream"
IDLE_SECONDS = 1
PATIENCE = 60.0  # never waited for when all is well


@pytest.fixture(scope="module")
def copy(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that tests may change, in which sequences expire quickly."""
    folder = tmp_path_factory.mktemp("copy") / "models"
    shutil.copytree(repository, folder, symlinks=True)
    for config in folder.glob("*_stream/config.pbtxt"):
        text = config.read_text()
        config.write_text(text.replace("microseconds: 30000000", f"microseconds: {IDLE_SECONDS * 1_000_000}"))
    return folder


@pytest.fixture(scope="module")
def fragile(installed: None, copy: Path, cache: Path) -> Iterator[TritonServer]:
    with TritonServer(local_options(copy), cache=cache) as running:
        yield running


def shared_memory(pid: int) -> set[Path]:
    """Regions of the backend processes below a process; other servers may run on this machine."""
    commands = (" ".join(child.cmdline()) for child in psutil.Process(pid).children(recursive=True))
    names = {name for command in commands for name in re.findall(r"triton_\w+_shm_region_[\w-]+", command)}
    return {Path("/dev/shm", name) for name in names}


def backend_processes(server: TritonServer, model: str) -> list[psutil.Process]:
    assert server.process is not None
    children = psutil.Process(server.process.pid).children(recursive=True)
    living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in living if any(f"/{model}/" in part for part in child.cmdline())]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def feeds_of(caller: int) -> dict[str, Array]:
    """What a caller sends: the same words as all others, for another voice."""
    return {"SOURCE_AUDIO": hum(4800), **voice(caller)}


def conversions(client: Client, callers: int) -> list[Array]:
    """What each caller should get."""
    return [client.infer("voice_conversion", feeds_of(n))["CONVERTED_AUDIO"] for n in range(callers)]


class Callers:
    """Threads that convert without a pause, each into its own voice, and keep every answer.

    Args:
        server: which they call.
        count: how many.

    Attributes:
        answers: a caller's number and what it got.
        errors: what those said that got none.
    """

    def __init__(self, server: TritonServer, count: int) -> None:
        self.answers: list[tuple[int, Array]] = []
        self.errors: list[str] = []
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads), "a caller hangs"

    def _run(self, number: int) -> None:
        with grpc_client(self._server.options) as client:
            while not self._stop.is_set():
                try:
                    answer = client.infer("voice_conversion", feeds_of(number), client_timeout=30)
                    self.answers.append((number, answer["CONVERTED_AUDIO"]))
                except InferenceServerException as error:
                    self.errors.append(str(error))

    def wait_for_answers(self, more: int) -> None:
        wanted = len(self.answers) + more
        until(lambda: len(self.answers) >= wanted)


def test_killed_backend_process_comes_back(fragile: TritonServer) -> None:
    with grpc_client(fragile.options) as client:
        expected = conversions(client, 4)
        with Callers(fragile, 4) as callers:
            callers.wait_for_answers(4)
            (victim,) = backend_processes(fragile, "synthesizer")
            victim.kill()
            callers.wait_for_answers(8)
        for number, answer in callers.answers:
            np.testing.assert_allclose(answer, expected[number], atol=1e-4, rtol=0)
    assert fragile.is_ready()


def test_stream_whose_backend_died_is_told_so(fragile: TritonServer) -> None:
    audio = hum(4800)
    chunks = cut(audio, [480])
    with grpc_client(fragile.options) as client:
        (expected,) = client.infer("voice_conversion", FEEDS).values()
        client.infer(STREAM, {**FEEDS, "SOURCE_AUDIO": chunks[0]}, sequence_id=7, sequence_start=True)
        (victim,) = backend_processes(fragile, "converter_stream")
        victim.kill()

        def go_on() -> None:
            # The first request may find the process gone, the next a new one without the state.
            for chunk in chunks[1:3]:
                client.infer(STREAM, {**FEEDS, "SOURCE_AUDIO": chunk}, sequence_id=7, client_timeout=30)

        with pytest.raises(InferenceServerException):
            go_on()

        def again() -> bool:
            try:
                made = client.stream(voice(0), chunks, sequence=8)
            except InferenceServerException:
                return False
            np.testing.assert_allclose(joined(made, 4800), expected, atol=1e-4, rtol=0)
            return True

        until(again)


def test_idle_sequence_gives_its_place_away(fragile: TritonServer) -> None:
    chunk = {**FEEDS, "SOURCE_AUDIO": hum(480)}
    with grpc_client(fragile.options) as client:
        for number in range(100, 140):
            client.infer(STREAM, chunk, sequence_id=number, sequence_start=True)
        time.sleep(4 * IDLE_SECONDS)
        for number in range(100, 140):
            with pytest.raises(InferenceServerException, match="START"):
                client.infer(STREAM, chunk, sequence_id=number)
        client.infer(STREAM, chunk, sequence_id=100, sequence_start=True, sequence_end=True)
    assert fragile.is_ready()


def halve_output(source: Path, target: Path) -> None:
    """A new version of the synthesizer that can be told from the old one: half as loud."""
    model = onnx.load(source)
    output = next(value for value in model.graph.output if value.name == "AUDIO")
    for node in model.graph.node:
        node.output[:] = ["LOUD" if name == output.name else name for name in node.output]
        node.input[:] = ["LOUD" if name == output.name else name for name in node.input]
    half = numpy_helper.from_array(np.array(0.5, np.float32), "HALF")
    assert half.data_type == TensorProto.FLOAT
    model.graph.initializer.append(half)
    model.graph.node.append(helper.make_node("Mul", ["LOUD", "HALF"], [output.name]))
    target.parent.mkdir()
    onnx.save(model, target)


def test_new_version_under_load(
    fragile: TritonServer, copy: Path, record_property: Callable[[str, object], None]
) -> None:
    """20 clients convert while a version is rolled out and back: every answer is that of one of the two."""
    folder = copy / "synthesizer"
    with grpc_client(fragile.options) as client:
        old = conversions(client, 20)
        with Callers(fragile, 20) as callers:
            callers.wait_for_answers(20)
            halve_output(folder / "1" / "model.onnx", folder / "2" / "model.onnx")
            client.connection.load_model("synthesizer")
            callers.wait_for_answers(40)
            new = conversions(client, 20)
            shutil.rmtree(folder / "2")
            client.connection.load_model("synthesizer")
            callers.wait_for_answers(40)
        back = conversions(client, 20)
    for before, between, after in zip(old, new, back, strict=True):
        np.testing.assert_allclose(between, before / 2, atol=1e-5, rtol=0)
        np.testing.assert_allclose(after, before, atol=1e-5, rtol=0)
    for number, answer in callers.answers:
        assert min(np.abs(answer - known[number]).max() for known in (old, new)) < 1e-4
    record_property("answers", len(callers.answers))
    record_property("failures", len(callers.errors))
    assert callers.errors == []


def test_killed_server_leaves_nothing_behind(installed: None, copy: Path, cache: Path) -> None:
    with TritonServer(local_options(copy), cache=cache) as server:
        assert server.process is not None
        regions = shared_memory(server.process.pid)
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert children
        assert any(region.exists() for region in regions)
        with Callers(server, 2) as callers:
            callers.wait_for_answers(4)
            server.process.kill()
            assert server.wait() == -signal.SIGKILL
            until(lambda: len(callers.errors) > 2)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert not any(region.exists() for region in regions)


KEY, CONTROL_KEY = "inference-0123456789", "control-0123456789"
HEADERS: dict[Connect, str] = {
    grpc_client: GRPC_HEADER_PREFIX + API_KEY_HEADER,
    http_client: API_KEY_HEADER,
}


@pytest.fixture(scope="module")
def locked(installed: None, copy: Path, cache: Path) -> Iterator[TritonServer]:
    """Asks for keys; its repository lies under a path with a space and is overridden on the way."""
    spaced = copy.parent / "with a space"
    spaced.symlink_to(copy)
    options = local_options(spaced, api_key=KEY, control_key=CONTROL_KEY, metrics=False, threads=2)
    with TritonServer(options, cache=cache) as running:
        yield running


@pytest.mark.parametrize("connect", HEADERS, ids=["grpc", "http"])
def test_protected_calls_need_the_key(locked: TritonServer, connect: Connect) -> None:
    def infer(client: Client, **options: object) -> None:
        client.infer("voice_conversion", FEEDS, **options)

    def load(client: Client, **options: object) -> None:
        client.connection.load_model("target_pitch", **options)

    def statistics(client: Client, **options: object) -> None:
        client.connection.get_inference_statistics(**options)

    def shared(client: Client, **options: object) -> None:
        client.connection.get_system_shared_memory_status(**options)

    header = HEADERS[connect]
    with connect(locked.options) as client:
        assert client.connection.is_server_ready()
        for call, right, wrong in (
            (infer, KEY, CONTROL_KEY),
            (statistics, KEY, CONTROL_KEY),
            (shared, KEY, CONTROL_KEY),
            (load, CONTROL_KEY, KEY),
        ):
            for headers in (None, {header: wrong}, {header: ""}):
                with pytest.raises(InferenceServerException, match=r"key|restricted|header|not match|access"):
                    call(client, headers=headers)
            call(client, headers={header: right})


def test_overrides_reach_the_server(locked: TritonServer) -> None:
    with grpc_client(locked.options) as client:
        config = client.connection.get_model_config("synthesizer", as_json=True)["config"]
    assert config["parameters"]["intra_op_thread_count"]["string_value"] == "2"


def autovoice(*arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "autovoice", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


ANY_PORT = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


def test_serve_says_when_it_is_ready_and_ends_on_a_signal(
    installed: None, repository: Path, cache: Path
) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = ("serve", "--repository", str(repository), *ANY_PORT, "--log-format", "json")
    process = autovoice(*command, env=environment)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("ready: grpc://127.0.0.1:")
        regions = shared_memory(process.pid)
        assert regions
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, log
    models = len(list(repository.glob("*/config.pbtxt")))
    assert sum('"loaded ' in line for line in log.splitlines()) == models
    assert all(line.startswith("{") for line in log.splitlines())
    assert not any(region.exists() for region in regions)


def test_serve_fails_with_the_servers_own_reason(installed: None, repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "models"
    shutil.copytree(repository / "target_pitch", broken / "target_pitch")
    model = broken / "target_pitch" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:100])
    process = autovoice("serve", "--repository", str(broken), *ANY_PORT)
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    last = log.splitlines()[-1]
    assert last.startswith("autovoice: model target_pitch did not load: ")
    assert "model.onnx" in last or "protobuf" in last.lower()


def test_serve_passes_on_what_the_server_says_of_its_options(installed: None, repository: Path) -> None:
    process = autovoice("serve", "--repository", str(repository), *ANY_PORT, "--", "--no-such-option")
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "no-such-option" in log.splitlines()[-1]


def test_port_in_use_is_named(fragile: TritonServer, repository: Path) -> None:
    port = fragile.options.http_port
    with pytest.raises(ConfigurationError, match=f"port {port} of 127.0.0.1 is in use"):
        TritonServer(local_options(repository, http_port=port))
