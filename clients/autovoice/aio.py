"""`AsyncVoiceConversionPipeline`: the pipeline for asyncio."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from autovoice.config import PipelineConfig
from autovoice.pipeline import VoiceConversionPipeline
from autovoice.results import PipelineStats
from autovoice.streaming import StreamSession

DEFAULT_CONCURRENCY = 32

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _InThreads:
    """Runs blocking calls in threads of its own, as many at a time as there are threads."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads

    async def _run(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _awaited(
    method: Callable[Concatenate[Any, _P], _T],
) -> Callable[Concatenate[Any, _P], Coroutine[Any, Any, _T]]:
    """The method of the same name of the object behind `self._blocking`, awaited."""

    async def call(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        made: _T = await self._run(functools.partial(method, self._blocking, *args, **kwargs))
        return made

    functools.update_wrapper(call, method)
    return call


class AsyncStreamSession(_InThreads):
    """`StreamSession` for asyncio: one `push` at a time, each awaited before the next."""

    def __init__(self, session: StreamSession, threads: ThreadPoolExecutor) -> None:
        super().__init__(threads)
        self._blocking = session
        self._turn = asyncio.Lock()
        self._under_way: asyncio.Future[Any] | None = None

    @property
    def session(self) -> StreamSession:
        """The stream behind this one, for its properties."""
        return self._blocking

    push = _awaited(StreamSession.push)
    flush = _awaited(StreamSession.flush)
    close = _awaited(StreamSession.close)

    async def _run(self, call: Callable[[], _T]) -> _T:
        async with self._turn:
            # A cancelled caller left its thread at work, which nobody may join in.
            if self._under_way is not None:
                await asyncio.wait([self._under_way])
            self._under_way = task = asyncio.ensure_future(super()._run(call))
            return await asyncio.shield(task)

    async def __aenter__(self) -> AsyncStreamSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncVoiceConversionPipeline(_InThreads):
    """`VoiceConversionPipeline` for asyncio, with the same methods and arguments, awaited.

    Conversions run in threads: resampling and ONNX Runtime would stop the event loop, and a request to a
    server spends its time waiting either way. A conversion whose task is cancelled before it began never
    begins; one under way ends by itself, its requests at the latest at their deadlines.

    Args:
        config: None for the defaults.
        voice: instead of `config.voice`.
        concurrency: conversions under way at a time; the others wait for their turn.
        pipeline: used instead of one made from `config`; not closed with this object.
    """

    def __init__(
        self,
        config: PipelineConfig | None = None,
        *,
        voice: str | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        pipeline: VoiceConversionPipeline | None = None,
    ) -> None:
        super().__init__(ThreadPoolExecutor(concurrency, thread_name_prefix="autovoice"))
        self._owns = pipeline is None
        self._blocking = VoiceConversionPipeline(config, voice=voice) if pipeline is None else pipeline

    @property
    def pipeline(self) -> VoiceConversionPipeline:
        """The pipeline behind this one, for its properties."""
        return self._blocking

    @property
    def stats(self) -> PipelineStats:
        """Counters since the pipeline was made."""
        return self._blocking.stats

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
        """Open a live stream; nothing is sent yet, so nothing is awaited."""
        return AsyncStreamSession(self._blocking.stream(*args, **kwargs), self._threads)

    async def close(self) -> None:
        """Wait for the conversions under way and let go of the models or connections."""
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        if self._owns:
            self._blocking.close()

    async def __aenter__(self) -> AsyncVoiceConversionPipeline:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
