"""`AsyncVoiceConversionPipeline`: the pipeline for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from autovoice.config import PipelineConfig
from autovoice.errors import ConfigurationError, StreamClosedError
from autovoice.pipeline import VoiceConversionPipeline
from autovoice.results import PipelineStats
from autovoice.settings import is_number
from autovoice.streaming import StreamSession

DEFAULT_CONCURRENCY = 32

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _InThreads:
    """Runs the blocking methods of one object in threads.

    Args:
        threads: as many calls are under way at a time as there are threads.
        open_blocking: makes the object, in one of the threads, when its first method is called.
    """

    def __init__(self, threads: ThreadPoolExecutor, open_blocking: Callable[[], Any]) -> None:
        self._threads = threads
        self._open_blocking = open_blocking
        self._opening = threading.Lock()
        self._blocking: Any = None
        self._closed = False

    def _opened(self) -> Any:
        with self._opening:
            if self._blocking is None:
                self._blocking = self._open_blocking()
            return self._blocking

    async def _run(self, call: Callable[[], _T]) -> _T:
        self._check_open()
        try:
            running = asyncio.get_running_loop().run_in_executor(self._threads, call)
        except RuntimeError:  # the threads of a closed pipeline take no calls
            self._closed = True
            self._check_open()
            raise
        return await running

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError(f"this {type(self).__name__} has been closed; make another")


def _awaited(
    method: Callable[Concatenate[Any, _P], _T],
) -> Callable[Concatenate[Any, _P], Coroutine[Any, Any, _T]]:
    """The method of the same name of the blocking object, awaited."""

    async def call(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        made: _T = await self._run(lambda: method(self._opened(), *args, **kwargs))
        return made

    functools.update_wrapper(call, method)
    return call


class AsyncStreamSession(_InThreads):
    """`StreamSession` for asyncio: one `push` at a time, each awaited before the next.

    Made by `AsyncVoiceConversionPipeline.stream`; opened when entered as a context manager or at the first
    `push`, which therefore raise what `VoiceConversionPipeline.stream` raises.
    """

    def __init__(self, threads: ThreadPoolExecutor, open_blocking: Callable[[], StreamSession]) -> None:
        super().__init__(threads, open_blocking)
        self._turn = asyncio.Lock()
        self._under_way: asyncio.Future[Any] | None = None

    @property
    def session(self) -> StreamSession:
        """The stream behind this one, for its properties.

        Raises:
            StreamClosedError: before it is opened.
        """
        session: StreamSession = _require_opened(self._blocking, "stream")
        return session

    push = _awaited(StreamSession.push)
    flush = _awaited(StreamSession.flush)

    async def close(self) -> None:
        """End the stream without its rest; see `StreamSession.close`."""
        if self._blocking is not None:
            with contextlib.suppress(StreamClosedError):
                await self._run(self._blocking.close)
        self._closed = True

    async def _run(self, call: Callable[[], _T]) -> _T:
        async with self._turn:
            # A cancelled caller left its thread at work, which nobody may join in.
            if self._under_way is not None:
                await asyncio.wait([self._under_way])
            self._under_way = task = asyncio.ensure_future(super()._run(call))
            return await asyncio.shield(task)

    async def __aenter__(self) -> AsyncStreamSession:
        await self._run(self._opened)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncVoiceConversionPipeline(_InThreads):
    """`VoiceConversionPipeline` for asyncio, with the same methods and arguments, awaited.

    The repository is read or the server asked when the pipeline is entered as a context manager or its first
    method is awaited, never in the constructor; both then raise what `VoiceConversionPipeline` raises.

    Conversions run in threads: resampling and ONNX Runtime would stop the event loop, and a request to a
    server spends its time waiting either way. A conversion whose task is cancelled before it began never
    begins; one under way ends by itself, its requests at the latest at their deadlines.

    Args:
        config: None for the defaults.
        voice: instead of `config.voice`.
        concurrency: conversions under way at a time, 1 to 1024; the others wait for their turn.
        pipeline: used instead of one made from `config`; not closed with this object.

    Raises:
        ConfigurationError: a `concurrency` out of range.
    """

    def __init__(
        self,
        config: PipelineConfig | None = None,
        *,
        voice: str | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        pipeline: VoiceConversionPipeline | None = None,
    ) -> None:
        if not is_number(concurrency, int) or not 1 <= concurrency <= 1024:
            raise ConfigurationError(f"concurrency is {concurrency!r}; give an integer from 1 to 1024")
        super().__init__(
            ThreadPoolExecutor(concurrency, thread_name_prefix="autovoice"),
            lambda: VoiceConversionPipeline(config, voice=voice),
        )
        self._owns = pipeline is None
        self._blocking = pipeline

    @property
    def pipeline(self) -> VoiceConversionPipeline:
        """The pipeline behind this one, for its properties.

        Raises:
            StreamClosedError: before it is opened.
        """
        pipeline: VoiceConversionPipeline = _require_opened(self._blocking, "pipeline")
        return pipeline

    @property
    def stats(self) -> PipelineStats:
        """Counters since the pipeline was made."""
        return PipelineStats() if self._blocking is None else self._blocking.stats

    convert = _awaited(VoiceConversionPipeline.convert)
    convert_detailed = _awaited(VoiceConversionPipeline.convert_detailed)
    convert_file = _awaited(VoiceConversionPipeline.convert_file)
    batch_convert = _awaited(VoiceConversionPipeline.batch_convert)
    profile_conversion = _awaited(VoiceConversionPipeline.profile_conversion)
    embed = _awaited(VoiceConversionPipeline.embed)
    embed_file = _awaited(VoiceConversionPipeline.embed_file)
    extract_f0 = _awaited(VoiceConversionPipeline.extract_f0)
    median_f0 = _awaited(VoiceConversionPipeline.median_f0)
    median_f0_file = _awaited(VoiceConversionPipeline.median_f0_file)
    warmup = _awaited(VoiceConversionPipeline.warmup)

    @functools.wraps(VoiceConversionPipeline.stream)
    def stream(self, *args: Any, **kwargs: Any) -> AsyncStreamSession:
        """Prepare a live stream, which opens when it is entered or first pushed to."""
        self._check_open()
        return AsyncStreamSession(self._threads, lambda: self._opened().stream(*args, **kwargs))

    async def close(self) -> None:
        """Wait for the conversions under way and free the models or connections."""
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        if self._owns and self._blocking is not None:
            self._blocking.close()

    async def __aenter__(self) -> AsyncVoiceConversionPipeline:
        await self._run(self._opened)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _require_opened(blocking: _T | None, what: str) -> _T:
    if blocking is None:
        raise StreamClosedError(f"this {what} is not open yet; enter it with `async with` first")
    return blocking
