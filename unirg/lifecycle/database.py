"""The database behind the metrics store: opened by one process at a time, with the URI's password kept out.

MLflow looks first and writes then, in transactions of its own, so two writers could both find nothing. What
holds of the block below `opened`:

- `sqlite:///FILE`: one process at a time, by `flock` on a file beside the database; a local disk is assumed.
- `postgresql://…`: one process at a time on all machines, by an advisory lock of the database. It is held by
  a transaction of a connection of its own, so it ends with the process, also through a connection pooler.
  Where the server drops that connection meanwhile, the block's end says so.
- `http(s)://…`, a tracking server: nobody is kept out. What callers promise there, they say themselves.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from unirg.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgresql+")
_SERVER = ("http://", "https://")
_LOCK = int.from_bytes(b"unirg")
"""Of PostgreSQL's advisory locks in the database, ours."""
_CONNECT_S = 10
_HOLD = (
    # The transaction does nothing but hold the lock, however long MLflow takes.
    "SET LOCAL idle_in_transaction_session_timeout = 0",
    # The server notices within two minutes that the holder's machine is gone.
    "SET LOCAL tcp_keepalives_idle = 60",
    "SET LOCAL tcp_keepalives_interval = 10",
    "SET LOCAL tcp_keepalives_count = 6",
    f"SELECT pg_advisory_xact_lock({_LOCK})",
)


def shown(tracking_uri: str) -> str:
    """The URI without its password, for messages and commands; libpq also reads PGPASSWORD and ~/.pgpass."""
    parts = urlsplit(tracking_uri)
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=user.partition(":")[0] + at + host)) if at else tracking_uri


def in_database(tracking_uri: str) -> bool:
    """Whether we write to a database ourselves, rather than through an MLflow server."""
    return not tracking_uri.startswith(_SERVER)


@contextmanager
def opened(tracking_uri: str, existing: bool = False) -> Iterator[tuple[MlflowClient, str]]:
    """A client and the URI made absolute; alone, where that can be had (see above).

    Args:
        existing: a SQLite file that is not there is a mistake, rather than made.

    Raises:
        UserError: no such kind of store, or it cannot be opened, read or written.
    """
    # Read when MLflow is imported: no usage data leaves, and no chatter about tables on the terminal.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if tracking_uri.startswith(SQLITE):
            path = Path(tracking_uri.removeprefix(SQLITE)).expanduser().absolute()
            if existing and not path.is_file():
                raise UserError(f"there is no metrics store at {tracking_uri}: check the URI")
            with _sqlite_alone(path):
                yield MlflowClient(f"{SQLITE}{path}"), f"{SQLITE}{path}"
        elif tracking_uri.startswith(_POSTGRES):
            with _postgres_alone(tracking_uri):
                yield MlflowClient(tracking_uri), tracking_uri
        elif tracking_uri.startswith(_SERVER):
            yield MlflowClient(tracking_uri), tracking_uri
        else:
            raise UserError(
                f"the metrics store {shown(tracking_uri)} is of no known kind: check the URI, which is "
                "sqlite:///FILE, postgresql://USER@HOST/DATABASE or an MLflow server's http(s)://…"
            )
    except (MlflowException, SQLAlchemyError) as error:
        kind = getattr(error, "error_code", type(error).__name__)
        raise UserError(
            f"the metrics store {shown(tracking_uri)} failed ({kind}): check the URI, the database and the "
            "free space, or name a new SQLite file such as sqlite:///runs/mlflow.db"
        ) from error


@contextmanager
def _sqlite_alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _postgres_alone(uri: str) -> Iterator[None]:
    from sqlalchemy import NullPool, create_engine, text

    engine = create_engine(uri, poolclass=NullPool, connect_args={"connect_timeout": _CONNECT_S})
    with engine.connect() as connection, connection.begin():
        for statement in _HOLD:
            connection.execute(text(statement))
        yield
        # Fails where the connection, and so the lock, was lost meanwhile.
        connection.execute(text("SELECT 1"))
