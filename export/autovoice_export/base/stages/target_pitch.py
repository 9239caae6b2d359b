"""Target pitch: the median F0 a voice is expected to have, guessed from its embedding.

``pitch_shift_semitones="auto"`` moves the source's median pitch onto the target's. Where the target is known
only by its embedding, this regression stands in for a measurement.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autovoice_export.base.stages.voice import IDENTITY_SIZE, unpack

LOWEST_HZ = 60.0
HIGHEST_HZ = 500.0
_UNTRAINED_HZ = 150.0


class TargetPitch(nn.Module):
    """Linear regression from the identity in an embedding to the logarithm of the median F0."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(IDENTITY_SIZE, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, math.log(_UNTRAINED_HZ))

    def forward(self, embedding: Tensor) -> Tensor:
        """Guesses the median F0 of voices.

        Args:
            embedding: EMBEDDING [B, VOICE_SIZE].

        Returns:
            MEDIAN_F0 [B, 1] in Hz, between 60 and 500.
        """
        log_hz = self.linear(unpack(embedding).identity)
        return torch.exp(torch.clamp(log_hz, math.log(LOWEST_HZ), math.log(HIGHEST_HZ)))


def fit(embeddings: Tensor, median_f0: Tensor, ridge: float = 3e-4) -> TargetPitch:
    """Fits the regression in closed form (ridge regression on centred data, float64).

    Args:
        embeddings: [N, 256], unit length, one row for each recording.
        median_f0: [N] median F0 of the voiced frames of those recordings, Hz, above 0.
        ridge: added to the covariance of the embeddings. Their coordinates vary by about 0.04 from voice to
            voice (variance 2e-3), most of it in a few directions, so 3e-4 keeps those and shrinks the rest.

    Raises:
        ValueError: the arrays do not belong together, hold fewer than two rows, or an F0 is not positive.
    """
    count = embeddings.shape[0]
    if embeddings.ndim != 2 or embeddings.shape[1] != IDENTITY_SIZE or median_f0.shape != (count,):
        raise ValueError(
            f"expected embeddings [N, {IDENTITY_SIZE}] and median_f0 [N], "
            f"got {list(embeddings.shape)} and {list(median_f0.shape)}"
        )
    if count < 2:
        raise ValueError(f"a regression needs at least 2 recordings, got {count}")
    if not bool((median_f0 > 0).all()):
        raise ValueError(
            f"median_f0 must be above 0 Hz, got {float(median_f0.min()):g}: leave unvoiced recordings out"
        )
    features, target = embeddings.double(), torch.log(median_f0.double())
    mean_features, mean_target = features.mean(dim=0), target.mean()
    centred = features - mean_features
    gram = centred.T @ centred / count + ridge * torch.eye(IDENTITY_SIZE, dtype=torch.float64)
    weight = torch.linalg.solve(gram, centred.T @ (target - mean_target) / count)
    regression = TargetPitch()
    with torch.no_grad():
        regression.linear.weight.copy_(weight.unsqueeze(0))
        regression.linear.bias.copy_((mean_target - mean_features @ weight).unsqueeze(0))
    return regression
