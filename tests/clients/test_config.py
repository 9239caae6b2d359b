"""`PipelineConfig`: nonsense is refused when it is made; the repository is found where it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autovoice import PipelineConfig
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
        ("fallback", "ignore"),
        ("repository", 7),
        ("threads", 0),
        ("threads", 1.5),
        ("threads", True),
        ("retries", -1),
        ("retry_delay_seconds", float("nan")),
        ("timeout_seconds", 0.0),
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
    with pytest.raises(ConfigurationError, match="api_key") as refusal:
        PipelineConfig(api_key="secret\nlines")
    assert "secret" not in str(refusal.value)
