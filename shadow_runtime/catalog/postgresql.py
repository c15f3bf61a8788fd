"""The registry in PostgreSQL: many servers share one.

Runs in: API process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, create_engine, func, select

from shadow_runtime.catalog.database import LOCK_WAIT_SECONDS, Database
from shadow_runtime.errors import ConfigError

_MIGRATION_LOCK = 0x5AD0_5EE7
"""Key of the advisory lock that migrations hold, per database."""

_CONNECT: dict[str, Any] = {
    "connect_timeout": 5,
    # A server that vanishes without a word is noticed by the kernel, not by a request that waits for ever.
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    # Statements prepared on the server do not live through a pooler between here and there.
    "prepare_threshold": None,
}

# Per transaction and not per connection, again because of poolers. The last one is for the others: a writer that
# stands still holds the lock that every publish waits for.
_TRANSACTION = {
    "statement_timeout": f"{LOCK_WAIT_SECONDS + 5}s",
    "lock_timeout": f"{LOCK_WAIT_SECONDS}s",
    "idle_in_transaction_session_timeout": "15s",
    "synchronous_commit": "on",
}

_REASONS = {
    "42": "does not allow what the registry does",
    "53": "is out of resources",
    "55": "is busy: another transaction holds a lock for too long",
    "57": "stopped the statement",
}
"""By class of SQLSTATE, which only statements have."""

_LOGIN_SIGNS = {
    "authentication failed": "refuses the login",
    "no pg_hba.conf entry": "refuses the login",
    "does not exist": "or its user does not exist",
}
"""By what a failed login says; another language only makes the message less precise."""


class PostgresDatabase(Database):
    """A PostgreSQL database, through psycopg 3.

    Raises:
        ConfigError: the URL cannot be meant so.
    """

    def __init__(self, url: URL) -> None:
        if "@" in (url.host or ""):
            raise ConfigError("the registry's database URL has an '@' that is not written as %40")
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={k: v for k, v in _CONNECT.items() if k not in url.query},
            hide_parameters=True,
            pool_pre_ping=True,
            pool_recycle=1800,
            pool_timeout=LOCK_WAIT_SECONDS,
        )
        reader = engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        super().__init__(reader, engine)

    @contextmanager
    def migrate(self) -> Iterator[Connection]:
        """See `Database.migrate`."""
        with self.write() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            yield connection

    def _prepare(self, connection: Connection) -> None:
        connection.execute(
            select(*(func.set_config(key, value, True) for key, value in _TRANSACTION.items()))
        )

    def _describe(self, error: Exception) -> str:
        # The driver's own text may quote the connection string.
        state = getattr(error, "sqlstate", None)
        if state is not None:
            return f"{_REASONS.get(state[:2], 'cannot be used')} (SQLSTATE {state})"
        text = str(error)
        for sign, reason in _LOGIN_SIGNS.items():
            if sign in text:
                return reason
        return f"cannot be reached ({type(error).__name__})"
