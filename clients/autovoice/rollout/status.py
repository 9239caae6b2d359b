"""What `autovoice rollout status` tells: what is wanted, and what of that is so."""

from __future__ import annotations

from dataclasses import dataclass

from autovoice.rollout.envoy import shadowed, weights
from autovoice.rollout.state import Event, Mode, RolloutFolder, ServerEntry


@dataclass(frozen=True)
class Status:
    """A rollout at one moment.

    Attributes:
        stable: the promoted release.
        candidate: the release on trial.
        share: percent of the requests that the candidate is to have.
        shadow: percent of the requests that it gets a copy of now.
        shares: percent of the requests by release, as they are now; empty where none can be answered.
        is_served: whether the service runs.
        is_promoted_to: whether a promotion or rollback runs.
        servers: that run, by release.
        last: what happened last.
        mode: one server process for each release, or both releases in one.
    """

    stable: int | None
    candidate: int | None
    share: int
    shadow: int
    shares: dict[int, int]
    is_served: bool
    is_promoted_to: bool
    servers: dict[int, ServerEntry]
    last: Event | None
    mode: Mode

    def lines(self) -> list[str]:
        """It in words."""
        if self.stable is None:
            lines = ["no release is promoted yet"]
        else:
            lines = [f"release {self.stable} is promoted"]
        if self.candidate is not None:
            goes_on = "a promotion runs" if self.is_promoted_to else "no promotion runs"
            lines.append(
                f"release {self.candidate} is on trial with {self.share} % of the requests; {goes_on}"
            )
        if self.shadow:
            lines.append(f"release {self.candidate} gets a copy of {self.shadow} % of the requests")
        if not self.is_served:
            lines.append("no service runs; `autovoice serve --rollout` starts it")
        elif not any(self.servers[number].ready for number in self.shares):
            lines.append("no request is answered now: the server of the promoted release starts")
        if self.last is not None:
            release = "" if self.last.release is None else f" release {self.last.release}"
            lines.append(f"last: {self.last.event}{release} ({self.last.reason})")
        return lines


def read_status(folder: RolloutFolder) -> Status:
    """The rollout as it is now.

    Raises:
        RolloutError: the folder holds none.
    """
    state = folder.read()
    is_served = folder.is_served()
    servers = folder.servers() if is_served else {}
    return Status(
        state.stable,
        state.candidate,
        state.share,
        shadowed(state, servers),
        weights(state, servers),
        is_served,
        folder.is_promoted_to(),
        servers,
        state.last,
        state.mode,
    )
