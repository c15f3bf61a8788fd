"""Several servers, and several threads of one, on the same database."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from catalog_model import make_artifact
from catalog_publisher import NAME, publish_from_processes, publish_many
from shadow_runtime.catalog import CatalogQuota, CatalogUsage, reader
from shadow_runtime.errors import QuotaError
from shadow_runtime.types import AdapterName

CONTENDED = AdapterName("acme", NAME)


@pytest.fixture
def replicas(open_catalog):
    return open_catalog(), open_catalog()


def publish(catalog, name, seed, **options):
    return catalog.publish(AdapterName("acme", name), make_artifact(seed), source="x", **options)


def test_changes_of_one_server_are_seen_by_another(replicas):
    here, there = replicas
    seen = there.changes_since(0).revision

    published = publish(here, "a", 1)

    changes = there.changes_since(seen)
    assert changes.adapters == (published.record,)
    assert there.changes_since(changes.revision).adapters == ()


def test_every_kind_of_change_is_seen(replicas):
    here, there = replicas
    name = AdapterName("acme", "a")
    publish(here, "a", 1)
    steps = [
        lambda: publish(here, "a", 2).record,
        lambda: here.rollback(name).record,
        lambda: here.set_pinned(name, True),
        lambda: here.delete(name),
    ]
    for step in steps:
        seen = there.changes_since(0).revision
        record = step()

        assert there.changes_since(seen).adapters == (record,)


def test_servers_take_turns_on_one_name(replicas):
    versions = [publish(replicas[n % 2], "a", n).version.version for n in range(6)]

    assert versions == [1, 2, 3, 4, 5, 6]
    assert replicas[0].find(AdapterName("acme", "a")) == replicas[1].find(AdapterName("acme", "a"))


def test_concurrent_threads_get_consecutive_versions(replicas):
    with ThreadPoolExecutor(8) as pool:
        got = list(
            pool.map(
                lambda n: publish_many(replicas[n % 2], range(100 * n, 100 * n + 10)),
                range(1, 9),
            )
        )

    assert sorted(v for versions in got for v in versions) == list(range(1, 81))
    assert all(versions == sorted(versions) for versions in got)


def test_concurrent_processes_get_consecutive_versions(database_url, open_catalog):
    got = publish_from_processes(database_url, num_processes=3, count=20)

    assert sorted(v for versions in got for v in versions) == list(range(1, 61))
    history = open_catalog().find(CONTENDED).versions
    assert [version.version for version in history] == list(range(1, 61))


def test_reader_never_misses_a_change(replicas):
    """Follow the revisions while others write: a record whose change became visible late would be missed."""
    here, there = replicas
    names = [f"n{n}" for n in range(6)]
    done = threading.Event()
    seen = {}

    def follow():
        revision = 0
        while True:
            is_last = done.is_set()
            changes = there.changes_since(revision)
            assert changes.revision >= revision
            for record in changes.adapters:
                assert revision < record.revision <= changes.revision
                seen[record.name.name] = record
            revision = changes.revision
            if is_last:
                return

    def write(name):
        for seed in range(1, 16):
            publish(here, name, seed)

    with ThreadPoolExecutor(len(names) + 1) as pool:
        follower = pool.submit(follow)
        try:
            for writer in [pool.submit(write, name) for name in names]:
                writer.result()
        finally:
            done.set()
        follower.result()

    assert seen == {record.name.name: record for record in here.changes_since(0).adapters}
    assert sorted(record.current for record in seen.values()) == [15] * 6


@pytest.mark.parametrize(
    "quota", [CatalogQuota(max_adapters=3), CatalogQuota(max_stored_bytes=300)]
)
def test_concurrent_publishes_do_not_pass_a_quota_together(replicas, quota):
    def try_publish(n):
        with suppress(QuotaError):
            return publish(replicas[n % 2], f"n{n}", n, quota=quota).is_new
        return False

    with ThreadPoolExecutor(8) as pool:
        passed = list(pool.map(try_publish, range(16)))

    assert sum(passed) == 3
    assert replicas[0].usage("acme") == CatalogUsage(num_adapters=3, stored_bytes=300)


def test_reader_sees_one_state(replicas):
    here, there = replicas
    publish(here, "a", 1)
    with here._database.read() as connection:
        revision = reader.read_revision(connection)
        publish(there, "a", 2)

        assert [r.current for r in reader.read_changed(connection, 0)] == [revision] == [1]


def test_reader_does_not_wait_for_a_writer(catalog, open_catalog):
    publish(catalog, "a", 1)
    with open_catalog()._database.write() as connection:
        connection.exec_driver_sql("UPDATE meta SET revision = 99")

        assert catalog.changes_since(0).revision == 1
