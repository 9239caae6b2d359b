"""Signatures of releases by `model-signing`: Sigstore bundles, by a key pair or certificates, offline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autovoice.atomic import reason_of
from autovoice.errors import ReleaseError
from autovoice.releases.release import RELEASE_FILENAME, UNLISTED

UNSIGNED = tuple(sorted(UNLISTED - {RELEASE_FILENAME}))
"""Files of a release that its signature does not cover: itself, and what comes later."""


@dataclass(frozen=True)
class SigningKey:
    """What signs.

    Attributes:
        private_key: PEM file of an elliptic curve's private key (P-256, P-384 or P-521), without password.
        certificates: PEM files: the certificate of that key, then those between it and the root that the
            verifier knows. Empty for a bare key, whose public half the verifier knows.
    """

    private_key: Path
    certificates: tuple[Path, ...] = ()


@dataclass(frozen=True)
class TrustedKey:
    """What a signature is checked by: one of the two.

    Attributes:
        public_key: PEM file.
        certificates: PEM files of root certificates.
    """

    public_key: Path | None = None
    certificates: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return str(self.public_key or ", ".join(map(str, self.certificates)))


def sign(path: Path, signature: Path, key: SigningKey) -> None:
    """Sign a release's folder, or one file.

    Args:
        path: what to sign; of a folder everything but `UNSIGNED`.
        signature: the bundle to write.
        key: that signs.

    Raises:
        ReleaseError: model-signing is not installed, or the key or a certificate cannot be used.
        OSError: the bundle cannot be written.
    """
    with _model_signing(f"{path.name} cannot be signed"):
        from model_signing.signing import Config
    with _errors_of(f"{path.name} cannot be signed with {key.private_key}"):
        config = Config().set_hashing_config(_hashing())
        if key.certificates:
            _require_no_root(key.certificates[1:])
            config.use_certificate_signer(
                private_key=key.private_key,
                signing_certificate=key.certificates[0],
                certificate_chain=key.certificates[1:],
            )
        else:
            config.use_elliptic_key_signer(private_key=key.private_key)
    config.sign(path, signature)


def check_signature(path: Path, signature: Path, key: TrustedKey) -> None:
    """Check the signature of a release's folder, or of one file.

    Args:
        path: what was signed.
        signature: its bundle.
        key: that is trusted.

    Raises:
        ReleaseError: it is not signed, not by that key, or was altered afterwards; model-signing is not
            installed, or the key cannot be read.
    """
    if not signature.is_file():
        raise ReleaseError(f"{path} is not signed: there is no {signature.name}")
    with _model_signing(f"the signature of {path} cannot be checked"):
        from model_signing.verifying import Config
    with _errors_of(f"the signature of {path} cannot be checked by {key}"):
        config = Config().set_hashing_config(_hashing())
        if key.public_key is not None:
            config.use_elliptic_key_verifier(public_key=key.public_key)
        else:
            config.use_certificate_verifier(certificate_chain=key.certificates)
    _require_canonical(signature)
    try:
        config.verify(path, signature)
    except Exception as error:  # each kind of key has its own, and a changed bundle may fail anywhere
        reason = str(error)
        if "Signature mismatch" in reason:
            raise ReleaseError(f"{path} was altered after it was signed ({reason})") from error
        raise ReleaseError(f"{path} is not signed by {key}, or {signature.name} was changed") from error


def _require_no_root(certificates: tuple[Path, ...]) -> None:
    """Refuse a root between the signer's certificate and the root: nothing in the bundle would protect it.

    Raises:
        ReleaseError: names the first.
        OSError: one cannot be read.
        ValueError: one is no certificate.
    """
    from cryptography import x509

    for path in certificates:
        for certificate in x509.load_pem_x509_certificates(path.read_bytes()):
            if certificate.issuer == certificate.subject:
                raise ReleaseError(f"{path} is a root certificate, which verifiers have: leave it out")


def _hashing() -> Any:
    from model_signing.hashing import Config

    return Config().set_ignored_paths(paths=UNSIGNED, ignore_git_paths=False)


def _require_canonical(signature: Path) -> None:
    """Refuse a bundle with any byte that model-signing would not have written, as it overlooks some.

    Raises:
        ReleaseError: there is one.
    """
    from sigstore_models.bundle.v1 import Bundle

    try:
        text = signature.read_bytes().decode()
        is_canonical = Bundle.from_dict(json.loads(text)).to_json() == text
    except OSError as error:
        raise ReleaseError(f"{signature} cannot be read: {reason_of(error)}") from error
    except Exception as error:  # of JSON, or of the bundle's schema
        raise ReleaseError(f"{signature} was changed: it is no signature any more") from error
    if not is_canonical:
        raise ReleaseError(f"{signature} was changed")


@contextmanager
def _model_signing(what: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ReleaseError(f"{what} ({error}); run `pip install 'autovoice[release]'`") from error


@contextmanager
def _errors_of(what: str) -> Iterator[None]:
    """Turn what goes wrong while keys are read into one error: the libraries raise a dozen kinds."""
    try:
        yield
    except ReleaseError:
        raise
    except Exception as error:
        raise ReleaseError(f"{what}: {reason_of(error)}") from error
