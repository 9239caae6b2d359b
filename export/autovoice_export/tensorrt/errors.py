"""The one exception of building plans."""

from __future__ import annotations


class PlanError(RuntimeError):
    """A plan that cannot be built, loaded or trusted; the message says why and what to do."""
