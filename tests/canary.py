"""A text that must never be shown, and every way in which an exception could show it."""

from __future__ import annotations

import io
import logging
import traceback

CANARY = "CANARY Jane Doe MRN 0451"


def everything_shown(error: BaseException) -> str:
    """What any way of printing an exception would show: its texts, its arguments, its chain, a log."""
    stream = io.StringIO()
    logger = logging.Logger("everything")
    logger.addHandler(logging.StreamHandler(stream))
    logger.error("%s %r", error, error, exc_info=error)
    chain = "".join(traceback.format_exception(error))
    return f"{error} {error!r} {error.args!r} {getattr(error, '__notes__', '')} {chain} {stream.getvalue()}"
