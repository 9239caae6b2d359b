"""The exceptions of the runtime; each message names the offending value and the remedy."""

from __future__ import annotations

from typing import ClassVar


class VoiceConversionError(Exception):
    """Base of all errors that AutoVoice raises.

    Attributes:
        exit_code: what a command line should exit with: 2 where the caller can mend it, 1 where the engine
            failed.
    """

    exit_code: ClassVar[int] = 2


class ConfigurationError(VoiceConversionError):
    """A `PipelineConfig` or an argument asks for something that does not exist."""


class AudioInputError(VoiceConversionError):
    """Audio samples that cannot be converted: empty, not finite, wrong rank, wrong range, too short."""


class SampleRateError(AudioInputError):
    """A sample rate outside the supported range."""


class AudioFileError(VoiceConversionError):
    """An input file that cannot be read as audio: missing, a directory, unsupported, truncated."""


class OutputError(VoiceConversionError):
    """An output that cannot be written: no such folder, no permission, unknown format, full disk."""


class EmbeddingError(VoiceConversionError):
    """A target embedding of the wrong size, with no direction (all zero) or not finite."""


class PitchError(VoiceConversionError):
    """A pitch shift beyond two octaves, or a pitch track that does not fit its source."""


class RepositoryError(VoiceConversionError):
    """A model repository that is missing, incomplete, corrupt, or at odds with its own configs."""


class ReleaseError(VoiceConversionError):
    """A release that is not as it was published, is not signed by the key given, or cannot be published."""


class RolloutError(VoiceConversionError):
    """A rollout that cannot go on: a release that is not admitted, no service, or another one on trial."""


class StreamClosedError(VoiceConversionError):
    """Audio pushed into a stream, or a call made on a pipeline or an engine, that has been closed."""


class InferenceError(VoiceConversionError):
    """The engine failed on a valid request.

    Attributes:
        transient: whether the same request may succeed when sent again.
    """

    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = True


class InferenceTimeoutError(InferenceError):
    """A request took longer than the configured timeout."""


class UnavailableError(InferenceError):
    """A server that cannot be reached, is overloaded, or failed so often that it is left alone a while."""


class CapacityError(UnavailableError):
    """A new sequence for an engine that already holds as many live ones as it can."""


class DeviceError(InferenceError):
    """The asked-for device is not there or cannot hold the model."""

    transient: ClassVar[bool] = False


class SequenceError(InferenceError):
    """A request names a sequence the engine does not hold (never started, ended, or evicted)."""

    transient: ClassVar[bool] = False


class ReleaseGoneError(SequenceError):
    """The release that a sequence or a conversion began on is not served any more; begin again."""


class RequestError(InferenceError):
    """A request that does not fit the model's config; sending it again cannot help."""

    transient: ClassVar[bool] = False


class PassthroughWarning(UserWarning):
    """The returned audio is the level-normalised input, NOT converted.

    The engine failed and the config asked for `fallback="passthrough"`.
    """


class AudioFileWarning(UserWarning):
    """A recording is damaged, or not all of its channels were taken; what could be read is used."""
