"""What the commands of releases share: keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autovoice.releases.signing import SigningKey, TrustedKey


def signing_key_of(key: Path | None, certificates: Sequence[Path] | None) -> SigningKey | None:
    """What `--signing-key` and `--certificate` name; None for nothing.

    Raises:
        ConfigurationError: certificates without their key.
    """
    from autovoice.errors import ConfigurationError
    from autovoice.releases.signing import SigningKey

    if key is None:
        if certificates:
            raise ConfigurationError(f"--certificate {certificates[0]} signs nothing: give --signing-key too")
        return None
    return SigningKey(key, tuple(certificates or ()))


def trusted_key_of(key: Path | None, certificates: Sequence[Path] | None) -> TrustedKey | None:
    """What `--public-key` and `--certificate-chain` name; None for nothing.

    Raises:
        ConfigurationError: both are given.
    """
    from autovoice.errors import ConfigurationError
    from autovoice.releases.signing import TrustedKey

    if key is not None and certificates:
        raise ConfigurationError(
            f"--public-key {key} and --certificate-chain {certificates[0]} contradict each other; give one"
        )
    return TrustedKey(key, tuple(certificates or ())) if key is not None or certificates else None
