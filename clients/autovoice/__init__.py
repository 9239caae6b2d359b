"""Voice conversion served by Triton, and the same model repository on ONNX Runtime in process."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autovoice.aio import AsyncVoiceConversionPipeline as AsyncVoiceConversionPipeline
    from autovoice.audio.files import read_audio as read_audio
    from autovoice.audio.files import write_audio as write_audio
    from autovoice.config import PipelineConfig as PipelineConfig
    from autovoice.errors import InferenceError as InferenceError
    from autovoice.errors import PassthroughWarning as PassthroughWarning
    from autovoice.errors import VoiceConversionError as VoiceConversionError
    from autovoice.pipeline import VoiceConversionPipeline as VoiceConversionPipeline
    from autovoice.results import ConversionProfile as ConversionProfile
    from autovoice.results import ConversionResult as ConversionResult
    from autovoice.results import FileResult as FileResult
    from autovoice.results import PipelineStats as PipelineStats
    from autovoice.results import Progress as Progress
    from autovoice.settings import RvcSettings as RvcSettings
    from autovoice.streaming import StreamSession as StreamSession
    from autovoice.voices.catalogue import VoiceInfo as VoiceInfo
    from autovoice.voices.catalogue import list_voices as list_voices
    from autovoice.voices.embedding import load_embedding as load_embedding
    from autovoice.voices.embedding import save_embedding as save_embedding

    __version__: str

# Where each public name lives. They are imported when first asked for: Triton's backend processes and
# `autovoice --help` need few of them.
_HOMES = {
    "AsyncVoiceConversionPipeline": "aio",
    "ConversionProfile": "results",
    "ConversionResult": "results",
    "FileResult": "results",
    "InferenceError": "errors",
    "PassthroughWarning": "errors",
    "PipelineConfig": "config",
    "PipelineStats": "results",
    "Progress": "results",
    "RvcSettings": "settings",
    "StreamSession": "streaming",
    "VoiceConversionError": "errors",
    "VoiceConversionPipeline": "pipeline",
    "VoiceInfo": "voices.catalogue",
    "list_voices": "voices.catalogue",
    "load_embedding": "voices.embedding",
    "read_audio": "audio.files",
    "save_embedding": "voices.embedding",
    "write_audio": "audio.files",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"autovoice.{_HOMES[name]}"), name)
    elif name == "__version__":
        from importlib import metadata

        value = metadata.version("autovoice")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
