"""A server that asks for keys, of a repository that is overridden on the way."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
from triton_calls import CONTROL_KEY, KEY, Client, Connect, grpc_client, http_client
from tritonclient.utils import InferenceServerException

from autovoice.address import API_KEY_HEADER, GRPC_HEADER_PREFIX
from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server
HEADERS: dict[Connect, str] = {
    grpc_client: GRPC_HEADER_PREFIX + API_KEY_HEADER,
    http_client: API_KEY_HEADER,
}


@pytest.mark.parametrize("connect", HEADERS, ids=["grpc", "http"])
def test_protected_calls_need_the_key(small_server: TritonServer, connect: Connect) -> None:
    def infer(client: Client, **options: object) -> None:
        client.infer("roots", {"X": np.ones((1, 2), np.float32)}, **options)

    def load(client: Client, **options: object) -> None:
        client.connection.load_model("target_pitch", **options)

    def statistics(client: Client, **options: object) -> None:
        client.connection.get_inference_statistics(**options)

    def shared(client: Client, **options: object) -> None:
        client.connection.get_system_shared_memory_status(**options)

    header = HEADERS[connect]
    with connect(small_server.options) as client:
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


def test_keys_are_in_no_command_line(small_server: TritonServer) -> None:
    """Every user of the machine can read those."""
    assert small_server.process is not None
    root = psutil.Process(small_server.process.pid)
    lines = [" ".join(process.cmdline()) for process in (root, *root.children(recursive=True))]
    assert "--http-restricted-api=inference" in lines[0]
    for key in (KEY, CONTROL_KEY):
        assert not any(key in line for line in lines)


def test_overrides_reach_the_server(small_server: TritonServer) -> None:
    with grpc_client(small_server.options) as client:
        config = client.connection.get_model_config("roots", as_json=True)["config"]
    assert config["parameters"]["intra_op_thread_count"]["string_value"] == "2"
