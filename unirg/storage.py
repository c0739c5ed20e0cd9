"""URIs through fsspec: read from anything it opens, commit to `file:` and `s3:`.

Every S3 setting comes from the environment: `AWS_ENDPOINT_URL_S3` (or `AWS_ENDPOINT_URL`),
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, as botocore reads them. Failures come out as
`StorageError`, which says what to do; object names in it are ours (digests), never a patient's.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from unirg.errors import Unavailable, UserError

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
S3_ATTEMPTS = 5  # botocore's standard mode: exponential backoff with jitter on 5xx, throttling, resets
S3_READS = 2  # of a body that breaks off; s3fs repeats whole requests too, so this multiplies S3_ATTEMPTS


class StorageError(Unavailable):
    """Storage that cannot be reached, read or written, with the remedy."""


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The path of a `file:` URI or plain path, absolute.

    Raises:
        StorageError: the URI is not local.
    """
    if not is_local(uri):
        raise StorageError(f"{uri} is not a local path")
    return Path(uri.removeprefix("file://")).expanduser().absolute()


def absolute(uri: str) -> str:
    """One spelling of a URI: a local one as an absolute path, none with a slash at its end."""
    return str(local_path(uri)) if is_local(uri) else uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def open_fs(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """(file system, path) of a URI; S3 gets timeouts, retries and signatures from the environment.

    Raises:
        StorageError: the scheme is unknown, or its package is not installed.
    """
    if is_local(uri):
        return url_to_fs(str(local_path(uri)))
    options: dict[str, Any] = {}
    try:
        if uri.startswith("s3://"):
            options = {
                "config_kwargs": {
                    "connect_timeout": CONNECT_TIMEOUT_S,
                    "read_timeout": float(os.environ.get("UNIRG_S3_READ_TIMEOUT", READ_TIMEOUT_S)),
                    "retries": {"total_max_attempts": S3_ATTEMPTS, "mode": "standard"},
                },
                # A listing must show what another process has just committed.
                "use_listings_cache": False,
            }
        fs, path = url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise StorageError(f"cannot open {uri}: {error}") from error
    if uri.startswith("s3://"):
        fs.retries = S3_READS  # s3fs has no argument for it, and its 5 let a dead endpoint hang for an hour
    return fs, path


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what a file system or S3 raises into a `StorageError` naming the URI and the remedy.

    `FileNotFoundError` passes through: whether absence is an error is the caller's to know. A missing
    bucket is not absence of an object, so it is an error here.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        remedy = _remedy(error)
        if remedy is None:
            raise
        raise StorageError(f"{uri}: {remedy}") from error


def _remedy(error: BaseException) -> str | None:
    """What to do about a storage failure; None where the error is not one of storage."""
    from aiohttp import ClientPayloadError
    from botocore import exceptions as boto

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    where = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    for link in chain:
        if isinstance(link, boto.NoCredentialsError | boto.PartialCredentialsError):
            return "no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        if isinstance(link, boto.ClientError):
            code = str(link.response.get("Error", {}).get("Code", ""))
            status = link.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code == "NoSuchBucket":
                return f"the bucket does not exist at {where}: create it or correct its name"
            if code in ("SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", "ExpiredToken") or (
                status in (401, 403)
            ):
                return (
                    f"S3 at {where} refused the credentials ({code or status}): check AWS_ACCESS_KEY_ID, "
                    "AWS_SECRET_ACCESS_KEY and the bucket's policy"
                )
            if status is not None and status >= 500:
                return f"S3 at {where} keeps failing (HTTP {status}): try again later; finished work is kept"
            if not isinstance(error, FileNotFoundError):
                return f"S3 at {where} refused the request ({code or status}): check the URI and the endpoint"
        if isinstance(link, boto.ParamValidationError):
            return "S3 allows no such name: correct the bucket"
        if isinstance(link, boto.ConnectTimeoutError | boto.ReadTimeoutError | TimeoutError):
            return f"S3 at {where} did not answer in time: check the network; finished work is kept"
        if isinstance(link, boto.IncompleteReadError | ClientPayloadError):
            return f"the connection to S3 at {where} broke off: check the network; finished work is kept"
        if isinstance(link, boto.EndpointConnectionError | boto.ConnectionError | boto.HTTPClientError):
            return f"cannot connect to S3 at {where}: check AWS_ENDPOINT_URL_S3 and the network"
    if isinstance(error, FileNotFoundError):
        return None
    if isinstance(error, IsADirectoryError):
        return "there is a folder where a file should be: correct the path"
    if isinstance(error, PermissionError):
        return "permission denied: check the credentials, or the owner and mode of the folder"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
        return f"{os.strerror(error.errno).lower()}: free space or choose another place, then run again"
    return None


def read_bytes(uri: str) -> bytes:
    """The whole object.

    Raises:
        FileNotFoundError: there is none.
        StorageError: storage failed.
    """
    with explained(uri):
        fs, path = open_fs(uri)
        return fs.cat_file(path)


def put_new(uri: str, data: bytes) -> bool:
    """Create the object atomically, whole or not at all; False if one is already there (it stays).

    A hard link of a finished file on `file:`, `If-None-Match: *` on `s3:`: of any number of racing
    writers exactly one gets True.
    """
    with explained(uri):
        if is_local(uri):
            return _put_new_local(local_path(uri), data)
        return _put_new_s3(uri, data)


def renew(uri: str) -> None:
    """Make an object as young as if it had just been written.

    Raises:
        FileNotFoundError: there is none.
    """
    with explained(uri):
        if is_local(uri):
            os.utime(local_path(uri))
            return
        fs, path = open_fs(uri)
        bucket, _, key = path.partition("/")
        source = {"Bucket": bucket, "Key": key}
        # S3 copies an object onto itself only where something of it changes.
        fs.call_s3(
            "copy_object",
            Bucket=bucket,
            Key=key,
            CopySource=source,
            MetadataDirective="REPLACE",
            Metadata={"renewed": str(int(time.time()))},
        )


def modified(uri: str) -> float:
    """When an object was last written or renewed, in seconds of the storage's own clock since 1970.

    Raises:
        FileNotFoundError: there is none.
    """
    with explained(uri):
        fs, path = open_fs(uri)
        return float(fs.modified(path).timestamp())


def _put_new_s3(uri: str, data: bytes) -> bool:
    fs, path = open_fs(uri)
    tried = 0
    while True:
        try:
            # In one request: Ceph ignores the condition on the parts that s3fs would cut large data into.
            fs.pipe_file(path, data, mode="create", chunksize=len(data) + 1)
            return True
        except OSError as error:
            # s3fs knows the refusal as AWS words it; other servers (Ceph) give the code alone.
            code = _error_code(error)
            if isinstance(error, FileExistsError) or code == "PreconditionFailed":
                return False
            tried += 1
            # Another writer is at it, and may yet fail: S3 asks to try again.
            if code != "ConditionalRequestConflict" or tried == S3_ATTEMPTS:
                raise
        time.sleep(random.uniform(0, 2**tried / 10))


def _error_code(error: OSError) -> str:
    """S3's code for what s3fs translated, or an empty text."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _put_new_local(target: Path, data: bytes) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, target)
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    return True


def names(uri: str) -> list[str]:
    """Names of the objects below a URI, relative to it, sorted; none where there is nothing.

    What a writer on `file:` has not finished is hidden, and not among them.
    """
    with explained(uri):
        fs, path = open_fs(uri)
        if not fs.isdir(path):
            return []
        found = [str(one).removeprefix(path).lstrip("/") for one in fs.find(path)]
    return sorted(name for name in found if not name.rpartition("/")[2].startswith("."))


def listed(uri: str) -> list[str]:
    """Names of the files and folders right below a URI, sorted; none where there is nothing."""
    try:
        with explained(uri):
            fs, path = open_fs(uri)
            found = (str(entry).rstrip("/") for entry in fs.ls(path, detail=False))
            return sorted({entry.rpartition("/")[2] for entry in found if entry != path.rstrip("/")})
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove(uri: str) -> None:
    """Everything below a URI, if there is anything; another process may be removing it too."""
    with explained(uri):
        if is_local(uri):
            shutil.rmtree(local_path(uri), onerror=_unless_gone)
            return
        fs, path = open_fs(uri)
        with suppress(FileNotFoundError):  # all of it went between two listings
            if fs.isdir(path):
                fs.rm(path, recursive=True)


def _unless_gone(_: object, __: str, error: tuple[Any, BaseException, Any]) -> None:
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def upload(source: Path, uri: str) -> None:
    """Copy a local file to an object (multipart where large), replacing what is there."""
    with explained(uri):
        fs, path = open_fs(uri)
        fs.put_file(str(source), path)


def download(uri: str, target: Path) -> None:
    """Copy an object to a local file, whole or not at all."""
    with explained(str(target.parent)):
        target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with explained(uri):
            fs, path = open_fs(uri)
            fs.get_file(path, str(aside))
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
