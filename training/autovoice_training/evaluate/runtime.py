"""The voice under test, through the public runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice_export.base.build import build_repository
from autovoice_export.base.checkpoint import Checkpoint, load_checkpoint
from autovoice_export.base.stages.timing import LOOKAHEAD
from autovoice_export.base.wiring import stages
from autovoice_training.evaluate.audio import RATE, Audio


class RepositoryConverter:
    """A model repository, in process and on one thread.

    Args:
        repository: its folder.
    """

    def __init__(self, repository: Path) -> None:
        # A fallback would be judged as if it were the voice.
        self._pipeline = VoiceConversionPipeline(
            PipelineConfig(repository=repository, device="cpu", threads=1, fallback="raise")
        )

    def close(self) -> None:
        """Gives back what the pipeline holds."""
        self._pipeline.close()

    def embed(self, reference: Audio) -> NDArray[np.float32]:
        """Describes a voice from a recording [T] at RATE."""
        return self._pipeline.embed(reference, RATE)

    def convert(self, audio: Audio, embedding: NDArray[np.float32], shift_semitones: float) -> Audio:
        """Converts a recording [T] at RATE into as many samples."""
        return self._pipeline.convert(
            audio, embedding, source_sample_rate=RATE, pitch_shift_semitones=shift_semitones
        )


class StageConverter:
    """The stages of a checkpoint in PyTorch, for a voice that is still in training.

    Args:
        checkpoint: the voice.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._stages = {stage.name: stage.module for stage in stages(checkpoint)}

    @torch.inference_mode()
    def embed(self, reference: Audio) -> NDArray[np.float32]:
        """Describes a voice from a recording [T] at RATE."""
        embedding: NDArray[np.float32] = self._stages["speaker_encoder"](torch.from_numpy(reference)[None])
        return np.asarray(embedding[0])

    @torch.inference_mode()
    def convert(self, audio: Audio, embedding: NDArray[np.float32], shift_semitones: float) -> Audio:
        """Converts a recording [T] at RATE into as many samples."""
        padded, *states = self._stages["pad_source"](torch.from_numpy(audio)[None])
        content, loudness, _ = self._stages["content_encoder"](padded, states[0])
        f0, periodicity, *_ = self._stages["pitch_extractor"](padded, states[1])
        voice, shift = torch.from_numpy(embedding)[None], torch.tensor([[shift_semitones]])
        made, _ = self._stages["synthesizer"](content, loudness, f0, periodicity, voice, shift, states[2])
        converted: Audio = made[0, LOOKAHEAD : LOOKAHEAD + len(audio)].numpy()
        return converted


def export_checkpoint(checkpoint: Path, repository: Path) -> None:
    """Builds a model repository from a checkpoint.

    Args:
        checkpoint: weights as the trainer publishes them (safetensors).
        repository: folder to write.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit the stages.
        ExportError: a stage behaves differently when exported.
    """
    build_repository(load_checkpoint(checkpoint), repository)
