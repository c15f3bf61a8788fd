"""What the catalog promises of one call after another."""

import random
from dataclasses import replace

import pytest

from catalog_model import (
    CatalogModel,
    digest_of,
    make_artifact,
    perform,
    random_operation,
    snapshot_of,
)
from shadow_runtime.catalog import CatalogQuota, CatalogUsage
from shadow_runtime.errors import AdapterExistsError, AdapterNotFoundError, QuotaError
from shadow_runtime.types import AdapterName

SUPPORT = AdapterName("acme", "support")
LEGAL = AdapterName("acme", "legal")
OTHER = AdapterName("globex", "support")


def publish(catalog, name, seed, stored_bytes=100, **options):
    return catalog.publish(
        name, make_artifact(seed, stored_bytes), source=f"directory {seed}", **options
    )


def test_empty_catalog_has_nothing(catalog):
    assert catalog.find(SUPPORT) is None
    assert catalog.changes_since(0).adapters == ()
    assert catalog.changes_since(0).revision == 0
    assert catalog.referenced_digests() == frozenset()
    assert catalog.usage("acme") == CatalogUsage(0, 0)


def test_first_publish_is_version_one(catalog):
    published = publish(catalog, SUPPORT, 1)

    assert published.is_new
    assert published.version.version == published.record.current == 1
    assert published.record.versions == (published.version,)
    assert not published.record.is_pinned
    assert not published.record.is_deleted
    assert published.version.origin == "publish"
    assert published.version.source == "directory 1"


def test_record_comes_back_as_it_was_written(catalog, open_catalog):
    artifact = make_artifact(7, 4 << 30, has_backbone_config=True)

    published = catalog.publish(SUPPORT, artifact, source="upload")

    assert open_catalog().find(SUPPORT) == published.record
    assert published.version.artifact == artifact


def test_only_the_newest_versions_are_kept(catalog):
    for seed in (1, 2, 3):
        publish(catalog, SUPPORT, seed, max_versions=3)
    publish(catalog, LEGAL, 2)

    published = publish(catalog, SUPPORT, 4, max_versions=3)
    assert [v.version for v in published.record.versions] == [2, 3, 4]
    assert published.record.current == 4
    published = publish(catalog, SUPPORT, 5, max_versions=2)
    assert [v.version for v in published.record.versions] == [4, 5]

    # Version 2 of one name is gone, its bytes are version 1 of another.
    assert catalog.referenced_digests() == {digest_of(seed) for seed in (2, 4, 5)}
    assert catalog.usage("acme") == CatalogUsage(2, 300)
    with pytest.raises(AdapterNotFoundError):
        catalog.rollback(SUPPORT, 3)
    assert catalog.changes_since(0).adapters[-1].versions == published.record.versions


def test_a_rollback_forgets_old_versions_too(catalog):
    for seed in (1, 2):
        publish(catalog, SUPPORT, seed)
    record = catalog.rollback(SUPPORT, 1, max_versions=2).record
    # The bytes of version 1 are still there, as version 3.
    assert [(v.version, v.digest) for v in record.versions] == [
        (2, digest_of(2)),
        (3, digest_of(1)),
    ]
    record = catalog.rollback(SUPPORT, max_versions=2).record
    assert [(v.version, v.digest) for v in record.versions] == [
        (3, digest_of(1)),
        (4, digest_of(2)),
    ]


def test_creation_time_is_now(catalog):
    before = publish(catalog, LEGAL, 1).version.created_at_unix
    after = publish(catalog, SUPPORT, 1).version.created_at_unix

    assert 1_700_000_000 < before <= after <= before + 60


def test_same_bytes_change_nothing(catalog):
    first = publish(catalog, SUPPORT, 1)

    again = publish(catalog, SUPPORT, 1)

    assert not again.is_new
    assert again.record == first.record
    assert catalog.changes_since(0).revision == 1


def test_other_bytes_are_the_next_version(catalog):
    publish(catalog, SUPPORT, 1)

    published = publish(catalog, SUPPORT, 2)

    assert published.version.version == 2
    assert [v.digest for v in published.record.versions] == [digest_of(1), digest_of(2)]


def test_older_bytes_again_are_a_new_version(catalog):
    for seed in (1, 2, 1):
        published = publish(catalog, SUPPORT, seed)

    assert published.is_new
    assert published.version.version == 3


def test_taken_name_is_kept_when_it_may_not_be_replaced(catalog):
    first = publish(catalog, SUPPORT, 1)

    with pytest.raises(AdapterExistsError, match="acme/support"):
        publish(catalog, SUPPORT, 2, can_replace=False)

    assert catalog.find(SUPPORT) == first.record
    assert digest_of(2) not in catalog.referenced_digests()


def test_same_bytes_pass_when_the_name_may_not_be_replaced(catalog):
    publish(catalog, SUPPORT, 1)

    assert not publish(catalog, SUPPORT, 1, can_replace=False).is_new


def test_deleted_name_may_be_taken_without_replacing(catalog):
    publish(catalog, SUPPORT, 1)
    catalog.delete(SUPPORT)

    assert publish(catalog, SUPPORT, 2, can_replace=False).version.version == 2


def test_names_differ_in_case_and_tenant(catalog):
    upper = AdapterName("acme", "Support")
    for seed, name in enumerate((SUPPORT, upper, OTHER), 1):
        publish(catalog, name, seed)

    assert [catalog.find(n).versions[0].digest for n in (SUPPORT, upper, OTHER)] == [
        digest_of(seed) for seed in (1, 2, 3)
    ]


def test_first_manifest_of_a_digest_stays(catalog):
    publish(catalog, SUPPORT, 1)
    other_server = make_artifact(1, 333, path="/elsewhere")

    published = catalog.publish(LEGAL, other_server, source="upload")

    assert published.version.artifact == make_artifact(1)


def test_source_is_made_one_printable_line(catalog):
    published = catalog.publish(SUPPORT, make_artifact(1), source="a\nb\0c\ud800d" + "x" * 9999)

    assert published.version.source.startswith("a?b?c?dxxx")
    assert len(published.version.source) == 500


def test_rollback_takes_the_newest_earlier_version_with_other_bytes(catalog):
    for seed in (1, 2, 3):
        publish(catalog, SUPPORT, seed)

    published = catalog.rollback(SUPPORT)

    assert published.is_new
    assert published.version.version == 4
    assert published.version.digest == digest_of(2)
    assert published.version.origin == "rollback"
    assert published.version.source == "directory 2"
    # Now versions 1 to 4 are bytes 1, 2, 3, 2, and the newest that are not 2 are those of version 3.
    assert catalog.rollback(SUPPORT).version.digest == digest_of(3)


def test_rollback_to_a_version_takes_its_bytes(catalog):
    for seed in (1, 2, 3):
        publish(catalog, SUPPORT, seed)

    assert catalog.rollback(SUPPORT, 1).version.digest == digest_of(1)


@pytest.mark.parametrize("version", [2, 4])
def test_rollback_to_the_same_bytes_changes_nothing(catalog, version):
    for seed in (1, 2):
        publish(catalog, SUPPORT, seed)
    catalog.rollback(SUPPORT)
    catalog.rollback(SUPPORT, 2)
    record = catalog.find(SUPPORT)

    published = catalog.rollback(SUPPORT, version)

    assert not published.is_new
    assert published.record == record


@pytest.mark.parametrize("version", [0, 2, 10**30, -1])
def test_rollback_to_an_unknown_version_is_not_found(catalog, version):
    publish(catalog, SUPPORT, 1)

    with pytest.raises(AdapterNotFoundError, match=f"no version {version}"):
        catalog.rollback(SUPPORT, version)


def test_rollback_without_other_bytes_is_not_found(catalog):
    publish(catalog, SUPPORT, 1)

    with pytest.raises(AdapterNotFoundError, match="no earlier version"):
        catalog.rollback(SUPPORT)


def test_deleted_name_is_gone_but_its_tombstone_tells(catalog):
    published = publish(catalog, SUPPORT, 1)

    record = catalog.delete(SUPPORT)

    assert record.is_deleted
    assert record.versions == ()
    assert record.revision == published.record.revision + 1
    assert catalog.find(SUPPORT) is None
    assert catalog.changes_since(1).adapters == (record,)


def test_version_numbers_go_on_after_a_delete(catalog):
    for seed in (1, 2):
        publish(catalog, SUPPORT, seed)
    catalog.delete(SUPPORT)

    published = publish(catalog, SUPPORT, 2)

    assert published.is_new
    assert [v.version for v in published.record.versions] == [3]
    with pytest.raises(AdapterNotFoundError):
        catalog.rollback(SUPPORT, 1)


@pytest.mark.parametrize("is_deleted", [False, True])
@pytest.mark.parametrize("verb", ["rollback", "delete", "set_pinned"])
def test_absent_name_is_not_found(catalog, verb, is_deleted):
    if is_deleted:
        publish(catalog, SUPPORT, 1)
        catalog.delete(SUPPORT)
    before = catalog.changes_since(0)

    with pytest.raises(AdapterNotFoundError, match="'acme/support' does not exist"):
        getattr(catalog, verb)(SUPPORT, *[True] * (verb == "set_pinned"))

    assert catalog.changes_since(0) == before


def test_pin_outlives_publishes_and_not_a_delete(catalog):
    publish(catalog, SUPPORT, 1)

    assert catalog.set_pinned(SUPPORT, True).is_pinned
    assert publish(catalog, SUPPORT, 2).record.is_pinned
    assert not catalog.delete(SUPPORT).is_pinned
    assert not publish(catalog, SUPPORT, 3).record.is_pinned


def test_pin_that_is_there_already_changes_nothing(catalog):
    publish(catalog, SUPPORT, 1)
    record = catalog.set_pinned(SUPPORT, True)

    assert catalog.set_pinned(SUPPORT, True) == record
    assert catalog.set_pinned(SUPPORT, False).revision == record.revision + 1


def test_digest_is_referenced_until_its_last_version_goes(catalog):
    publish(catalog, SUPPORT, 1)
    publish(catalog, SUPPORT, 2)
    publish(catalog, OTHER, 1)
    assert catalog.referenced_digests() == {digest_of(1), digest_of(2)}

    catalog.delete(SUPPORT)
    assert catalog.referenced_digests() == {digest_of(1)}
    assert catalog.find(OTHER).versions[0].artifact == make_artifact(1)

    catalog.delete(OTHER)
    assert catalog.referenced_digests() == frozenset()


def test_forgotten_digest_may_come_back_with_another_manifest(catalog):
    publish(catalog, SUPPORT, 1)
    catalog.delete(SUPPORT)
    moved = make_artifact(1, 333, path="/elsewhere")

    assert catalog.publish(SUPPORT, moved, source="upload").version.artifact == moved


def test_usage_counts_each_digest_of_a_tenant_once(catalog):
    publish(catalog, SUPPORT, 1, 100)
    publish(catalog, SUPPORT, 2, 1000)
    publish(catalog, LEGAL, 1, 100)
    catalog.rollback(SUPPORT)
    publish(catalog, OTHER, 1, 100)

    assert catalog.usage("acme") == CatalogUsage(num_adapters=2, stored_bytes=1100)
    assert catalog.usage("globex") == CatalogUsage(num_adapters=1, stored_bytes=100)

    catalog.delete(SUPPORT)
    assert catalog.usage("acme") == CatalogUsage(num_adapters=1, stored_bytes=100)


def test_usage_holds_terabytes(catalog):
    publish(catalog, SUPPORT, 1, 3 << 40)
    publish(catalog, SUPPORT, 2, 3 << 40)

    assert catalog.usage("acme").stored_bytes == 6 << 40


def test_adapter_quota_counts_names(catalog):
    quota = CatalogQuota(max_adapters=1)
    publish(catalog, OTHER, 1)
    publish(catalog, SUPPORT, 1, quota=quota)

    publish(catalog, SUPPORT, 2, quota=quota)
    with pytest.raises(QuotaError, match="All 1 adapters"):
        publish(catalog, LEGAL, 3, quota=quota)
    assert catalog.find(LEGAL) is None
    assert digest_of(3) not in catalog.referenced_digests()

    catalog.delete(SUPPORT)
    assert publish(catalog, LEGAL, 3, quota=quota).is_new


def test_deleted_name_counts_as_new_for_the_quota(catalog):
    quota = CatalogQuota(max_adapters=1)
    publish(catalog, SUPPORT, 1)
    catalog.delete(SUPPORT)
    publish(catalog, LEGAL, 1, quota=quota)

    with pytest.raises(QuotaError):
        publish(catalog, SUPPORT, 1, quota=quota)


def test_byte_quota_counts_distinct_digests_of_all_versions(catalog):
    quota = CatalogQuota(max_stored_bytes=250)
    publish(catalog, SUPPORT, 1, quota=quota)
    publish(catalog, SUPPORT, 2, quota=quota)

    publish(catalog, LEGAL, 1, quota=quota)
    with pytest.raises(QuotaError, match="200 of 250 bytes"):
        publish(catalog, LEGAL, 3, quota=quota)

    assert publish(catalog, LEGAL, 4, stored_bytes=50, quota=quota).is_new


def test_bytes_of_another_tenant_count_for_whoever_names_them(catalog):
    publish(catalog, OTHER, 1)

    with pytest.raises(QuotaError):
        publish(catalog, SUPPORT, 1, quota=CatalogQuota(max_stored_bytes=99))


def test_tenant_over_its_quota_keeps_what_it_has(catalog):
    publish(catalog, SUPPORT, 1)
    publish(catalog, LEGAL, 2)
    none = CatalogQuota(max_adapters=0, max_stored_bytes=0)

    assert not publish(catalog, SUPPORT, 1, quota=none).is_new
    assert publish(catalog, SUPPORT, 2, quota=none).is_new
    assert catalog.rollback(SUPPORT).is_new


def test_revisions_grow_by_one_with_each_change(catalog):
    revisions = [
        publish(catalog, SUPPORT, 1).record.revision,
        publish(catalog, LEGAL, 1).record.revision,
        publish(catalog, SUPPORT, 2).record.revision,
        catalog.rollback(SUPPORT).record.revision,
        catalog.set_pinned(LEGAL, True).revision,
        catalog.delete(SUPPORT).revision,
    ]

    assert revisions == [1, 2, 3, 4, 5, 6]


def test_changes_are_the_names_that_changed_in_order(catalog):
    for name in (SUPPORT, LEGAL, OTHER, SUPPORT):
        publish(catalog, name, len(catalog.referenced_digests()) + 1)

    changes = catalog.changes_since(1)

    assert changes.revision == 4
    assert [(r.name, r.revision) for r in changes.adapters] == [
        (LEGAL, 2),
        (OTHER, 3),
        (SUPPORT, 4),
    ]
    assert catalog.changes_since(changes.revision) == replace(changes, adapters=())


def test_database_restored_from_an_older_copy_is_told_in_full(catalog):
    publish(catalog, SUPPORT, 1)

    changes = catalog.changes_since(50)

    assert changes.revision == 1
    assert [record.name for record in changes.adapters] == [SUPPORT]


@pytest.mark.parametrize("seed", range(3))
def test_any_history_ends_as_the_model_says(catalog, seed):
    rng = random.Random(seed)
    model = CatalogModel()
    for _ in range(150):
        operation = random_operation(rng)
        assert perform(catalog, operation) == model.apply(operation), operation

    assert snapshot_of(catalog) == model.snapshot()
    used = {digest_of(s) for n in model.names.values() for _, s, _ in n.versions}
    assert catalog.referenced_digests() == used
