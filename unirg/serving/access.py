"""Who may ask: a bearer token from a file or the environment, never from a command line, which others see."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from unirg.errors import UserError

VARIABLE = "UNIRG_ENDPOINT_TOKEN"
"""Holds the token, for a server that somebody else asks; one that scoring starts for itself wants none."""


def read_token(file: str = "", variable: str = VARIABLE) -> str:
    """The token of a file, else of a variable of the environment; empty: nobody is asked for one.

    Raises:
        UserError: the file cannot be read, or what should be a token is none.
    """
    if not file and variable not in os.environ:
        return ""
    try:
        token = Path(file).read_text().strip() if file else os.environ[variable].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the token file {file} ({type(error).__name__})") from None
    # An empty one would let everybody in, and a header cannot carry the others.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"{file or variable} holds no token: write printable ASCII without spaces in it")
    return token


def allowed(authorization: str | None, token: str) -> bool:
    """Whether an `Authorization` header shows the token, in a time that says nothing of how near it is."""
    if not token:
        return True
    scheme, _, shown = (authorization or "").partition(" ")
    same = hmac.compare_digest(shown.strip().encode(), token.encode())
    return same and scheme.lower() == "bearer"
