"""`Engine`: what runs the models of a repository, in this process or in a server."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from autovoice.errors import ReleaseGoneError
from autovoice.repository.model_config import ModelSpec

logger = logging.getLogger(__name__)

Tensors = Mapping[str, npt.NDArray[Any]]
MAX_RESTARTS = 3  # of one sequence at one place, when the engine keeps losing its state
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Sequence:
    """Position of a request in a Triton sequence.

    Attributes:
        id: correlation id, not 0, unique among the live sequences of an engine.
        start: first request of the sequence: states are zero.
        end: last request: states are dropped after it.
    """

    id: int
    start: bool = False
    end: bool = False


def new_sequence_id() -> int:
    """A correlation id that no other client of the same engine has, for all practical purposes."""
    return secrets.randbits(62) + 1


class Engine(Protocol):
    """Runs models of a repository. Implementations are thread safe.

    A failed `infer` leaves the states of its sequence as they were, so that the same request may be sent
    again; where an engine cannot promise that, it raises `SequenceError`, which is never retried. Who does
    not send it again calls `end_sequence`.
    """

    @property
    def device(self) -> str:
        """Where models run: `"cpu"`, `"cuda"`, `"cuda:1"` or a server's address."""

    def spec(self, model: str) -> ModelSpec:
        """The config of a model.

        Raises:
            RepositoryError: when there is no such model.
        """

    def infer(
        self, model: str, inputs: Tensors, *, sequence: Sequence | None = None, timeout: float | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run one request.

        Args:
            model: name of a model or an ensemble.
            inputs: every input by name, batch axis first, of exactly the config's type and dims.
            sequence: required by models with implicit state, ignored by others.
            timeout: seconds; None for no limit.

        Returns:
            Every output by name.

        Raises:
            InferenceError: when the engine fails; `transient` says whether to try again.
            RepositoryError: when the repository does not fit together.
            StreamClosedError: after `close`.
        """

    def end_sequence(self, model: str, inputs: Tensors, sequence_id: int) -> None:
        """Drop the states of a sequence that is given up before its last request.

        Does nothing for a sequence that is not live. Never raises a `VoiceConversionError`: a server that
        does not answer drops the states by itself after its own idle time.

        Args:
            model: what the sequence ran.
            inputs: of any valid request: a server ends a sequence only with a request.
            sequence_id: its id.
        """

    def close(self) -> None:
        """Free models and states; every request after this raises `StreamClosedError`."""


@dataclass(frozen=True)
class StepTiming:
    """One model run inside a request.

    Attributes:
        model: its name.
        seconds: wall time.
        device: where it ran.
        release: number of the release that answered, None where the models run in this process.
    """

    model: str
    seconds: float
    device: str
    release: int | None = None


StepListener = Callable[[StepTiming], None]
_listener: ContextVar[StepListener | None] = ContextVar("autovoice_step_listener", default=None)


@contextmanager
def time_limit(seconds: float | None, stop: Callable[[], object]) -> Iterator[None]:
    """Have another thread call `stop` when the block takes longer than `seconds`; None for no limit.

    Raises:
        TimeoutError: when the time was up, however the block ended.
    """
    if seconds is None:
        yield
        return
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        stop()

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if expired.is_set():
            raise TimeoutError


@contextmanager
def observe_steps(listener: StepListener) -> Iterator[None]:
    """Have `listener` called after every model run that this thread (or task) causes inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report_step(timing: StepTiming) -> None:
    """Tell the listener of this thread, if any, about a model run."""
    listener = _listener.get()
    if listener is not None:
        listener(timing)


@dataclass
class ReleasePin:
    """The release that the requests of one conversion or stream go to: that of the first answer.

    Attributes:
        number: of the release, None before the first answer.
        versions: of each model that has answered.
    """

    number: int | None = None
    versions: dict[str, int] = field(default_factory=dict)

    def note(self, model: str, version: int) -> None:
        """Take in which version of a model answered.

        Raises:
            ReleaseGoneError: another one answered before; the pin is taken off.
        """
        known = self.versions.setdefault(model, version)
        if known != version:
            self.clear()
            raise ReleaseGoneError(
                f"model {model} went from version {known} to {version} within one conversion; begin it again"
            )
        if self.number is None:
            self.number = version

    def clear(self) -> None:
        """Let the next request go to any release."""
        self.number = None
        self.versions.clear()


_pin: ContextVar[ReleasePin | None] = ContextVar("autovoice_release_pin", default=None)


@contextmanager
def on_release(pin: ReleasePin) -> Iterator[None]:
    """Have the requests of this thread (or task) inside the block go to the release of `pin`."""
    token = _pin.set(pin)
    try:
        yield
    finally:
        _pin.reset(token)


def current_pin() -> ReleasePin | None:
    """The pin of this thread, if any."""
    return _pin.get()


def on_one_release(work: Callable[[], _Answer]) -> _Answer:
    """Do some work that takes several requests on one release, from the start again when that is gone.

    Raises:
        ReleaseGoneError: it happened more often than `MAX_RESTARTS`.
    """
    for _ in range(MAX_RESTARTS):
        try:
            with on_release(ReleasePin()):
                return work()
        except ReleaseGoneError as error:
            logger.warning("beginning again: %s", error)
    with on_release(ReleasePin()):
        return work()
