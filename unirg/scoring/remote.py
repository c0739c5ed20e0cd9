"""A model behind any OpenAI-compatible address: who it is, as far as it says, and how it is let in.

Its digest is the `X-Model-Digest` header where the server sends one (ours do); else what the user states;
else a hash over the `system_fingerprint` of a completion, which names a configuration and not its weights;
else one over model name and address, which says nothing of the weights. `basis` says which, for the manifest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

import httpx

from unirg.errors import UserError
from unirg.scoring.client import DIGEST
from unirg.scoring.copy_prior import CopyPrior
from unirg.scoring.engine import EndpointAway
from unirg.storage import sha256

KEY_VARIABLE = "UNIRG_ENDPOINT_API_KEY"
"""The only place a key is taken from. OPENAI_API_KEY is none: it would go to whatever address is named."""
COPY_PRIOR = "copy-prior"
_STATED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@+-]{3,127}")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROBE_S = 30.0


def key_for(base_url: str, environ: Mapping[str, str] = os.environ) -> str:
    """The key that requests to an address carry; empty where none is set.

    Raises:
        UserError: it would travel unencrypted.
    """
    key = environ.get(KEY_VARIABLE, "")
    parts = urlsplit(base_url)
    if key and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise UserError(
            f"--endpoint {base_url}: {KEY_VARIABLE} is set, and http would send the key unencrypted: "
            "use https, or unset it"
        )
    return key


class Identity(NamedTuple):
    digest: str
    basis: str


class RemoteEndpoint:
    """One model at one base URL, such as `https://api.openai.com/v1`; an `unirg.scoring.archive.Endpoint`."""

    restarts: ClassVar[bool] = False
    """Its server is somebody else's."""

    def __init__(
        self, base_url: str, model: str, stated: str = "", environ: Mapping[str, str] = os.environ
    ) -> None:
        """`stated` is the digest that the user gives the model.

        Raises:
            UserError: no http address, credentials in it, a key that would travel unencrypted, or a digest
                that is none.
        """
        try:
            parts = urlsplit(base_url)
            host = parts.hostname
        except ValueError:
            parts, host = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not host:
            raise UserError("--endpoint: not an address such as https://host/v1, or the word copy-prior")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(
                "--endpoint: credentials or a query in an address end up in logs; put a key into "
                f"{KEY_VARIABLE}"
            )
        if not model:
            raise UserError(f"--endpoint {base_url} needs --model: the name that the server knows it by")
        if stated and not _STATED.fullmatch(stated):
            raise UserError(
                f"--model-digest {stated!r}: write 4 to 128 letters, digits and _.:/@+-, such as a SHA-256"
            )
        self._key = key_for(base_url, environ)
        self.base_url, self.model_name, self._stated = base_url.rstrip("/"), model, stated

    def __repr__(self) -> str:
        return f"RemoteEndpoint({self.base_url}, {self.model_name})"

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries; a secret is in it, so it is never shown."""
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    @property
    def model_digest(self) -> str:
        return self.identity.digest

    @property
    def basis(self) -> str:
        """What the digest rests on."""
        return self.identity.basis

    @contextmanager
    def connect(self) -> Iterator[str]:
        """It runs already, so there is nothing to start."""
        yield self.base_url

    @cached_property
    def identity(self) -> Identity:
        """Ask the server once.

        Raises:
            EndpointAway: it does not answer.
            UserError: it refuses us, or says that it is another model than stated.
        """
        header, fingerprint = self._said()
        if header:
            if self._stated not in ("", header):
                raise UserError(
                    f"{self.base_url} serves model {header[:16]}, not {self._stated[:16]}: "
                    "correct --model-digest, or the address"
                )
            return Identity(header, f"{DIGEST} of the server")
        if self._stated:
            return Identity(self._stated, "stated by the user")
        if fingerprint:
            named = sha256(f"{self.model_name}\0{fingerprint}".encode())
            return Identity(named, "system_fingerprint of the server: its configuration, not its weights")
        named = sha256(f"{self.model_name}\0{self.base_url}".encode())
        return Identity(named, "model name and address alone: state --model-digest to tell weights apart")

    def _said(self) -> tuple[str, str]:
        """(X-Model-Digest, system_fingerprint) as far as the server has them."""
        try:
            with httpx.Client(timeout=_PROBE_S, headers=self.headers, trust_env=False) as http:
                models = http.get(f"{self.base_url}/models")
                if models.status_code in (401, 403):
                    raise UserError(
                        f"{self.base_url} refuses access (HTTP {models.status_code}): put its key into "
                        f"{KEY_VARIABLE}"
                    )
                if (header := _digest(models)) or self._stated:
                    return header, ""
                asked = {"model": self.model_name, "messages": [{"role": "user", "content": "ok"}]}
                answer = http.post(f"{self.base_url}/chat/completions", json=asked | {"max_tokens": 1})
                # OpenAI's reasoning models know the other name only.
                if answer.status_code == 400:
                    answer = http.post(
                        f"{self.base_url}/chat/completions", json=asked | {"max_completion_tokens": 16}
                    )
        except httpx.HTTPError as error:
            raise EndpointAway(
                f"the endpoint at {self.base_url} does not answer ({type(error).__name__}): check its "
                "address, start it, and run the same command again"
            ) from None
        return _digest(answer), _fingerprint(answer)


def _digest(answer: httpx.Response) -> str:
    found = answer.headers.get(DIGEST, "")
    return found if _STATED.fullmatch(found) else ""


def _fingerprint(answer: httpx.Response) -> str:
    try:
        content: Any = answer.json()
        found = content.get("system_fingerprint") if answer.status_code == 200 else None
    except (ValueError, AttributeError):
        return ""
    return found[:256] if isinstance(found, str) else ""


def endpoint_of(address: str, model: str = "", stated: str = "") -> RemoteEndpoint | CopyPrior:
    """What `--endpoint`, `--model` and `--model-digest` name.

    Raises:
        UserError: as `RemoteEndpoint`.
    """
    return CopyPrior() if address == COPY_PRIOR else RemoteEndpoint(address, model, stated)
