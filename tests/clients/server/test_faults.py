"""Servers whose backends are killed and whose models are replaced."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from triton_calls import (
    PATIENCE,
    Array,
    Client,
    backend_processes,
    cut,
    grpc_client,
    hum,
    joined,
    local_options,
    until,
    voice,
)
from tritonclient.utils import InferenceServerException

from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server
FEEDS = {"SOURCE_AUDIO": hum(4800), **voice(0)}
STREAM = "voice_conversion_stream"
IDLE_SECONDS = 1


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
    assert fragile.process is not None
    with grpc_client(fragile.options) as client:
        expected = conversions(client, 4)
        with Callers(fragile, 4) as callers:
            callers.wait_for_answers(4)
            (victim,) = backend_processes(fragile.process.pid, "synthesizer")
            victim.kill()
            callers.wait_for_answers(8)
        for number, answer in callers.answers:
            np.testing.assert_allclose(answer, expected[number], atol=1e-4, rtol=0)
    assert fragile.is_ready()


def test_stream_whose_backend_died_is_told_so(fragile: TritonServer) -> None:
    assert fragile.process is not None
    audio = hum(4800)
    chunks = cut(audio, [480])
    with grpc_client(fragile.options) as client:
        (expected,) = client.infer("voice_conversion", FEEDS).values()
        client.infer(STREAM, {**FEEDS, "SOURCE_AUDIO": chunks[0]}, sequence_id=7, sequence_start=True)
        (victim,) = backend_processes(fragile.process.pid, "converter_stream")
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
    stage, ensemble = (copy / name / "config.pbtxt" for name in ("synthesizer", "voice_conversion"))
    before = stage.read_text(), ensemble.read_text()
    step = 'model_name: "synthesizer"\n    model_version: '
    with grpc_client(fragile.options) as client:

        def serve(versions: list[int], pinned: int) -> None:
            stage.write_text(before[0].replace("versions: [1]", f"versions: {versions}"))
            ensemble.write_text(before[1].replace(f"{step}1", f"{step}{pinned}"))
            for name in ("synthesizer", "voice_conversion"):
                client.connection.load_model(name)

        old = conversions(client, 20)
        with Callers(fragile, 20) as callers:
            callers.wait_for_answers(20)
            halve_output(folder / "1" / "model.onnx", folder / "2" / "model.onnx")
            serve([1, 2], 2)
            callers.wait_for_answers(40)
            new = conversions(client, 20)
            serve([1, 2], 1)
            shutil.rmtree(folder / "2")
            serve([1], 1)
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
