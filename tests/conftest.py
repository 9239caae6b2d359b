"""Settings of all tests."""

from __future__ import annotations

import pytest
from hypothesis import settings

# No test judges by the clock: a busy machine is no failure.
settings.register_profile("autovoice", deadline=None)
settings.load_profile("autovoice")

# Fixtures that cost what a mark stands for.
MARK_OF_FIXTURE = {
    "cache": pytest.mark.server,  # the folder of a Triton server's backends
    "build_real_plan": pytest.mark.gpu,
    "exported": pytest.mark.heavy,  # the base voice in ONNX
    "files": pytest.mark.heavy,  # a repository of imported voices
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by the fixtures it asks for, also where its module has others that do not."""
    for item in items:
        for name in MARK_OF_FIXTURE.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARK_OF_FIXTURE[name])
