"""A database as the catalog needs it: short transactions, one writer at a time, and errors that name no secret.

Runs in: API process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from shadow_runtime.errors import CatalogError

LOCK_WAIT_SECONDS = 10
"""How long a transaction waits for another one before it gives up."""


class Database(ABC):
    """Connections to one database; safe to use from many threads.

    Invariants: a transaction commits as a whole when its block ends, and not at all when the block raises. What `read`
    shows is one state of the database. A committed transaction survives the death of this process.

    Failure: whatever the database does wrong is a CatalogError. When the connection is lost during a commit, the
    transaction may have been committed although the block raised.
    """

    def __init__(self, reader: Engine, writer: Engine) -> None:
        self._reader = reader
        self._writer = writer

    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one state of the database and changes nothing."""
        return self._transaction(self._reader)

    def write(self) -> AbstractContextManager[Connection]:
        """A transaction that may change something."""
        return self._transaction(self._writer)

    @abstractmethod
    def migrate(self) -> AbstractContextManager[Connection]:
        """A transaction that may change the schema; alone among all processes that use the database."""

    def close(self) -> None:
        """Close all connections."""
        self._writer.dispose()

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                self._prepare(connection)
                yield connection
        except SQLAlchemyError as error:
            raise CatalogError(f"The registry's database {self._explain(error)}.") from error

    @abstractmethod
    def _prepare(self, connection: Connection) -> None:
        """Say what holds for one transaction, at its begin."""

    def _explain(self, error: SQLAlchemyError) -> str:
        if isinstance(error, PoolTimeoutError):
            return "does not answer: every connection to it is in use"
        if isinstance(error, DBAPIError) and isinstance(error.orig, Exception):
            return self._describe(error.orig)
        return f"cannot be used ({type(error).__name__})"

    @abstractmethod
    def _describe(self, error: Exception) -> str:
        """Return what a driver's error says, without anything secret."""
