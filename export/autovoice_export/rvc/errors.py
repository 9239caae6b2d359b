"""What an import may raise."""

from __future__ import annotations

from autovoice.errors import ConfigurationError


class ImportFailure(ConfigurationError):
    """A file or setting that no voice can be imported from; the message names it and says what to do."""
