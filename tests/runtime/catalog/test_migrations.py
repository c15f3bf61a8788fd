"""A database comes to the newest schema when it is opened, and only the right one is opened."""

from concurrent.futures import ThreadPoolExecutor
from fcntl import LOCK_EX, LOCK_UN, flock

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from catalog_model import BASE, OTHER_BASE, make_artifact
from shadow_runtime.catalog import Catalog
from shadow_runtime.catalog.schema import METADATA
from shadow_runtime.errors import ConfigError
from shadow_runtime.types import AdapterName

SUPPORT = AdapterName("acme", "support")


def execute(catalog: Catalog, statement: str) -> None:
    with catalog._database.write() as connection:
        connection.exec_driver_sql(statement)


def test_migrations_make_the_schema_that_the_code_uses(catalog):
    with catalog._database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})

        assert compare_metadata(context, METADATA) == []


def test_difference_of_schema_is_noticed(catalog):
    execute(catalog, "DROP INDEX ix_versions_digest")
    with catalog._database.read() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), METADATA)

    assert [d[0] for d in differences] == ["add_index"]


def test_database_that_is_opened_again_has_what_it_had(database_url):
    first = Catalog.open(database_url, BASE)
    record = first.publish(SUPPORT, make_artifact(1), source="x").record
    first.close()

    again = Catalog.open(database_url, BASE)

    assert again.find(SUPPORT) == record
    assert again.changes_since(0).revision == 1
    again.close()


def test_database_of_another_base_is_refused_and_not_changed(database_url, catalog):
    record = catalog.publish(SUPPORT, make_artifact(1), source="x").record

    with pytest.raises(ConfigError, match="another base model"):
        Catalog.open(database_url, OTHER_BASE)

    assert catalog.find(SUPPORT) == record
    Catalog.open(database_url, BASE).close()


def test_schema_of_a_newer_release_is_refused(database_url, catalog):
    execute(catalog, "UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(ConfigError, match="schema 9999, which a newer release made"):
        Catalog.open(database_url, BASE)


def test_failed_migration_leaves_an_empty_database(database_url, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shadow_runtime.catalog.catalog._bind_base", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Catalog.open(database_url, BASE)

    # Tables that were left would make this one fail.
    Catalog.open(database_url, BASE).close()


def test_servers_that_start_at_once_make_the_schema_once(database_url):
    with ThreadPoolExecutor(6) as pool:
        catalogs = list(pool.map(lambda _: Catalog.open(database_url, BASE), range(6)))

    versions = [
        c.publish(SUPPORT, make_artifact(n), source="x").version.version
        for n, c in enumerate(catalogs)
    ]
    assert versions == [1, 2, 3, 4, 5, 6]
    for catalog in catalogs:
        catalog.close()


def test_servers_of_two_bases_that_start_at_once_do_not_share(database_url):
    def try_open(base):
        try:
            return Catalog.open(database_url, base)
        except ConfigError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(try_open, [BASE, OTHER_BASE] * 2))

    opened = [isinstance(result, Catalog) for result in results]
    assert opened in ([True, False] * 2, [False, True] * 2)
    for catalog in results:
        if isinstance(catalog, Catalog):
            catalog.close()


def test_new_file_is_not_touched_while_another_server_makes_it(tmp_path):
    with (tmp_path / "registry.db.lock").open("w") as lock, ThreadPoolExecutor(1) as pool:
        flock(lock, LOCK_EX)
        opening = pool.submit(Catalog.open, f"sqlite:///{tmp_path}/registry.db", BASE)
        with pytest.raises(TimeoutError):
            opening.result(timeout=0.3)
        assert not (tmp_path / "registry.db").exists()

        flock(lock, LOCK_UN)
        opening.result(timeout=30).close()


def test_databases_that_are_opened_at_once_do_not_mix(tmp_path):
    with ThreadPoolExecutor(6) as pool:
        catalogs = list(
            pool.map(lambda n: Catalog.open(f"sqlite:///{tmp_path}/{n}.db", BASE), range(6))
        )

    for catalog in catalogs:
        assert catalog.changes_since(0).revision == 0
        catalog.close()
