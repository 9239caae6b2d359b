"""Requests that are wrong: an error for each, and a server that goes on as before."""

from __future__ import annotations

import http.client
import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from triton_calls import Array, Client, hum, voice
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server

GOOD = {"SOURCE_AUDIO": hum(4800), **voice(0)}


def with_bad(samples: Array, value: float) -> Array:
    samples = samples.copy()
    samples[0, 1000] = value
    return samples


BAD = {
    "dtype": ({**GOOD, "SOURCE_AUDIO": hum(4800).astype(np.float64)}, "data-type|datatype|FP64"),
    "integers": ({**GOOD, "SOURCE_AUDIO": np.zeros((1, 4800), np.int32)}, "data-type|datatype|INT32"),
    "rank": ({**GOOD, "SOURCE_AUDIO": hum(4800)[None]}, "shape"),
    "no batch axis": ({**GOOD, "SOURCE_AUDIO": hum(4800)[0]}, "shape|batch"),
    "embedding size": ({**GOOD, "TARGET_EMBEDDING": np.ones((1, 255), np.float32)}, "shape"),
    "unequal batches": ({**GOOD, "PITCH_SHIFT": np.zeros((2, 1), np.float32)}, "batch"),
    "batch beyond the largest": (
        {name: np.repeat(value, 17, axis=0) for name, value in GOOD.items()},
        "batch",
    ),
    "not a number": ({**GOOD, "SOURCE_AUDIO": with_bad(hum(4800), np.nan)}, "not finite"),
    "infinite": ({**GOOD, "SOURCE_AUDIO": with_bad(hum(4800), np.inf)}, "not finite"),
    "voice not a number": (
        {**GOOD, "TARGET_EMBEDDING": np.full_like(GOOD["TARGET_EMBEDDING"], np.nan)},
        "not finite",
    ),
    "overflow": ({**GOOD, "SOURCE_AUDIO": with_bad(hum(4800), 3e38)}, "not a number|not finite"),
    "empty": ({**GOOD, "SOURCE_AUDIO": np.zeros((1, 0), np.float32)}, "empty|shape|size"),
    "missing input": ({name: GOOD[name] for name in ("SOURCE_AUDIO", "PITCH_SHIFT")}, "input"),
    "unknown input": ({**GOOD, "SURPRISE": np.zeros((1, 1), np.float32)}, "SURPRISE|input"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_request_is_that_requests_error(client: Client, name: str) -> None:
    feeds, message = BAD[name]
    with pytest.raises(InferenceServerException, match=message):
        client.infer("voice_conversion", feeds)


@pytest.mark.parametrize("samples", [1, 239, 241, 500])
def test_chunk_of_no_whole_frames_names_the_size(client: Client, samples: int) -> None:
    with pytest.raises(InferenceServerException, match=f"{samples} values .* multiple of 240"):
        client.stream(voice(0), [hum(samples)], sequence=901)


def test_f0_that_ends_before_the_audio_is_refused(client: Client) -> None:
    for frames in (1, 19):  # of 20
        feeds = {**GOOD, "SOURCE_F0": np.full((1, frames), 150.0, np.float32)}
        with pytest.raises(InferenceServerException):
            client.infer("voice_conversion_with_f0", feeds)


def test_unknown_model_and_version(client: Client) -> None:
    with pytest.raises(InferenceServerException, match="not_there"):
        client.infer("not_there", GOOD)
    with pytest.raises(InferenceServerException, match="version"):
        client.infer("voice_conversion", GOOD, model_version="7")


def test_one_bad_request_in_a_batch_fails_alone(over_grpc: Client) -> None:
    """Requests that wait together run together; the others must not pay for one of them."""
    (expected,) = over_grpc.infer("voice_conversion", GOOD).values()
    bad, _ = BAD["not a number"]

    def ask(number: int) -> Array | None:
        try:
            return over_grpc.infer("voice_conversion", bad if number % 3 == 1 else GOOD)["CONVERTED_AUDIO"]
        except InferenceServerException:
            return None

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(48)))
    for number, answer in enumerate(answers):
        assert (answer is None) == (number % 3 == 1)
        if answer is not None:
            np.testing.assert_allclose(answer, expected, atol=1e-4, rtol=0)


def test_two_hundred_clients_at_once(over_grpc: Client) -> None:
    sources = [hum(2400 + 240 * (number % 5), 100.0 + number) for number in range(200)]
    voices = [voice(number) for number in range(200)]

    def convert(number: int) -> Array:
        feeds = {"SOURCE_AUDIO": sources[number], **voices[number]}
        return over_grpc.infer("voice_conversion", feeds)["CONVERTED_AUDIO"]

    with ThreadPoolExecutor(200) as pool:
        together = list(pool.map(convert, range(200)))
    for number in range(0, 200, 7):
        np.testing.assert_allclose(together[number], convert(number), atol=1e-4, rtol=0)


def infer_body() -> tuple[bytes, int]:
    """A valid HTTP inference request and the length of its JSON."""
    inputs = []
    for name, value in GOOD.items():
        tensor = tritonclient.http.InferInput(name, value.shape, "FP32")
        tensor.set_data_from_numpy(value)
        inputs.append(tensor)
    body, size = tritonclient.http.InferenceServerClient.generate_request_body(inputs)
    return bytes(body), size


def post(server: TritonServer, path: str, body: bytes, headers: dict[str, str]) -> int:
    """Status of a POST, 0 where the server hung up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.options.http_port, timeout=30)
    try:
        connection.request("POST", path, body, headers)
        return connection.getresponse().status
    except (http.client.HTTPException, ConnectionError):
        return 0
    finally:
        connection.close()


FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


@FUZZ
@given(st.binary(max_size=4096), st.sampled_from(["http_port", "grpc_port"]))
def test_garbage_on_the_wire(server: TritonServer, garbage: bytes, port: str) -> None:
    with socket.create_connection(("127.0.0.1", getattr(server.options, port)), timeout=30) as line:
        line.sendall(garbage)
    assert server.is_ready()


@FUZZ
@given(st.data())
def test_mutilated_http_request(server: TritonServer, data: st.DataObject) -> None:
    body, size = infer_body()
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    cut_off = data.draw(st.integers(0, len(changed)))
    claimed = data.draw(st.sampled_from([size, 0, size - 1, len(body) + 1, -1, 2**40]))
    status = post(
        server,
        "/v2/models/voice_conversion/infer",
        bytes(changed[:cut_off]),
        {"Inference-Header-Content-Length": str(claimed)},
    )
    assert status == 0 or 400 <= status < 600 or (status == 200 and cut_off == len(changed))
    assert server.is_ready()


@FUZZ
@given(st.data())
def test_mutilated_grpc_request(server: TritonServer, data: st.DataObject) -> None:
    request = service_pb2.ModelInferRequest(model_name="voice_conversion")
    for name, value in GOOD.items():
        request.inputs.add(name=name, datatype="FP32", shape=value.shape)
        request.raw_input_contents.append(value.tobytes()[: data.draw(st.sampled_from([4, 96, 19200]))])
    changed = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(0, 8))):
        changed[data.draw(st.integers(0, min(200, len(changed) - 1)))] = data.draw(st.integers(0, 255))
    with grpc.insecure_channel(server.options.grpc_url.split("://")[1]) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        outcome = call.future(bytes(changed), timeout=30)
        assert outcome.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.is_ready()


def memory(server: TritonServer) -> int:
    """Bytes that the server and its backends hold, those they share counted once for each."""
    assert server.process is not None
    root = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in (root, *root.children(recursive=True)))


def test_bad_requests_leave_no_memory_behind(server: TritonServer, over_grpc: Client) -> None:
    def storm(rounds: int) -> None:
        for _ in range(rounds):
            for feeds, _ in BAD.values():
                with pytest.raises(InferenceServerException):
                    over_grpc.infer("voice_conversion", feeds)

    storm(3)
    before = memory(server)
    storm(30)
    assert memory(server) < before + 20_000_000


def test_half_an_hour_in_one_request_is_refused_and_given_back(client: Client, server: TritonServer) -> None:
    feeds = {**GOOD, "SOURCE_AUDIO": np.tile(hum(24_000), (1, 1800))}
    size = feeds["SOURCE_AUDIO"].nbytes

    def refuse(times: int) -> None:
        for _ in range(times):
            with pytest.raises(InferenceServerException, match="pieces or as a stream"):
                client.infer("voice_conversion", feeds)

    # The shared memory of a Python backend grows to the largest request and never shrinks, and is counted for
    # both its ends here; how much of it is resident settles with the first requests.
    refuse(2)
    settled = memory(server)
    refuse(4)
    assert memory(server) < settled + 2 * size
