"""What conversions report: progress, timings, results, counters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Progress:
    """One step of a conversion that has just ended.

    Attributes:
        stage: what ended: a model's name, `"resample"`, and at the very end `"finish"`.
        chunk: 1-based number of the chunk it belongs to.
        chunks: how many chunks there will be.
        fraction: share of the source converted, 0 to 1, never decreasing.
    """

    stage: str
    chunk: int
    chunks: int
    fraction: float


ProgressCallback = Callable[[Progress], None]


class _Figures(Mapping[str, Any]):
    """A dataclass of figures that is also a mapping from the names of its fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)


@dataclass(frozen=True)
class GpuUse:
    """One GPU of this machine at one moment.

    Attributes:
        number: NVML's, in the order of the PCI bus; CUDA counts so too with `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
        name: its model.
        memory_used_bytes: by all processes.
        memory_total_bytes: that it has.
        use_percent: share of the last sampling period in which it computed; None where it does not say.
    """

    number: int
    name: str
    memory_used_bytes: int
    memory_total_bytes: int
    use_percent: int | None


@dataclass(frozen=True)
class OperatorTime:
    """What one node of a model, or one kernel of a GPU, has cost.

    A node's time on CUDA is that of handing its work to the GPU, which computes meanwhile; the GPU's own time
    is in the kernels, which ONNX Runtime reports where it was built with CUPTI.

    Attributes:
        model: whose it is.
        operator: its type, such as `"Conv"`; may be empty for a kernel.
        name: of the node after ONNX Runtime's optimisations, or of the kernel.
        is_kernel: whether it is a kernel.
        calls: how often it ran.
        total_ms: wall time of all runs.
        share: of the time of all nodes of all models, or of all kernels, 0 to 1.
    """

    model: str
    operator: str
    name: str
    is_kernel: bool
    calls: int
    total_ms: float
    share: float


@dataclass(frozen=True)
class ConversionProfile(_Figures):
    """Where the time of one conversion went; also a mapping, so that `profile["rtf"]` is `profile.rtf`.

    A run of a model ends when its outputs are in the CPU's memory, on every device: the time of a stage holds
    the GPU's work and the copies, and needs no further synchronisation. Inside a model nothing waits for the
    GPU, see `OperatorTime`.

    Attributes:
        total_ms: wall time of the whole call.
        audio_duration_s: length of the source.
        rtf: compute time over audio time; below 1 is faster than real time.
        throughput_samples_per_sec: source samples converted per second.
        stages: wall time per stage in milliseconds, summed over chunks.
        device: where the models ran, `"cpu"` or `"cuda"` (or the server's address).
        gpus: of this machine when the conversion had ended; only `profile_conversion` looks at them.
        operators: what cost most comes first; only `profile_conversion(operators=True)` records them.
    """

    total_ms: float
    audio_duration_s: float
    rtf: float
    throughput_samples_per_sec: float
    stages: Mapping[str, float]
    device: str
    gpus: tuple[GpuUse, ...] = ()
    operators: tuple[OperatorTime, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain types, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ConversionResult:
    """Converted audio and how it came about.

    Attributes:
        audio: mono float32 samples [N].
        sample_rate: of `audio`, Hz.
        pitch_shift_semitones: the shift applied, with `"auto"` resolved.
        passthrough: True when `audio` is the level-normalised INPUT because the engine failed.
        profile: timings.
        release: number of the release that converted it, where a server said so.
    """

    audio: FloatArray
    sample_rate: int
    pitch_shift_semitones: float
    passthrough: bool
    profile: ConversionProfile
    release: int | None = None


@dataclass(frozen=True)
class FileResult:
    """A converted file and how it came about.

    Attributes:
        output: where it was written.
        sample_rate: of the output, Hz.
        samples: samples written.
        pitch_shift_semitones: the shift applied, with `"auto"` resolved.
        passthrough: True when the file holds the level-normalised INPUT because the engine failed.
        profile: timings.
        warnings: what was found in the source, such as damage, a sentence each.
        release: number of the release that converted it, where a server said so.
    """

    output: Path
    sample_rate: int
    samples: int
    pitch_shift_semitones: float
    passthrough: bool
    profile: ConversionProfile
    warnings: tuple[str, ...] = ()
    release: int | None = None


@dataclass(frozen=True)
class PipelineStats(_Figures):
    """Counters of one pipeline since it was made; also a mapping, so that `stats["total"]` is `stats.total`.

    Attributes:
        total: conversions asked for (each item of a batch, each file, each finished stream counts as one).
        succeeded: conversions that returned audio, passed-through ones included.
        failed: conversions that raised.
        average_ms: mean wall time of the succeeded ones.
        audio_seconds: source audio converted.
        device_use: conversions per device.
        retries: requests sent to the engine again.
        fallbacks: requests handed to another GPU or to CPU sessions.
        lost_sequences: times that an engine lost the state of a stream or of a long conversion.
        passthroughs: conversions that returned the level-normalised input.
    """

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    average_ms: float = 0.0
    audio_seconds: float = 0.0
    device_use: Mapping[str, int] = field(default_factory=dict)
    retries: int = 0
    fallbacks: int = 0
    passthroughs: int = 0
    lost_sequences: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The same as plain types, for JSON."""
        return asdict(self)


class StatsCounter:
    """Thread-safe collector behind `PipelineStats`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._succeeded = 0
        self._failed = 0
        self._elapsed_ms = 0.0
        self._audio_seconds = 0.0
        self._device_use: dict[str, int] = {}
        self._retries = 0
        self._fallbacks = 0
        self._passthroughs = 0
        self._lost_sequences = 0

    def success(
        self, elapsed_ms: float, audio_seconds: float, device: str, *, passthrough: bool = False
    ) -> None:
        """Count one conversion that returned audio."""
        with self._lock:
            self._succeeded += 1
            self._elapsed_ms += elapsed_ms
            self._audio_seconds += audio_seconds
            self._passthroughs += passthrough
            if not passthrough:
                self._device_use[device] = self._device_use.get(device, 0) + 1

    def failure(self, count: int = 1) -> None:
        """Count conversions that raised."""
        with self._lock:
            self._failed += count

    def retry(self) -> None:
        """Count one request sent again."""
        with self._lock:
            self._retries += 1

    def fallback(self) -> None:
        """Count one request handed to the fallback."""
        with self._lock:
            self._fallbacks += 1

    def lost_sequence(self) -> None:
        """Count one sequence whose state an engine lost."""
        with self._lock:
            self._lost_sequences += 1

    def snapshot(self) -> PipelineStats:
        """The counters now."""
        with self._lock:
            return PipelineStats(
                total=self._succeeded + self._failed,
                succeeded=self._succeeded,
                failed=self._failed,
                average_ms=self._elapsed_ms / self._succeeded if self._succeeded else 0.0,
                audio_seconds=self._audio_seconds,
                device_use=dict(self._device_use),
                retries=self._retries,
                fallbacks=self._fallbacks,
                passthroughs=self._passthroughs,
                lost_sequences=self._lost_sequences,
            )
