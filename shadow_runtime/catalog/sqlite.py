"""The registry in a SQLite file: one host, no service to run.

Runs in: API process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from shadow_runtime.catalog.database import LOCK_WAIT_SECONDS, Database
from shadow_runtime.errors import CatalogError, ConfigError

# FULL: an acknowledged commit survives a power cut, not only the end of the process.
_PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON")


class SqliteDatabase(Database):
    """A SQLite file in WAL mode: readers and the writer do not block each other.

    Raises:
        ConfigError: the URL names no file.
    """

    def __init__(self, url: URL) -> None:
        if url.database in (None, "", ":memory:") or url.query:
            raise ConfigError("a SQLite registry is given as sqlite:///<path of its file>")
        self._path = Path(str(url.database)).absolute()
        engine = create_engine(
            url.set(drivername="sqlite+pysqlite", database=str(self._path)),
            connect_args={"timeout": LOCK_WAIT_SECONDS, "isolation_level": None},
            hide_parameters=True,
        )
        event.listen(engine, "connect", _set_pragmas)
        # Without IMMEDIATE a transaction that reads first could not become the writer once another one has written.
        super().__init__(engine, engine.execution_options(sqlite_begin="BEGIN IMMEDIATE"))

    @contextmanager
    def migrate(self) -> Iterator[Connection]:
        """See `Database.migrate`."""
        # SQLite's own lock is not enough: of 2,000 openings of new files, five at once, 7 failed in the change to WAL
        # mode, which does not wait. Files that are in WAL mode open side by side.
        lock_path = self._path.with_name(f"{self._path.name}.lock")
        try:
            lock = lock_path.open("w")
        except OSError as error:
            raise CatalogError(
                f"The registry's database cannot be opened: {error.strerror}."
            ) from error
        with lock:
            flock(lock, LOCK_EX)
            with self.write() as connection:
                yield connection

    def _prepare(self, connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    def _describe(self, error: Exception) -> str:
        return f"cannot be used: {error}"


def _set_pragmas(connection: Any, _entry: ConnectionPoolEntry) -> None:
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
