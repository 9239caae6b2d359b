"""The exceptions of the build tools; each message names the offending value and the remedy."""

from __future__ import annotations

from autovoice.errors import ConfigurationError, VoiceConversionError


class CheckpointError(VoiceConversionError):
    """A checkpoint that cannot be read or does not fit the stages."""


class ExportError(VoiceConversionError):
    """A stage that cannot be exported."""


class ParityError(VoiceConversionError):
    """Two implementations of one model that give different outputs."""


class PlanError(VoiceConversionError):
    """A TensorRT plan that cannot be built, loaded or trusted."""


class ImportFailure(ConfigurationError):
    """A file or setting that no voice can be imported from."""
