"""`PipelineConfig`: nonsense is refused when it is made; the repository is found where it should be."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autovoice import PipelineConfig, RvcSettings
from autovoice.address import ServerAddress, parse_address
from autovoice.config import usable_cores
from autovoice.errors import ConfigurationError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backend", "tensorrt"),
        ("backend", "grpc://"),
        ("backend", "ftp://localhost:21"),
        ("backend", "grpc://localhost:port"),
        ("backend", "http://localhost:0"),
        ("backend", "http://localhost:8000/v2"),
        ("backend", "http://user@localhost:8000"),
        ("replay_seconds", -1.0),
        ("tls_root_certificates", "/nowhere/ca.pem"),
        ("tls_client_key", "/nowhere/key.pem"),
        ("backend", None),
        ("device", "gpu"),
        ("device", "cuda:x"),
        ("device", "cuda:-1"),
        ("device", "cuda:1\n"),
        ("device", 0),
        ("use_cuda", 1),
        ("use_cuda", "yes"),
        ("fallback", "ignore"),
        ("repository", 7),
        ("repository", b"models"),
        ("repository", "nobody\0here"),
        ("repository", "~nobody-of-this-name/models"),
        ("tls_client_key", 5),
        ("threads", 0),
        ("threads", 1.5),
        ("threads", True),
        ("retries", -1),
        ("retry_delay_seconds", float("nan")),
        ("timeout_seconds", 0.0),
        ("timeout_seconds", "5"),
        ("timeout_seconds", 10**400),
        ("f0_min", 0.0),
        ("f0_max", 40.0),
        ("block_seconds", 0.0),
        ("block_seconds", "10"),
        ("embedding_cache_size", -1),
    ],
)
def test_nonsense_is_refused_by_name_and_value(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        PipelineConfig(**{field: value})
    assert field in str(refusal.value)
    assert repr(value) in str(refusal.value) or f"{value} Hz" in str(refusal.value)


KINDS = [
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.complex_numbers(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
    st.sampled_from(
        [object(), int, ..., NotImplemented, np.array([1.0, 2.0]), np.float32(5), {1}, Path("x\0")]
    ),
    st.builds(RvcSettings),
    st.sampled_from(
        ["embedded", "grpc://[", "http://\u2100:1", "https://h:99999999", "cuda:0", "cpu", "raise"]
    ),
]


@given(st.sampled_from([field.name for field in fields(PipelineConfig)] + ["use_cuda"]), st.one_of(KINDS))
def test_a_field_of_any_kind_is_taken_or_refused_as_a_configuration(field: str, value: Any) -> None:
    """What is taken can be used."""
    refusal = ""
    try:
        config = PipelineConfig(**{field: value})
    except ConfigurationError as error:
        refusal = str(error)
    if refusal:
        assert field in refusal
        return
    assert config.thread_count >= 1
    assert isinstance(config.repository_path(), Path)
    assert config.server_key is None or isinstance(config.server_key, str)
    assert replace(config, voice="other").device == config.device
    assert value is None or field == "use_cuda" or getattr(config, field) is value


def test_numbers_may_be_whole() -> None:
    assert PipelineConfig(timeout_seconds=5, block_seconds=10).timeout_seconds == 5


@pytest.mark.parametrize(
    ("use_cuda", "device", "made"),
    [
        (True, "auto", "cuda"),
        (True, "cuda", "cuda"),
        (True, "cuda:1", "cuda:1"),
        (False, "auto", "cpu"),
        (False, "cpu", "cpu"),
        (None, "cuda:3", "cuda:3"),
        (None, "auto", "auto"),
    ],
)
def test_use_cuda_is_another_way_to_name_a_device(use_cuda: bool | None, device: str, made: str) -> None:
    config = PipelineConfig(device=device, use_cuda=use_cuda)
    assert config.device == made
    assert replace(config, retries=0).device == made
    assert config == PipelineConfig(device=made)


@pytest.mark.parametrize(("use_cuda", "device"), [(True, "cpu"), (False, "cuda"), (False, "cuda:1")])
def test_use_cuda_must_not_contradict_the_device(use_cuda: bool, device: str) -> None:
    with pytest.raises(
        ConfigurationError, match=f"use_cuda is {use_cuda} but device is '{device}'; leave one"
    ):
        PipelineConfig(device=device, use_cuda=use_cuda)


def test_threads_default_to_the_usable_cores_up_to_four() -> None:
    assert PipelineConfig().thread_count == min(usable_cores(), 4)
    assert PipelineConfig(threads=7).thread_count == 7


def test_repository_comes_from_the_config_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOVOICE_REPOSITORY", "/somewhere")
    assert PipelineConfig().repository_path() == Path("/somewhere")
    assert PipelineConfig(repository="/elsewhere").repository_path() == Path("/elsewhere")
    monkeypatch.delenv("AUTOVOICE_REPOSITORY")
    assert PipelineConfig().repository_path().name == "model_repository"


@pytest.mark.parametrize(
    ("backend", "address"),
    [
        ("grpc://localhost:9001", ServerAddress("grpc", "localhost", 9001, tls=False)),
        ("http://triton", ServerAddress("http", "triton", 8000, tls=False)),
        ("grpcs://[::1]", ServerAddress("grpc", "::1", 8001, tls=True)),
        ("https://voice.example:443/", ServerAddress("http", "voice.example", 443, tls=True)),
    ],
)
def test_addresses_are_understood(backend: str, address: ServerAddress) -> None:
    assert parse_address(PipelineConfig(backend=backend).backend) == address


def test_api_keys_stay_out_of_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOVOICE_API_KEY", "from-the-environment")
    assert PipelineConfig().server_key == "from-the-environment"
    config = PipelineConfig(api_key="very-secret-key")
    assert config.server_key == "very-secret-key"
    assert "secret" not in repr(config)
    for key in ("secret\nlines", "", 123, b"secret"):
        with pytest.raises(ConfigurationError, match=r"^api_key") as refusal:
            PipelineConfig(api_key=key)
        assert "secret" not in str(refusal.value)
    monkeypatch.setenv("AUTOVOICE_API_KEY", "secret words")
    with pytest.raises(ConfigurationError, match=r"^\$AUTOVOICE_API_KEY is .*; give the server's key"):
        _ = PipelineConfig().server_key
