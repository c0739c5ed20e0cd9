"""What an object store tells of itself: which notice concerns the watched place, and which came before.

Three forms are read: S3's event records (MinIO's webhook, AWS), EventBridge, and CloudEvents over HTTP,
binary, structured or in batches, around one of those or around `bucket` and `name` (Google). Only a created
object counts: reading one may be told, too, and the pipeline itself reads. A key may name a patient, so it
is compared and kept nowhere: what remains of a notice is a digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from unirg.config import canonical_json
from unirg.errors import UserError
from unirg.storage import sha256

TABLES = (".csv", ".parquet")
CREATED = (
    "ObjectCreated:",
    "s3:ObjectCreated:",
    "Object Created",
    "google.cloud.storage.object.v1.finalized",
)
"""How a created object is told of; the first two with what created it."""
DEEPEST = 3
"""Envelopes within each other: CloudEvents around EventBridge around records."""


class Unreadable(Exception):
    """A body that is no notice; the text quotes nothing of it."""


@dataclass(frozen=True)
class Place:
    """A bucket, and the folder in it, that is watched."""

    bucket: str
    folder: str
    """Without slashes around it; empty: the whole bucket."""

    @classmethod
    def of(cls, uri: str) -> Place:
        """The place of a pipeline's incoming data; of a table, the folder that also holds its images.

        Raises:
            UserError: the URI is not of a bucket.
        """
        scheme, _, rest = uri.partition("://")
        bucket, _, folder = rest.partition("/")
        if scheme not in ("s3", "gs") or not bucket:
            raise UserError(
                f"--watch {uri}: notices come from a bucket; name one, such as s3://incoming/north"
            )
        if folder.endswith(TABLES):
            folder = folder.rpartition("/")[0]
        return cls(bucket, folder.strip("/"))

    def holds(self, bucket: str, key: str) -> bool:
        return bucket == self.bucket and (not self.folder or key.startswith(f"{self.folder}/"))


def concerning(place: Place, headers: Mapping[str, str], body: bytes) -> list[str]:
    """Digests of the notices in a request that tell of a new object in the place; of a repeated one the same.

    Args:
        headers: names in lower case.

    Raises:
        Unreadable: the body is no JSON object, or a notice in it is broken.
    """
    try:
        sent = json.loads(body)
        return list(dict.fromkeys(_digests(place, headers, sent)))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise Unreadable(f"no notice of an object store ({type(error).__name__})") from None


def _digests(place: Place, headers: Mapping[str, str], sent: Any) -> Iterator[str]:
    if "ce-id" in headers:
        event = {name.removeprefix("ce-"): text for name, text in headers.items() if name.startswith("ce-")}
        yield from _enveloped(place, event, sent, 1)
    elif headers.get("content-type", "").startswith("application/cloudevents-batch"):
        for one in sent:
            yield from _told(place, one, 0)
    else:
        yield from _told(place, sent, 0)


def _told(place: Place, sent: Any, depth: int) -> Iterator[str]:
    """Digests of one notice in whatever form."""
    if depth > DEEPEST or not isinstance(sent, dict):
        raise ValueError("no object, or too deep")
    if "specversion" in sent:
        yield from _enveloped(place, sent, sent.get("data"), depth + 1)
    elif "Records" in sent:
        for record in sent["Records"] or ():
            found = record["s3"]
            name = unquote_plus(found["object"]["key"])
            if record["eventName"].startswith(CREATED) and place.holds(found["bucket"]["name"], name):
                yield _digest("record", record)
    elif "detail-type" in sent:  # EventBridge does not encode keys
        found = sent["detail"]
        if sent["detail-type"] in CREATED and place.holds(found["bucket"]["name"], found["object"]["key"]):
            yield _digest("EventBridge", sent["id"])


def _enveloped(place: Place, event: Mapping[str, Any], data: Any, depth: int) -> Iterator[str]:
    """Digests of a CloudEvent: its source and id say whether it came before."""
    identity = event["source"], event["id"]
    if not isinstance(data, dict):
        return
    if {"specversion", "Records", "detail-type"} & data.keys():
        inside = list(_told(place, data, depth))
    elif event["type"] in CREATED and place.holds(data["bucket"], data["name"]):
        inside = [""]
    else:
        inside = []
    if inside:
        yield _digest("CloudEvent", identity)


def _digest(form: str, what: Any) -> str:
    return sha256(canonical_json([form, what]))
