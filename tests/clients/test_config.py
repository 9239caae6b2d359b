"""`PipelineConfig`: nonsense is refused when it is made; the repository is found where it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autovoice import ConfigurationError, PipelineConfig, VoiceConversionPipeline
from autovoice.config import usable_cores


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backend", "tensorrt"),
        ("backend", "grpc://"),
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


@pytest.mark.parametrize("backend", ["grpc://localhost:8001", "http://localhost:8000"])
def test_remote_backends_say_what_is_supported(backend: str, toy: Path) -> None:
    with pytest.raises(ConfigurationError, match="use backend='embedded'"):
        VoiceConversionPipeline(PipelineConfig(backend=backend, repository=toy))
