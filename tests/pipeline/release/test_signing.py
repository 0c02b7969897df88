"""Signatures: by the key that the settings name, over every byte of a record, by trusted keys where some are named."""

import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from pipeline.errors import UserError
from pipeline.records import load
from pipeline.release.signing import check, load_signer
from pipeline.settings import Settings
from pipeline.store import Store
from tests.made_releases import published


def pem(key: Ed25519PrivateKey | X25519PrivateKey, password: bytes | None = None) -> str:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return replace(Settings.from_environment(), home=tmp_path / "home", signing_key=None, signing_key_file=None)


def test_a_machines_own_key_is_made_once_and_is_private(settings: Settings) -> None:
    keys: list[str] = []
    threads = [threading.Thread(target=lambda: keys.append(load_signer(settings).public_key)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8 and len(set(keys)) == 1
    (file,) = settings.home.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_comes_from_the_environment_or_a_file(settings: Settings, tmp_path: Path) -> None:
    one, two = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_text(pem(two))
    by_file = replace(settings, signing_key_file=tmp_path / "key.pem")
    assert load_signer(by_file).public_key == two.public_key().public_bytes_raw().hex()
    assert load_signer(replace(by_file, signing_key=pem(one))).public_key == one.public_key().public_bytes_raw().hex()
    assert not settings.home.exists()  # no key is made where one is named


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("hello", "ATELIER_SIGNING_KEY: expected an Ed25519 private key as PEM without a password"),
        (pem(Ed25519PrivateKey.generate(), b"secret"), "ATELIER_SIGNING_KEY: expected .* without a password"),
        (pem(X25519PrivateKey.generate()), "ATELIER_SIGNING_KEY: expected an Ed25519 private key, got another kind"),
    ],
)
def test_a_wrong_key_is_one_line(settings: Settings, key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_signer(replace(settings, signing_key=key))


def test_a_file_that_is_not_there_is_one_line(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ATELIER_SIGNING_KEY_FILE: expected a file to read, got .*none.pem"):
        load_signer(replace(settings, signing_key_file=tmp_path / "none.pem"))


def test_a_signature_covers_every_field_and_survives_the_store(settings: Settings, store: Store) -> None:
    signer = load_signer(settings)
    release = published(store, signer=signer)
    assert load(store, release.ref, type(release)) == release == signer.signed(release)
    assert check(release, ()) is None and check(release, ("0" * 64, signer.public_key)) is None
    assert release.signature is not None
    other = load_signer(replace(settings, home=settings.home / "other"))
    changes: list[dict[str, Any]] = [
        {"license": "other"},
        {"files": release.files[1:]},
        {"parents": ()},
        {"signature": release.signature.model_copy(update={"public_key": other.public_key})},
        {"signature": release.signature.model_copy(update={"value": ""})},
        {"signature": release.signature.model_copy(update={"public_key": "f" * 64})},  # no point of the curve
    ]
    for change in changes:
        assert "got other content or another key's signature" in str(check(release.model_copy(update=change), ()))


def test_where_keys_are_trusted_others_and_none_are_refused(settings: Settings, store: Store) -> None:
    release = published(store, signer=load_signer(settings))
    assert "expected a signature by one of" in str(check(release, ("0" * 64,)))
    unsigned = release.model_copy(update={"signature": None})
    assert check(unsigned, ("0" * 64,)) == "expected a signature by a trusted key, got none"
    assert check(unsigned, ()) is None


def test_trusted_keys_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_TRUSTED_KEYS", f"{'A' * 64}, {'b' * 64},")
    assert Settings.from_environment().trusted_keys == ("a" * 64, "b" * 64)
    monkeypatch.setenv("ATELIER_TRUSTED_KEYS", "my key")
    with pytest.raises(UserError, match="ATELIER_TRUSTED_KEYS: expected public keys of 64 hexadecimal digits"):
        Settings.from_environment()
