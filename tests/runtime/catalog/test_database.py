"""Databases that are not there, not right, busy or gone: one clear error, no secret in it, and no waiting for ever."""

import socket
import sqlite3
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from catalog_model import BASE, make_artifact
from shadow_runtime.catalog import Catalog, postgresql, sqlite
from shadow_runtime.errors import CatalogError, ConfigError
from shadow_runtime.types import AdapterName

SUPPORT = AdapterName("acme", "support")
PASSWORD = "hunter2-Zq"


def error_of_opening(url: str) -> CatalogError:
    with pytest.raises(CatalogError) as caught:
        Catalog.open(url, BASE)
    text = "".join(traceback.format_exception(caught.value))
    assert PASSWORD not in text
    return caught.value


@pytest.fixture
def closed_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def silent_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    "login", [f"shadow:{PASSWORD}@127.0.0.1:PORT/db", f"127.0.0.1:PORT/db?password={PASSWORD}"]
)
def test_unreachable_server_is_one_sentence_without_the_password(login, closed_port):
    error = error_of_opening(f"postgresql://{login.replace('PORT', str(closed_port))}")

    assert str(error) == "The registry's database cannot be reached (OperationalError)."


def test_silent_server_is_given_up(silent_port):
    start = time.monotonic()

    error_of_opening(f"postgresql://u:{PASSWORD}@127.0.0.1:{silent_port}/db?connect_timeout=2")

    assert time.monotonic() - start < 10


def test_refused_login_names_no_password(postgres_server):
    with postgres_server.guarded_role(PASSWORD) as role:
        Catalog.open(postgres_server.url("postgres", role, PASSWORD), BASE).close()
        error = error_of_opening(postgres_server.url("postgres", role, PASSWORD + "x"))

    assert str(error) == "The registry's database refuses the login."


def test_missing_database_is_told(postgres_server):
    error = error_of_opening(postgres_server.url("nowhere"))

    assert str(error) == "The registry's database or its user does not exist."


@pytest.mark.parametrize(
    "url",
    [
        "",
        "registry.db",
        f"mysql://u:{PASSWORD}@h/db",
        f"postgresql+asyncpg2:{PASSWORD}",
        f"postgresql://u:{PASSWORD}@{PASSWORD}@h/db",
        f"postgresql://u:{PASSWORD}@h:port/db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory",
    ],
)
def test_url_that_is_not_understood_is_not_repeated(url):
    with pytest.raises(ConfigError) as caught:
        Catalog.open(url, BASE)

    assert PASSWORD not in str(caught.value)
    assert str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_usual_spellings_of_postgresql_are_taken(postgres_url, scheme):
    Catalog.open(postgres_url.replace("postgresql", scheme, 1), BASE).close()


def test_missing_folder_is_told(tmp_path):
    error = error_of_opening(f"sqlite:///{tmp_path}/missing/registry.db")

    assert str(error) == "The registry's database cannot be opened: No such file or directory."


def test_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "registry.db").write_text("not a database " * 100)

    error = error_of_opening(f"sqlite:///{tmp_path}/registry.db")

    assert str(error) == "The registry's database cannot be used: file is not a database."


def test_full_disk_changes_nothing(tmp_path):
    catalog = Catalog.open(f"sqlite:///{tmp_path}/registry.db", BASE)
    first = catalog.publish(SUPPORT, make_artifact(1), source="x")
    with catalog._database.write() as connection:
        # The pool gives this connection again; the limit is its own.
        connection.exec_driver_sql("PRAGMA max_page_count = 1")

    def publish_until_full():
        for seed in range(2, 1000):
            yield catalog.publish(SUPPORT, make_artifact(seed), source="x")

    published = [first]
    with pytest.raises(CatalogError, match="database or disk is full"):
        published.extend(publish_until_full())

    assert 1 < len(published) < 1000
    assert catalog.find(SUPPORT) == published[-1].record
    catalog.close()


def test_sqlite_survives_power_cuts_and_checks_references(tmp_path):
    catalog = Catalog.open(f"sqlite:///{tmp_path}/registry.db", BASE)
    with catalog._database.write() as connection:
        values = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    catalog.close()

    assert values == ["wal", 2, 1]


def test_writer_that_stands_still_does_not_stop_the_others_for_ever(
    database_url, open_catalog, monkeypatch
):
    monkeypatch.setattr(sqlite, "LOCK_WAIT_SECONDS", 0.2)
    monkeypatch.setitem(postgresql._TRANSACTION, "lock_timeout", "200ms")
    here, there = open_catalog(), open_catalog()
    here.publish(SUPPORT, make_artifact(1), source="x")
    with here._database.write() as connection:
        connection.exec_driver_sql("UPDATE meta SET revision = 7")
        start = time.monotonic()
        with pytest.raises(CatalogError, match=r"locked|holds a lock"):
            there.publish(SUPPORT, make_artifact(2), source="x")
        assert time.monotonic() - start < 5

    assert there.publish(SUPPORT, make_artifact(2), source="x").record.revision == 8


def test_transaction_that_idles_is_ended_by_the_server(postgres_url, monkeypatch):
    monkeypatch.setitem(postgresql._TRANSACTION, "idle_in_transaction_session_timeout", "100ms")
    here = Catalog.open(postgres_url, BASE)
    there = Catalog.open(postgres_url, BASE)
    idle = here._database.write()
    idle.__enter__().exec_driver_sql("UPDATE meta SET revision = 7")

    # Waits for the lock that the idle transaction holds until the server ends it.
    there.publish(SUPPORT, make_artifact(1), source="x")

    with pytest.raises(CatalogError):
        idle.__exit__(None, None, None)
    assert there.changes_since(0).revision == 1
    here.close()
    there.close()


def test_transactions_are_bounded_and_durable(postgres_url):
    names = (
        "lock_timeout",
        "statement_timeout",
        "idle_in_transaction_session_timeout",
        "synchronous_commit",
    )
    catalog = Catalog.open(postgres_url, BASE)
    with catalog._database.write() as connection:
        values = [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names]
    catalog.close()

    assert values == ["10s", "15s", "15s", "on"]


def test_lost_connections_are_replaced(postgres_server, postgres_url):
    catalog = Catalog.open(postgres_url, BASE)
    catalog.publish(SUPPORT, make_artifact(1), source="x")
    postgres_server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )

    assert catalog.publish(SUPPORT, make_artifact(2), source="x").version.version == 2
    catalog.close()


@pytest.mark.parametrize("name", [AdapterName("acme", "a\0b"), AdapterName("acme", "x" * 999)])
def test_value_that_the_database_does_not_take_is_a_catalog_error(postgres_url, name):
    catalog = Catalog.open(postgres_url, BASE)

    with pytest.raises(CatalogError):
        catalog.publish(name, make_artifact(1), source="x")

    assert catalog.changes_since(0).adapters == ()
    catalog.close()


def test_damaged_tables_are_a_catalog_error(catalog):
    with catalog._database.write() as connection:
        connection.exec_driver_sql("DROP TABLE versions")

    for call in (
        catalog.referenced_digests,
        lambda: catalog.usage("acme"),
        lambda: catalog.publish(SUPPORT, make_artifact(1), source="x"),
    ):
        with pytest.raises(CatalogError, match="The registry's database"):
            call()


def test_file_lock_is_let_go(tmp_path):
    url = f"sqlite:///{tmp_path}/registry.db"
    Catalog.open(url, BASE).close()
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'x'")
    connection.close()

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(Catalog.open, url, BASE) for _ in range(2)]:
            with pytest.raises(ConfigError):
                future.result(timeout=30)
