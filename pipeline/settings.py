"""The only reader of the environment (boto3, Ray and Airflow read their own variables).

| variable | meaning | default |
| --- | --- | --- |
| ATELIER_STORE | store URI, `s3://bucket/prefix` or `file:///folder` | the embedded store |
| ATELIER_HOME | folder of the embedded stack and of local files | `.atelier` |
| ATELIER_RECIPES | folders of recipes beside the ones that ship, joined by `:` | none |
| ATELIER_CACHE | folder of decoded shards, shared by the workers of a node | `cache` in ATELIER_HOME |
| ATELIER_CACHE_GB | most that lies there, in GB | half of what is free, at most 100 |
| ATELIER_SIGNING_KEY | Ed25519 private key that signs releases, as PEM | that of the file |
| ATELIER_SIGNING_KEY_FILE | file of that key | `signing-key.pem` in ATELIER_HOME, made on first use |
| ATELIER_TRUSTED_KEYS | public keys in hexadecimal, joined by `,`; a release by another or none is refused | any |
| RAY_ADDRESS | Ray cluster that `train` joins | a cluster of this process |
| AWS_ENDPOINT_URL_S3 | an S3 server other than Amazon's; boto3 reads it too | Amazon's, or the embedded store |
| RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH | token of Ray's Jobs API | none |
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

# Ray takes 127.0.0.1 for this machine's address on its network, and listens there, unless told that there is no cluster
# of several machines; its variable for that is named after the systems that default to it.
RAY_ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class Settings:
    """What the environment says, read once where a command starts."""

    store: str | None
    home: Path
    recipe_folders: tuple[Path, ...]
    cache: Path | None
    cache_gb: float | None
    ray_address: str | None
    s3_endpoint: str | None
    user: str
    signing_key: str | None = None
    signing_key_file: Path | None = None
    trusted_keys: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls) -> "Settings":
        """Read the variables of the table above. Raises UserError."""
        env = os.environ
        folders = env.get("ATELIER_RECIPES", "")
        return cls(
            store=env.get("ATELIER_STORE") or None,
            home=Path(env.get("ATELIER_HOME") or ".atelier").absolute(),
            recipe_folders=tuple(Path(f).absolute() for f in folders.split(os.pathsep) if f),
            cache=_path(env.get("ATELIER_CACHE")),
            cache_gb=_gigabytes(env.get("ATELIER_CACHE_GB")),
            ray_address=env.get("RAY_ADDRESS") or None,
            s3_endpoint=env.get("AWS_ENDPOINT_URL_S3") or None,
            user=env.get("USER") or env.get("LOGNAME") or "unknown",
            signing_key=env.get("ATELIER_SIGNING_KEY") or None,
            signing_key_file=_path(env.get("ATELIER_SIGNING_KEY_FILE")),
            trusted_keys=_public_keys(env.get("ATELIER_TRUSTED_KEYS", "")),
        )

    @property
    def cache_folder(self) -> Path:
        """Where decoded shards are kept."""
        return self.cache or self.home / "cache"


def _path(text: str | None) -> Path | None:
    return Path(text).absolute() if text else None


def _public_keys(text: str) -> tuple[str, ...]:
    keys = tuple(key.strip().lower() for key in text.split(",") if key.strip())
    for key in keys:
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise UserError(
                "ATELIER_TRUSTED_KEYS: expected public keys of 64 hexadecimal digits, joined by `,` (`atelier verify` "
                f"shows a release's), got {key!r:.80}"
            )
    return keys


def _gigabytes(text: str | None) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"ATELIER_CACHE_GB: expected a number of GB such as 20 or 0.5, got {text!r}")
    return value


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a server that this process starts: its own, with changes."""
    return {**os.environ, **changes}


def update_environment(changes: Mapping[str, str]) -> None:
    """Change the environment of this process and of those it starts from now on."""
    os.environ.update(changes)
