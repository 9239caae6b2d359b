"""Which releases may be served: whole ones, that their gate let pass, with the tensors that clients know."""

from __future__ import annotations

from pathlib import Path

from autovoice.errors import ReleaseError, RolloutError
from autovoice.releases import documents
from autovoice.releases.release import GATE_FILENAME, Release, release_numbers
from autovoice.releases.signing import TrustedKey
from autovoice.releases.verifying import verify
from autovoice.repository.model_config import ENSEMBLE, read_config
from autovoice.repository.reader import ModelRepository
from autovoice.rollout.state import RolloutState

_TRITON_IDLE_SECONDS = 1.0  # where a config does not say how long a sequence may be idle


def admit(state: RolloutState, number: int, *, needs_gate: bool | None = False) -> Release:
    """Check that a release is as it was published, signed where that is asked for, and passed its gate.

    Args:
        state: of the rollout.
        number: of the release.
        needs_gate: refuse one that no gate has looked at; False: refuse only one that its gate refused; None:
            ask for no gate.

    Raises:
        RolloutError: it is not to be served; the message says why.
    """
    releases = Path(state.releases)
    folder = releases / str(number)
    if not folder.is_dir():
        known = ", ".join(map(str, release_numbers(releases))) or "none"
        raise RolloutError(f"there is no release {number} in {releases}, which has {known}; publish it first")
    key = None if state.public_key is None else TrustedKey(Path(state.public_key))
    try:
        release = verify(folder, key)
        passed = None if needs_gate is None else gate_passed(release)
    except ReleaseError as error:
        raise RolloutError(f"release {number} does not verify: {error}; publish it anew") from error
    if passed is False:
        raise RolloutError(f"release {number} was refused by its gate; {folder / GATE_FILENAME} says why")
    if needs_gate and passed is None:
        raise RolloutError(
            f"no gate has looked at release {number}; run `autovoice gate {number}`, or do without "
            "(--no-require-gate)"
        )
    return release


def gate_passed(release: Release) -> bool | None:
    """Whether its gate let a release pass; None where no gate has looked at it.

    Raises:
        ReleaseError: the gate's result was changed.
    """
    path = release.path / GATE_FILENAME
    if not path.exists():
        return None
    return documents.load(path).get("passed") is True


def require_same_contract(release: Release, stable: Release) -> None:
    """Refuse a release whose clients would have to ask otherwise.

    Raises:
        RolloutError: a model, tensor or parameter differs.
    """
    names = sorted(set(release.contract) | set(stable.contract))
    differing = [name for name in names if release.contract.get(name) != stable.contract.get(name)]
    if differing:
        raise RolloutError(
            f"release {release.number} has other tensors than the stable release {stable.number} "
            f"({', '.join(differing)}); serve it beside, from a rollout folder of its own"
        )


def idle_seconds(release: Path) -> float:
    """How long a sequence of a release may go without a request before Triton ends it."""
    repository = ModelRepository(release)
    longest = 0.0
    for name in repository.names():
        if repository.spec(name).kind != ENSEMBLE:
            config = read_config(release / name / "config.pbtxt")
            if config.HasField("sequence_batching"):
                idle = config.sequence_batching.max_sequence_idle_microseconds / 1e6
                longest = max(longest, idle or _TRITON_IDLE_SECONDS)
    return longest
