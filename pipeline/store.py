"""The store: object storage behind one small interface, `s3://bucket[/prefix]` or `file:///folder`
(and, to read only, `http(s)://host/folder`: `pipeline.webstore`).

Every verb reads and writes through here, and no other file imports boto3:

    store = open_store("s3://atelier")         # or file:///home/me/out
    store.put("runs/3f2a/model.safetensors", data)
    etag = store.create("runs/3f2a/run.json", record)             # AlreadyExists if another was first
    data, etag = store.get_with_etag("aliases/digits/champion.json")
    store.replace("aliases/digits/champion.json", data, etag)     # Changed if another wrote meanwhile

What both schemes promise: an object is there whole or not at all, whenever the writer is killed; once a call
returns, every reader sees its effect; of several `create` of one key one wins; no `replace` loses an update; a
listing is in the order of the tree. A key must not be the folder of another key (`a` and `a/b`): folders cannot hold
both. The interface is in `pipeline.objects`, the folder in `pipeline.filestore`, S3 below.

S3 credentials, region and endpoint are boto3's business: the standard AWS chain and `AWS_ENDPOINT_URL_S3`.
"""

import contextlib
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import (
    AlreadyExists,
    AtelierError,
    Changed,
    NotFound,
    StoreError,
    StoreRefused,
    UserError,
)
from pipeline.filestore import FileStore
from pipeline.objects import Entry, Store, check_key, check_prefix, check_range, in_tree_order, opened
from pipeline.patience import Patience

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from botocore.exceptions import ClientError
    from mypy_boto3_s3 import S3Client

__all__ = ["Entry", "FileStore", "S3Store", "Store", "make_bucket", "open_store"]

MULTIPART_BYTES = 16 * 2**20  # larger objects go up in parts of this size: a lost connection costs one part
ATTEMPTS = 5  # botocore waits about 7 s over five: longer than a store takes to restart
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")  # AWS's old rule, the widest one


def open_store(uri: str) -> Store:
    """Open a store by its URI; it connects on first use. Raises UserError for a URI that names none."""
    scheme, found, rest = uri.partition("://")
    if found and scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if _BUCKET.fullmatch(bucket) and (not prefix or check_key(prefix)):
            return S3Store(f"s3://{bucket}/{prefix}".rstrip("/"))
    if found and scheme == "file" and rest.startswith("/") and rest.strip("/") and "\0" not in rest:
        return FileStore(f"file://{rest.rstrip('/')}")
    if found and scheme in ("http", "https"):
        from pipeline.webstore import WebStore

        if WebStore.serves(uri):
            return WebStore(uri)
    raise UserError(
        f"store: expected s3://BUCKET, s3://BUCKET/PREFIX, file:///ABSOLUTE/FOLDER or, to read only, "
        f"https://HOST/FOLDER, got {uri!r}"
        + (f"; for a folder write file://{Path(uri).absolute()}" if uri and not found else "")
    )


def make_bucket(uri: str, endpoint: str, access_key: str, secret_key: str) -> bool:
    """Make the bucket of an `s3://` URI on a server that is starting; False while it does not answer yet.

    For the embedded store only: other buckets are the business of whoever owns them.
    """
    from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError

    store = open_store(uri)
    assert isinstance(store, S3Store), uri
    client = _connect(uri, 1, endpoint, access_key, secret_key)
    try:
        client.create_bucket(Bucket=store.bucket)
    except (EndpointConnectionError, HTTPClientError):
        return False
    except ClientError as error:
        return error.response["Error"].get("Code") in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou")
    return True


class S3Store(Store):
    """A bucket, or a prefix in one, of any server that speaks S3 with conditional writes."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.bucket, _, folder = uri.removeprefix("s3://").partition("/")
        self.prefix = f"{folder}/" if folder else ""
        self._client: S3Client | None = None
        self._client_process = 0
        self._lock = threading.Lock()

    def client(self) -> "S3Client":
        """This process's client: threads share it, but a forked child must not share its parent's sockets."""
        with self._lock:
            if self._client is None or self._client_process != os.getpid():
                self._client, self._client_process = _connect(self.uri), os.getpid()
            return self._client

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        return self._get(key, None)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        check_range(start, length)
        if length == 0:  # HTTP has no empty range
            self.stat(key)
            return b""
        return self._get(key, f"bytes={start}-{start + length - 1}")[0]

    def stat(self, key: str) -> Entry:
        with self.translated(key) as client:
            try:
                found = client.head_object(Bucket=self.bucket, Key=self._full(key))
            except client.exceptions.ClientError as error:
                if _status(error) == 404:  # the reply has no body to say whether the key or the bucket is missing
                    client.list_objects_v2(Bucket=self.bucket, Prefix=self._full(key), MaxKeys=1)
                raise
            return Entry(key, found["ContentLength"], _bare(found["ETag"]), found["LastModified"].timestamp())

    def put(self, key: str, data: bytes | Path) -> str:
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        with opened(data) as file, self.translated(key) as client:
            if size <= MULTIPART_BYTES:
                reply = client.put_object(Bucket=self.bucket, Key=self._full(key), Body=file.read())
                return _bare(reply["ETag"])
            client.upload_fileobj(file, self.bucket, self._full(key), Config=_parts())
            return self.stat(key).etag

    def create(self, key: str, data: bytes) -> str:
        return self._put_if(key, data, None)

    def replace(self, key: str, data: bytes, etag: str) -> str:
        return self._put_if(key, data, etag)

    def delete(self, key: str) -> None:
        with self.translated(key) as client:
            client.delete_object(Bucket=self.bucket, Key=self._full(key))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        check_prefix(prefix)
        with self.translated(prefix) as client:
            yield from in_tree_order(self._listed(client, prefix))

    def _listed(self, client: "S3Client", prefix: str) -> Iterator[Entry]:
        pages = client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
            for item in page.get("Contents", []):
                key = item["Key"].removeprefix(self.prefix)
                if key and not key.endswith("/"):  # an empty object by which some consoles show a folder
                    yield Entry(key, item["Size"], _bare(item["ETag"]), item["LastModified"].timestamp())

    def _full(self, key: str) -> str:
        return self.prefix + check_key(key)

    def _get(self, key: str, byte_range: str | None) -> tuple[bytes, str]:
        """GET, again where the connection broke in the middle of the body: botocore retries only up to there."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        ranged: dict[str, Any] = {"Range": byte_range} if byte_range else {}
        with self.translated(key) as client:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    reply = client.get_object(Bucket=self.bucket, Key=self._full(key), **ranged)
                    return reply["Body"].read(), _bare(reply["ETag"])
                except (HTTPClientError, IncompleteReadError):
                    if attempt == ATTEMPTS:
                        raise
                except client.exceptions.ClientError as error:
                    if _status(error) == 416:  # the range begins past the object's end
                        return b"", ""
                    raise
        raise AssertionError("unreachable")

    def _put_if(self, key: str, data: bytes, etag: str | None) -> str:
        """PUT on a condition: nothing is there yet (etag None), or an object of this etag."""
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}
        with self.translated(key) as client:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    reply = client.put_object(Bucket=self.bucket, Key=self._full(key), Body=data, **condition)
                    return _bare(reply["ETag"])
                except client.exceptions.ClientError as error:
                    if _status(error) == 409 and attempt < ATTEMPTS:  # AWS: two at once, neither judged; ask again
                        time.sleep(random.uniform(0.05, 0.1) * 2**attempt)  # noqa: S311 - jitter, no secret
                        continue
                    resent = error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                    if resent and _status(error) == 412 and (ours := self._etag_if_holds(key, data)):
                        return ours
                    raise self._refused_condition(error, key, etag) from None
        raise AssertionError("unreachable")

    def _etag_if_holds(self, key: str, data: bytes) -> str | None:
        """The etag of the object at `key` if it has exactly these bytes."""
        with contextlib.suppress(NotFound):
            found, etag = self.get_with_etag(key)
            return etag if found == data else None
        return None

    def _refused_condition(self, error: "ClientError", key: str, etag: str | None) -> Exception:
        """AlreadyExists or Changed if that is what the server says, else its error itself."""
        where = f"{self.uri}/{key}"
        if etag is None and _status(error) == 412:
            return AlreadyExists(f"{where}: expected no object there, found one")
        if etag is not None and (_status(error) == 412 or error.response["Error"].get("Code") == "NoSuchKey"):
            return Changed(f"{where}: expected etag {etag}, found another or none; read it again and retry")
        return error

    @contextlib.contextmanager
    def translated(self, key: str) -> Iterator["S3Client"]:
        """The client, with boto3's errors turned into ours."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"{self.uri}/{key}"
        try:
            yield self.client()
        except ClientError as error:
            raise _explain_reply(error, where, self.bucket) from None
        except (BotoCoreError, Boto3Error) as error:
            raise _explain_failure(error, where) from None


def _connect(
    uri: str,
    attempts: int = ATTEMPTS,
    endpoint: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
) -> "S3Client":
    """A client; what is None here comes from the environment or the files of the AWS chain."""
    import boto3
    from botocore import exceptions as boto
    from botocore.config import Config

    config = Config(
        s3={"addressing_style": "path"},  # other servers than AWS have no host name for each bucket
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=32,
        # boto3's newer default adds checksum trailers that other servers than AWS may refuse.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session()  # our own: boto3's default session is not safe in threads
    try:
        client = session.client(
            "s3",
            config=config,
            endpoint_url=endpoint,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
        )
        patience = Patience(uri, (boto.HTTPClientError, boto.ConnectionError))
        client.meta.events.register_first("needs-retry.s3", patience)  # type: ignore[arg-type]  # handlers may answer
    except ValueError as error:
        raise StoreRefused(f"{uri}: {error}; AWS_ENDPOINT_URL_S3 must be a URL such as http://HOST:PORT") from None
    return client


def _parts() -> "TransferConfig":
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(MULTIPART_BYTES, max_concurrency=4, multipart_chunksize=MULTIPART_BYTES)


def _status(error: "ClientError") -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def _bare(etag: str) -> str:
    return etag.strip('"')


_ADVICE = {  # S3's error codes that are the caller's to mend
    "NoSuchBucket": "expected a bucket, {bucket} does not exist; make it, or correct the store's URI",
    "InvalidBucketName": "expected a bucket name, got {bucket}; correct the store's URI",
    "InvalidAccessKeyId": "the store does not know the access key; check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "the secret key is not that of the access key; check AWS_SECRET_ACCESS_KEY",
    "AccessDenied": "the access key may not do this on bucket {bucket}; ask its owner for access",
    "ExpiredToken": "the credentials have expired; log in again",
    "InvalidToken": "the session token is not valid; check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it and try again",
    "PermanentRedirect": "bucket {bucket} is in another region; set AWS_REGION to its region",
    "AuthorizationHeaderMalformed": "bucket {bucket} is in another region; set AWS_REGION to its region",
}


def _explain_reply(error: "ClientError", where: str, bucket: str) -> AtelierError:
    """What the server said, as one of our errors."""
    code, status = error.response["Error"].get("Code", ""), _status(error)
    if advice := _ADVICE.get("AccessDenied" if status == 403 and code not in _ADVICE else code):
        return StoreRefused(f"{where}: {advice.format(bucket=bucket)}")
    if code in ("NoSuchKey", "NotFound", "404"):
        return NotFound(f"{where}: no object there")
    message = " ".join(error.response["Error"].get("Message", "").split())[:200]
    return StoreError(f"{where}: the store answered {status} {code} {message}; try again, or read its log")


def _explain_failure(error: Exception, where: str) -> AtelierError:
    """What went wrong on this side of the wire, as one of our errors."""
    from botocore import exceptions as boto

    text = " ".join(str(error).split())
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound):
        return StoreRefused(f"{where}: {text}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
    if isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.SSLError):
        # No mistake of the user for sure: a job that meets an outage is tried again.
        return StoreError(f"{where}: {text}; is the store running, and AWS_ENDPOINT_URL_S3 its address?")
    return StoreError(f"{where}: {text}; try again")
