"""API keys and TLS against a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from remote_calls import KEY, RATE, assert_same, hum, speaker, url

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.errors import ConfigurationError, UnavailableError
from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server

SOURCE = hum(0.2)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_key_opens_and_nothing_else_does(
    guarded: TritonServer,
    certificate: Path,
    repository: Path,
    embedded: VoiceConversionPipeline,
    protocol: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refusal is told at once, fallback or not: the caller has to mend it."""
    options: dict[str, Any] = {"backend": url(guarded, protocol).replace("grpc:", "grpcs:")}
    options |= {"repository": repository, "threads": 1, "tls_root_certificates": certificate}
    monkeypatch.delenv("AUTOVOICE_API_KEY", raising=False)
    for wrong in (None, "fedcba9876543210"):
        with (
            VoiceConversionPipeline(PipelineConfig(api_key=wrong, **options)) as pipeline,
            pytest.raises(ConfigurationError, match="another API key"),
        ):
            pipeline.convert(SOURCE, speaker(0), None, RATE)
    monkeypatch.setenv("AUTOVOICE_API_KEY", KEY)
    with VoiceConversionPipeline(PipelineConfig(fallback="raise", **options)) as pipeline:
        made = pipeline.convert(SOURCE, speaker(0), None, RATE)
    assert_same(made, embedded.convert(SOURCE, speaker(0), None, RATE))


def test_a_server_whose_certificate_nobody_signed_is_refused(guarded: TritonServer) -> None:
    backend = guarded.options.grpc_url.replace("grpc:", "grpcs:")
    config = PipelineConfig(backend=backend, api_key=KEY, fallback="raise", retries=0)
    with pytest.raises(UnavailableError):
        VoiceConversionPipeline(config)
