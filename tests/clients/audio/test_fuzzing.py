"""Damaged headers: whatever a file holds, it is read, or refused with one of our errors."""

from __future__ import annotations

import faulthandler
import io
import resource
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import encode, murmur

from autovoice.audio.files import AudioSource
from autovoice.errors import VoiceConversionError

KINDS = {
    "wav": (16_000, "pcm_s16le", "wav"),
    "flac": (16_000, "flac", "flac"),
    "ogg": (48_000, "libopus", "ogg"),
    "mp3": (44_100, "libmp3lame", "mp3"),
    "m4a": (44_100, "aac", "ipod"),
    "webm": (48_000, "libopus", "webm"),
}
HEADER = 600
MAX_GROWTH_KB = 400_000
HANGS_AFTER_SECONDS = 60

Mutation = list[tuple[int, bytes]]
mutations = st.lists(
    st.tuples(st.integers(0, HEADER), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6
)
lengths = st.integers(0, 5000) | st.none()


@lru_cache
def original(kind: str) -> bytes:
    rate, codec, container = KINDS[kind]
    with TemporaryDirectory() as folder:
        return encode(Path(folder, "a"), murmur(0.3, rate), rate, codec, container=container).read_bytes()


@pytest.fixture
def watched() -> Iterator[None]:
    """Ends the process where it hangs, and says where."""
    faulthandler.dump_traceback_later(HANGS_AFTER_SECONDS * 60, exit=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    faulthandler.cancel_dump_traceback_later()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KB


def read_mutated(kind: str, mutation: Mutation, length: int | None) -> None:
    data = bytearray(original(kind))
    for place, value in mutation:
        data[place : place + len(value)] = value
    faulthandler.dump_traceback_later(HANGS_AFTER_SECONDS, exit=True)
    try:
        source = AudioSource(io.BytesIO(bytes(data[:length])))
        assert sum(block.size for block in source.blocks(4000)) == source.frames
    except VoiceConversionError:
        pass
    finally:
        faulthandler.cancel_dump_traceback_later()


def test_the_originals_are_read() -> None:
    for kind in KINDS:
        source = AudioSource(io.BytesIO(original(kind)))
        assert source.frames / source.sample_rate == pytest.approx(0.3, abs=0.05)
        assert source.warnings == ()
    assert soundfile.info(io.BytesIO(original("wav"))).frames == 4800


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("kind", KINDS)
@given(mutation=mutations, length=lengths)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_headers(kind: str, mutation: Mutation, length: int | None) -> None:
    read_mutated(kind, mutation, length)


@pytest.mark.slow
@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("kind", KINDS)
@given(mutation=mutations, length=lengths)
@settings(max_examples=17_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_hundred_thousand_mutated_headers(kind: str, mutation: Mutation, length: int | None) -> None:
    read_mutated(kind, mutation, length)
