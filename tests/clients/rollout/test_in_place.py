"""Rollouts inside one server: no request fails or mixes releases, and a refused release changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import urllib3
from google.protobuf import text_format
from rollout_calls import (
    HEADER,
    Connection,
    Load,
    Refused,
    RolloutProcess,
    flip_byte,
    under_load,
    write_repository,
)
from small_releases import LOOKAHEAD, RATE, SPEAKER, expected, write_release
from triton_calls import Client, grpc_client, http_client, kill, local_options, until

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.cli.main import run
from autovoice.errors import ReleaseError, RolloutError, UnavailableError
from autovoice.releases.publishing import publish
from autovoice.repository.model_config import read_config
from autovoice.rollout.in_place import InPlace
from autovoice.rollout.promotion import promote, roll_back
from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server
SOURCE = np.random.default_rng(7).uniform(-0.5, 0.5, 4800).astype(np.float32)
FEEDS = {
    "SOURCE_AUDIO": SOURCE[None],
    "TARGET_EMBEDDING": SPEAKER[None],
    "PITCH_SHIFT": np.zeros((1, 1), np.float32),
}
CLIENTS = (grpc_client, http_client, grpc_client, http_client)


class Rollouts:
    """A server with two releases, in turn.

    Args:
        server: that serves the view.
        models: the releases in it.
    """

    def __init__(self, server: TritonServer, models: InPlace, releases: Path, view: Path) -> None:
        self.server = server
        self.models = models
        self.releases = releases
        self.view = view
        self.url = server.options.http_url

    @property
    def number(self) -> int:
        """The release that answers."""
        (number,) = set(self.models.serving(self.url).values())
        return number

    def roll_out(self, number: int) -> float:
        self.models.add(number, self.url)
        return self.models.switch(number, self.url)

    def pipeline(self, **options: object) -> VoiceConversionPipeline:
        settings: dict[str, object] = {"backend": self.server.options.grpc_url, "fallback": "raise"}
        return VoiceConversionPipeline(PipelineConfig(**(settings | options)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def _rollouts(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollouts]:
    folder = tmp_path_factory.mktemp("in-place")
    for number in (1, 2, 3):
        write_release(folder / "releases", number)
    models = InPlace(folder / "releases", folder / "view")
    models.start(1)
    with TritonServer(local_options(folder / "view"), cache=cache) as server:
        yield Rollouts(server, models, folder / "releases", folder / "view")
        kill(server)  # it would wait for the sequences that a switch cut off


@pytest.fixture
def rollouts(_rollouts: Rollouts) -> Rollouts:
    """With release 1 answering, whatever the test before did."""
    _rollouts.roll_out(1)
    return _rollouts


def release_of(answer: np.ndarray, source: np.ndarray = SOURCE) -> int:
    """The release that made an answer, 0 where it is none's."""
    return next((n for n in (1, 2, 3) if np.array_equal(answer.reshape(-1), expected(source, n))), 0)


@contextmanager
def load(server: TritonServer, outcomes: list[object]) -> Iterator[None]:
    """Clients that ask without a pause; the release of every answer, or what went wrong."""
    stop = threading.Event()

    def ask(client: Client) -> None:
        while not stop.is_set():
            try:
                outcomes.append(release_of(client.infer("voice_conversion", FEEDS)["CONVERTED_AUDIO"]))
            except Exception as error:  # which one is what the tests look at
                outcomes.append(error)

    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server.options)) for connect in CLIENTS]
        threads = [threading.Thread(target=ask, args=(client,), daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        interval = sys.getswitchinterval()
        sys.setswitchinterval(interval / 10)  # who switches is a process of its own elsewhere
        try:
            yield
        finally:
            sys.setswitchinterval(interval)
            stop.set()
            for thread in threads:
                thread.join(60)


def wait_for(outcomes: list[object], count: int, server: TritonServer) -> None:
    wanted = len(outcomes) + count
    while len(outcomes) < wanted:
        assert server.process is not None
        assert server.process.poll() is None
        threading.Event().wait(0.01)


def roll_out_under_load(rollouts: Rollouts, numbers: list[int], between: int) -> list[float]:
    """The releases one after another, each with at least `between` requests; how long the switches took."""
    outcomes: list[object] = []
    seconds = []
    with load(rollouts.server, outcomes):
        for number in numbers:
            wait_for(outcomes, between, rollouts.server)
            seconds.append(rollouts.roll_out(number))
            assert rollouts.models.resident == sorted({number, *rollouts.models.resident})
            assert len(rollouts.models.resident) == 2
        wait_for(outcomes, between, rollouts.server)
    assert [each for each in outcomes if each not in (1, 2, 3)] == []
    assert set(outcomes) == {1, *numbers}
    return seconds


def test_models_that_are_asked_alone_are_of_the_release_too(rollouts: Rollouts) -> None:
    with http_client(rollouts.server.options) as client:
        for number in (2, 1):
            rollouts.roll_out(number)
            louder = client.infer("alone", {"SOURCE_AUDIO": SOURCE[None]})["LOUDER"]
            np.testing.assert_array_equal(louder[0], SOURCE * 2.0 ** (number - 1))


def test_a_live_stream_goes_on_with_the_new_release(rollouts: Rollouts) -> None:
    """Its audio so far is played to the new release, which then knows all that went before."""
    source = np.random.default_rng(1).uniform(-0.5, 0.5, 4 * SOURCE.size).astype(np.float32)
    first, second = source[: SOURCE.size], source[SOURCE.size :]
    with rollouts.pipeline() as pipeline, pipeline.stream(SPEAKER) as stream:
        before = stream.push(first)
        rollouts.roll_out(2)
        after = np.concatenate((stream.push(second), stream.flush()))
    np.testing.assert_array_equal(before, expected(source, 1)[: SOURCE.size - LOOKAHEAD])
    np.testing.assert_array_equal(after, expected(source, 2)[before.size :])


def test_a_long_conversion_is_all_of_one_release(rollouts: Rollouts) -> None:
    source = np.random.default_rng(2).uniform(-0.5, 0.5, 5 * RATE).astype(np.float32)
    with rollouts.pipeline(block_seconds=1.0) as pipeline:

        def switch(progress: object) -> None:
            if getattr(progress, "chunk", 0) == 3 and rollouts.number == 1:
                rollouts.roll_out(2)

        result = pipeline.convert_detailed(
            source, SPEAKER, None, RATE, input_gain_db=0.0, progress_callback=switch
        )
    assert release_of(result.audio, source) == result.release == 2


def damage_file(release: Path) -> None:
    (release / "back" / release.name / "model.onnx").write_bytes(b"no model")


def rename_tensor(release: Path) -> None:
    edit(release / "voice_conversion", lambda config: config.output[0].__setattr__("name", "AUDIO"))


def change_lookahead(release: Path) -> None:
    edit(
        release / "voice_conversion",
        lambda config: config.parameters["lookahead_samples"].__setattr__("string_value", "0"),
    )


def break_step(release: Path) -> None:
    edit(
        release / "voice_conversion_stream",
        lambda config: config.ensemble_scheduling.step[0].input_map.__setitem__("NOTHING", "SOURCE_AUDIO"),
    )


def edit(model: Path, change: Callable[[object], None]) -> None:
    config = read_config(model / "config.pbtxt")
    change(config)
    (model / "config.pbtxt").write_text(text_format.MessageToString(config))


@pytest.mark.parametrize(
    ("number", "spoil", "error", "reason"),
    [
        (4, damage_file, UnavailableError, "back"),
        (5, rename_tensor, ReleaseError, "voice_conversion"),
        (6, change_lookahead, ReleaseError, "voice_conversion"),
        (7, break_step, UnavailableError, "NOTHING"),
    ],
)
def test_what_cannot_be_rolled_out_changes_nothing(
    rollouts: Rollouts, number: int, spoil: Callable[[Path], None], error: type[Exception], reason: str
) -> None:
    spoil(write_release(rollouts.releases, number))
    outcomes: list[object] = []
    with load(rollouts.server, outcomes):
        with pytest.raises(error, match=reason):
            rollouts.roll_out(number)
        wait_for(outcomes, 8, rollouts.server)
    assert set(outcomes) == {1}
    assert rollouts.number == rollouts.models.wanted == 1
    assert number not in rollouts.models.resident


def test_the_release_that_answers_stays_loaded(rollouts: Rollouts) -> None:
    with pytest.raises(ReleaseError, match="promote another"):
        rollouts.models.remove(1, rollouts.url)
    with pytest.raises(ReleaseError, match="add it first"):
        rollouts.models.switch(9, rollouts.url)
    assert rollouts.number == 1


def test_a_server_started_again_answers_with_the_same_release(rollouts: Rollouts) -> None:
    """The files say what the server answers with: the embedded runtime reads them as Triton does."""
    for number in (2, 1):
        rollouts.roll_out(number)
        with VoiceConversionPipeline(PipelineConfig(repository=rollouts.view, threads=1)) as pipeline:
            made = pipeline.convert(SOURCE, SPEAKER, None, RATE, input_gain_db=0.0)
        assert release_of(made) == rollouts.models.wanted == number


def test_no_request_fails_or_mixes_releases(rollouts: Rollouts) -> None:
    """Forward, back to the one before, and to a third."""
    roll_out_under_load(rollouts, [2, 1, 3], 20)


@pytest.mark.slow
def test_eight_rollouts_under_load(rollouts: Rollouts) -> None:
    seconds = roll_out_under_load(rollouts, [2, 1, 3, 1, 2, 3, 2, 1], 300)
    print(f"switches of {', '.join(f'{each * 1e3:.0f}' for each in seconds)} ms")
    assert max(seconds) <= 0.1


def publish_mark(releases: Path, number: int) -> None:
    """Publish a release of one model; 5 has another batch size, and 6 does not load."""
    source = write_repository(releases.parent / f"source-{number}", number)
    shutil.rmtree(source / "count")
    config = source / "mark" / "config.pbtxt"
    if number == 5:
        config.write_text(config.read_text().replace("max_batch_size: 8", "max_batch_size: 4"))
    if number == 6:
        (source / "mark" / "1" / "model.onnx").write_bytes(b"no model")
    publish(source, releases, number)


@pytest.fixture(scope="module")
def _service(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RolloutProcess]:
    folder = tmp_path_factory.mktemp("in-place-service")
    releases = folder / "releases"
    publish_mark(releases, 1)
    options = ("--in-place", "--log-level", "info")
    process = RolloutProcess(folder / "rollout", environment, *options, releases=releases)
    try:
        process.wait_ready()
        for number in (2, 3, 4, 5, 6):
            publish_mark(releases, number)
        flip_byte(releases / "4" / "mark" / "4" / "model.onnx")
        yield process
    finally:
        process.kill()


@pytest.fixture
def service(_service: RolloutProcess) -> RolloutProcess:
    """`autovoice serve --rollout --in-place` with release 1 promoted."""
    if _service.folder.read().stable != 1:
        promote(_service.folder, 1)
    return _service


def command(service: RolloutProcess, *arguments: str) -> int:
    """`autovoice rollout` without the time that a process takes; returns its exit code."""
    return run(["rollout", *arguments, "--rollout", str(service.folder.path)])


def require_answers_of(load: Load, numbers: set[int]) -> None:
    """No request failed, and each answer is wholly of one of these releases, as its version says."""
    assert [repr(error) for _, error in load.failures] == []
    assert {(answer.mark, answer.version, answer.release) for _, answer in load.answers} == {
        (number, str(number), None) for number in numbers
    }


def is_answered(service: RolloutProcess, number: int, headers: dict[str, str] | None = None) -> bool:
    """Whether a release answers over both protocols."""
    try:
        answers = [
            Connection(service.urls[protocol]).infer("mark", 5.0, headers) for protocol in ("http", "grpc")
        ]
    except (Refused, grpc.RpcError, urllib3.exceptions.HTTPError):
        return False
    return {(answer.mark, answer.version) for answer in answers} == {(number, str(number))}


def test_command_promotes_and_rolls_back_in_one_server(
    service: RolloutProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = service.folder.servers()[1].pid
    with under_load(service.urls, offline=4, live=0, pause=0.02) as load:
        until(lambda: load.requests > 50)
        for arguments, number in ((("promote", "2"), 2), (("rollback",), 1), (("promote", "3"), 3)):
            assert command(service, *arguments) == 0
            told = capsys.readouterr().out
            assert told == f"release {number} is promoted; release {number} has all requests\n"
            assert is_answered(service, number)
            reached = load.requests
            until(lambda reached=reached: load.requests > reached + 50)  # type: ignore[misc]
    require_answers_of(load, {1, 2, 3})
    servers = service.folder.servers()
    assert {number: (entry.pid, entry.ready) for number, entry in servers.items()} == {
        1: (pid, False),
        3: (pid, True),
    }
    events = [(event.event, event.release) for event in service.folder.history()[-9:]]
    assert [event for event in events if event[0] in ("promoted", "rolled back")] == [
        ("promoted", 2),
        ("rolled back", 1),
        ("promoted", 3),
    ]
    assert command(service, "status") == 0
    status = capsys.readouterr().out.splitlines()
    assert status[0] == "release 3 is promoted"
    assert [line.split()[:4] for line in status[-2:]] == [
        ["1", "0", "%", "loaded"],
        ["3", "100", "%", "ready"],
    ]


def test_header_leads_to_the_promoted_release_alone(service: RolloutProcess) -> None:
    promote(service.folder, 3)
    assert is_answered(service, 3, {HEADER: "3"})
    for gone in ("1", "2"):
        with pytest.raises(Refused, match=r"410.*no such release is served here any more"):
            Connection(service.urls["http"]).infer("mark", 5.0, {HEADER: gone})
        with pytest.raises(grpc.RpcError, match="no such release is served here any more"):
            Connection(service.urls["grpc"]).infer("mark", 5.0, {HEADER: gone})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["2", "--canary", "10,100"], "leave out --canary, --hold and --shadow"),
        (["2", "--hold", "1s"], "leave out --canary, --hold and --shadow"),
        (["2", "--shadow", "10"], "leave out --canary, --hold and --shadow"),
        (["4"], "mark/4/model.onnx was changed"),
        (["5"], "has other tensors than the stable release 1 (mark)"),
        (["6"], "release 6 is not on trial any more: the server answered 400"),
    ],
)
def test_command_refuses_what_cannot_be_rolled_out(
    service: RolloutProcess, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = service.folder.servers()[1].pid
    assert command(service, "promote", *arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert reason in error
    assert error.count("\n") == 1
    state = service.folder.read()
    assert (state.stable, state.candidate, state.share) == (1, None, 0)
    assert is_answered(service, 1)
    assert service.folder.servers()[1].pid == pid
    until(lambda: 6 not in service.folder.servers())  # which follows


def test_server_that_crashes_comes_back_with_the_promoted_release(service: RolloutProcess) -> None:
    promote(service.folder, 3)
    pid = service.folder.servers()[3].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: service.folder.servers()[3].pid != pid and service.folder.servers()[3].ready)
    until(lambda: is_answered(service, 3))
    roll_back(service.folder)
    assert is_answered(service, 1)


def test_server_that_a_release_ends_comes_back_without_it(service: RolloutProcess) -> None:
    pid = service.folder.servers()[1].pid
    assert pid is not None
    service.folder.set_candidate(2, (100,), 0.0, 0)
    until(lambda: (service.folder.path / "view" / "mark.2").is_dir())
    os.kill(pid, signal.SIGKILL)
    until(lambda: service.folder.history()[-1].event == "rolled back")
    until(lambda: service.folder.servers()[1].pid != pid and service.folder.servers()[1].ready)
    until(lambda: is_answered(service, 1))
    assert service.folder.read().stable == 1
    assert 2 not in service.folder.servers()
    assert not (service.folder.path / "view" / "mark.2").exists()


@pytest.mark.slow
def test_eight_rollouts_of_the_service_under_load(service: RolloutProcess) -> None:
    with under_load(service.urls, offline=10, live=0) as load:
        for number in (2, 1) * 4:
            reached = load.requests
            until(lambda reached=reached: load.requests > reached + 300)  # type: ignore[misc]
            promote(service.folder, number)
    require_answers_of(load, {1, 2})
    assert load.requests >= 2500
    switches = [int(found) for found in re.findall(r"after a switch of (\d+) ms", "".join(service.log))][-8:]
    print(f"{load.requests} requests, 0 failed; switches of {', '.join(map(str, switches))} ms")
    assert len(switches) == 8
    assert max(switches) <= 100


def test_service_that_starts_again_goes_on(service: RolloutProcess, environment: dict[str, str]) -> None:
    """With the promoted release first, and then with what was to be promoted."""
    promote(service.folder, 3)
    service.stop()
    assert service.process.returncode == 0
    with pytest.raises(RolloutError, match="no service runs"):
        promote(service.folder, 1)
    service.folder.set_candidate(1, (100,), 0.0, 0)
    again = RolloutProcess(service.folder.path, environment, "--in-place")
    try:
        again.wait_ready()
        until(lambda: again.folder.read().stable == 1)
        until(lambda: is_answered(again, 1))
        assert sorted(again.folder.servers()) == [1, 3]
        roll_back(again.folder)
        assert is_answered(again, 3)
    finally:
        again.kill()
