"""Make the secrets that `compose.yaml` reads, each in a file: `python3 infra/make_secrets.py [FOLDER]`.

Any Python from 3.9 will do, without packages: it runs where Atelier is not installed.

A file that is there stays as it is, so that a second run changes nothing; remove one to have it made anew (with
`postgres-password`, `airflow-database` too, and the database's volume). The folder is its owner's alone; the files in
it are readable to all, because each service sees its own mounted and runs as another user than yours.
"""

import base64
import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "secrets"
# What stands before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410, sections 7 and 10.3).
ED25519_HEAD = bytes.fromhex("302e020100300506032b657004220420")


def main(folder: Path) -> None:
    """Write what is missing in `folder`."""
    folder.mkdir(exist_ok=True, parents=True)
    folder.chmod(0o700)

    def kept(name: str, make: Callable[[], str]) -> str:
        file = folder / name
        if not file.exists():
            file.write_text(make())
            file.chmod(0o644)
        return file.read_text()

    password = kept("postgres-password", token)
    kept("airflow-database", lambda: f"postgresql+psycopg2://airflow:{password}@postgres/airflow")
    kept("airflow-fernet-key", lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
    kept("airflow-secret-key", token)
    kept("airflow-jwt-secret", token)
    kept("airflow-admin-password", lambda: secrets.token_urlsafe(12))
    ray = kept("ray-token", token)
    connection = {"conn_type": "http", "schema": "http", "host": "ray-head", "port": 8265, "password": ray}
    kept("airflow-connections.json", lambda: json.dumps({"ray_default": connection}, indent=1))
    key, secret = secrets.token_hex(10).upper(), token()
    kept("aws-credentials", lambda: f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    kept("store.json", lambda: store_users(*keys_in((folder / "aws-credentials").read_text())))
    kept("signing-key.pem", signing_key)


def token() -> str:
    """A secret of 64 letters and digits, that needs no quoting in a URL."""
    return secrets.token_hex(32)


def keys_in(credentials: str) -> tuple[str, str]:
    """Access key and secret key of a credentials file."""
    values = dict(line.split(" = ") for line in credentials.splitlines() if " = " in line)
    return values["aws_access_key_id"], values["aws_secret_access_key"]


def store_users(key: str, secret: str) -> str:
    """SeaweedFS's list of users: one, who may all."""
    user = {"name": "atelier", "credentials": [{"accessKey": key, "secretKey": secret}]}
    return json.dumps({"identities": [{**user, "actions": ["Admin", "Read", "List", "Tagging", "Write"]}]}, indent=1)


def signing_key() -> str:
    """An Ed25519 private key as PEM; it signs releases. Any 32 random bytes are one (RFC 8032, section 5.1.5)."""
    der = base64.b64encode(ED25519_HEAD + secrets.token_bytes(32)).decode()
    return f"-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
