"""Voice conversion served by Triton, and the same model repository on ONNX Runtime in process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autovoice.audio_files import load_embedding, read_audio, save_embedding, write_audio
from autovoice.config import PipelineConfig
from autovoice.errors import (
    AudioFileError,
    AudioInputError,
    ConfigurationError,
    DeviceError,
    EmbeddingError,
    InferenceError,
    InferenceTimeoutError,
    OutputError,
    PassthroughWarning,
    PitchError,
    RepositoryError,
    RequestError,
    SampleRateError,
    SequenceError,
    StreamClosedError,
    UnavailableError,
    VoiceConversionError,
)
from autovoice.executor import Executor
from autovoice.pipeline import VoiceConversionPipeline
from autovoice.repository import ModelRepository
from autovoice.results import (
    ConversionProfile,
    ConversionResult,
    FileResult,
    PipelineStats,
    Progress,
)
from autovoice.rvc_settings import RvcSettings
from autovoice.sessions import available_devices
from autovoice.streaming import StreamSession
from autovoice.voices import VoiceInfo, list_voices

if TYPE_CHECKING:
    from autovoice.asynchronous import AsyncStreamSession, AsyncVoiceConversionPipeline

    __version__: str

__all__ = [
    "AsyncStreamSession",
    "AsyncVoiceConversionPipeline",
    "AudioFileError",
    "AudioInputError",
    "ConfigurationError",
    "ConversionProfile",
    "ConversionResult",
    "DeviceError",
    "EmbeddingError",
    "Executor",
    "FileResult",
    "InferenceError",
    "InferenceTimeoutError",
    "ModelRepository",
    "OutputError",
    "PassthroughWarning",
    "PipelineConfig",
    "PipelineStats",
    "PitchError",
    "Progress",
    "RepositoryError",
    "RequestError",
    "RvcSettings",
    "SampleRateError",
    "SequenceError",
    "StreamClosedError",
    "StreamSession",
    "UnavailableError",
    "VoiceConversionError",
    "VoiceConversionPipeline",
    "VoiceInfo",
    "__version__",
    "available_devices",
    "list_voices",
    "load_embedding",
    "read_audio",
    "save_embedding",
    "write_audio",
]


def __getattr__(name: str) -> Any:
    """Look up when asked what a cold start need not pay for: importlib.metadata and asyncio."""
    if name in ("AsyncStreamSession", "AsyncVoiceConversionPipeline"):
        from autovoice import asynchronous

        return getattr(asynchronous, name)
    if name == "__version__":
        from importlib import metadata

        return metadata.version("autovoice")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
