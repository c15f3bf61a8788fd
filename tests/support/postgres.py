"""A private PostgreSQL server out of the system's packages, and an empty database of it for each test.

The server listens on a socket in a folder of its own, so it meets no other server and takes no port.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

START_SECONDS = 60
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin")


@dataclass
class PostgresServer:
    """A running server.

    Attributes:
        folder: holds its socket, data and log.
        process: the server.
    """

    folder: Path
    process: subprocess.Popen[bytes]
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def url(self, database: str, user: str = "postgres", password: str | None = None) -> str:
        """Return the URL of a database as an operator would write it."""
        login = user if password is None else f"{user}:{password}"
        return f"postgresql://{login}@/{database}?host={self.folder}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """Make an empty database, give its name, and drop it with whatever is connected."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield name
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def guarded_role(self, password: str) -> Iterator[str]:
        """Make a role that must give its password, name it, and drop it with what it owns."""
        name = f"guarded_{next(self._numbers)}"
        rules = self.folder / "data/pg_hba.conf"
        before = rules.read_text()
        self.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        self.execute(f"GRANT CREATE ON SCHEMA public TO {name}")
        rules.write_text(f"local all {name} scram-sha-256\n{before}")
        self.execute("SELECT pg_reload_conf()")
        try:
            yield name
        finally:
            rules.write_text(before)
            self.execute("SELECT pg_reload_conf()")
            self.execute(f"DROP OWNED BY {name}")
            self.execute(f"DROP ROLE {name}")

    def execute(self, statement: str, database: str = "postgres") -> list[tuple]:
        """Run a statement as the superuser; return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


def find_binaries() -> Path:
    """Return the folder of `initdb` and `postgres`, the newest release's."""
    found = [p.parent for place in _PLACES for p in Path("/").glob(f"{place[1:]}/initdb")]
    on_path = shutil.which("initdb")
    if not found and on_path:
        found.append(Path(on_path).resolve().parent)
    if not found:
        pytest.fail(
            "no PostgreSQL server in /usr/lib/postgresql; run .ci/services.sh, or: apt-get install postgresql",
            pytrace=False,
        )
    return max(found, key=lambda path: [int(n) for n in path.parent.name.split(".") if n.isdigit()])


@contextmanager
def running_postgres(*options: str) -> Iterator[PostgresServer]:
    """Run a server until the block ends.

    Args:
        options: settings, `fsync=off` say.
    """
    binaries = find_binaries()
    user = _unprivileged_user()
    with tempfile.TemporaryDirectory(prefix="shadow-postgres-", dir="/tmp") as name:
        folder = Path(name)
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        data = folder / "data"
        _run_as(
            user,
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
        )
        settings = ["listen_addresses=", f"unix_socket_directories={folder}", *options]
        command = [binaries / "postgres", "-D", data, *(f"--{option}" for option in settings)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*_as(user), *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
            )
        try:
            server = PostgresServer(folder, process)
            _wait(server)
            yield server
        finally:
            _stop(process)


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Return whom to run as: the server refuses root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")


def _as(user: pwd.struct_passwd | None) -> list[str]:
    # The signal comes when this process dies without stopping the server: a fast shutdown.
    command = ["setpriv", "--pdeathsig", "INT"]
    if user is not None:
        command += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return [*command, "--"]


def _run_as(user: pwd.struct_passwd | None, *command: str | Path) -> None:
    result = subprocess.run(
        [*_as(user), *command], capture_output=True, check=False, text=True, cwd="/", timeout=120
    )
    if result.returncode != 0:
        pytest.fail(f"initdb failed: {result.stdout}{result.stderr}", pytrace=False)


def _wait(server: PostgresServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            server.execute("SELECT 1")
            return
        except psycopg.OperationalError:
            if server.process.poll() is not None or time.monotonic() > deadline:
                log = (server.folder / "log").read_text()
                pytest.fail(f"PostgreSQL did not start: {log}", pytrace=False)
            time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGQUIT)
        process.wait(timeout=30)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Run one server for the whole session; it does not wait for disks."""
    with running_postgres("fsync=off", "full_page_writes=off", "autovacuum=off") as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Give the URL of an empty database."""
    with postgres_server.database() as name:
        yield postgres_server.url(name)
