"""Ed25519 signatures of records (RFC 8032, by `cryptography`): who published this, and is it as they published it?

    signer = load_signer(settings)          # by ATELIER_SIGNING_KEY or ATELIER_SIGNING_KEY_FILE (settings.py)
    release = signer.signed(release)
    complaint = check(release, settings.trusted_keys)

What is signed are the record's canonical bytes with the public key in place and an empty value. A signature by an
unknown key says only that the record was not changed since: name the keys that you trust in ATELIER_TRUSTED_KEYS.
"""

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.artifacts import Release, Signature
from pipeline.errors import UserError
from pipeline.release.records import Retraction
from pipeline.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

HOME_KEY = "signing-key.pem"
MAKE_ONE = "make one with `openssl genpkey -algorithm ed25519 -out key.pem`"

SignedT = TypeVar("SignedT", Release, Retraction)


@dataclass(frozen=True)
class Signer:
    """A private key, ready to sign."""

    key: "Ed25519PrivateKey"

    @property
    def public_key(self) -> str:
        """The public half, in hexadecimal."""
        return self.key.public_key().public_bytes_raw().hex()

    def signed(self, record: SignedT) -> SignedT:
        """The record with this key's signature; the same bytes each time."""
        unsigned = record.model_copy(update={"signature": Signature(public_key=self.public_key, value="")})
        value = self.key.sign(unsigned.to_bytes()).hex()
        return record.model_copy(update={"signature": Signature(public_key=self.public_key, value=value)})


def load_signer(settings: Settings) -> Signer:
    """The key that the settings name, or this machine's own, made on first use. Raises UserError."""
    if settings.signing_key is not None:
        return _parse(settings.signing_key.encode(), "ATELIER_SIGNING_KEY")
    path = settings.signing_key_file or settings.home / HOME_KEY
    if settings.signing_key_file is None:
        _make_once(path)
    try:
        return _parse(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(
            f"ATELIER_SIGNING_KEY_FILE: expected a file to read, got {path}: {error.strerror}; {MAKE_ONE}"
        ) from None


def check(record: Release | Retraction, trusted_keys: tuple[str, ...]) -> str | None:
    """What is wrong with a record's signature, None where nothing is.

    An unsigned record passes only where no keys are trusted in particular.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signature = record.signature
    if signature is None:
        return "expected a signature by a trusted key, got none" if trusted_keys else None
    if trusted_keys and signature.public_key not in trusted_keys:
        return f"expected a signature by one of {', '.join(trusted_keys)}, got one by {signature.public_key}"
    unsigned = record.model_copy(update={"signature": signature.model_copy(update={"value": ""})})
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.public_key))
        key.verify(bytes.fromhex(signature.value), unsigned.to_bytes())
    except (InvalidSignature, ValueError):
        return f"expected what {signature.public_key} signed, got other content or another key's signature"
    return None


def _parse(pem: bytes, where: str) -> Signer:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        raise UserError(f"{where}: expected an Ed25519 private key as PEM without a password; {MAKE_ONE}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{where}: expected an Ed25519 private key, got another kind; {MAKE_ONE}")
    return Signer(key)


def _make_once(path: Path) -> None:
    """Make this machine's own key where there is none, whole or not at all; of several makers one wins."""
    if path.exists():
        return
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # a link, unlike a rename, replaces nothing
            os.link(made, path)
    finally:
        made.unlink()
