"""Names to entries, without any waiting."""

import dataclasses

import pytest

from fake_runtime import digest_of, fake_manifest, full_name
from shadow_runtime.catalog.record import AdapterRecord, ArtifactRecord, VersionRecord
from shadow_runtime.errors import AdapterNotFoundError
from shadow_runtime.registry.binding import Bindings

A, B = full_name("a"), full_name("b")
ONE, TWO = digest_of("one"), digest_of("two")


def record(name, digests, revision, *, first=1, **fields):
    versions = tuple(
        VersionRecord(name, number, ArtifactRecord(fake_manifest(d), 1), "publish", "test", 0)
        for number, d in enumerate(digests, start=first)
    )
    current = versions[-1].version if versions else 0
    chosen = {"is_pinned": False, "is_deleted": not versions, **fields}
    return AdapterRecord(name, current, versions, revision=revision, **chosen)


def test_a_flip_says_what_left_and_what_came():
    bindings = Bindings()
    first = bindings.apply(record(A, [ONE], 1))
    assert (first.left, first.current.digest, first.dropped) == (None, ONE, frozenset())
    second = bindings.apply(record(A, [ONE, TWO], 2))
    assert (second.left, second.current.digest) == (first.current, TWO)
    assert bindings.is_current(second.current)
    assert not bindings.is_current(first.current)
    assert bindings.is_referenced(ONE)
    assert not bindings.is_answering(ONE)
    bindings.check_integrity()


def test_what_is_not_newer_changes_nothing():
    bindings = Bindings()
    bindings.apply(record(A, [ONE, TWO], 2))
    assert bindings.apply(record(A, [ONE], 1)) is None
    assert bindings.apply(record(A, [ONE, TWO], 2)) is None
    bindings.note_seen(5)
    assert bindings.apply(record(B, [ONE], 4)) is None
    assert bindings.find_current(A).digest == TWO


def test_a_deleted_name_cannot_come_back_by_an_older_record():
    bindings = Bindings()
    bindings.apply(record(A, [ONE], 1))
    change = bindings.apply(record(A, [], 3))
    assert (change.current, change.dropped) == (None, {ONE})
    assert bindings.apply(record(A, [ONE], 2)) is None
    bindings.note_seen(3)
    assert bindings._records == {}
    assert bindings.apply(record(A, [ONE], 2)) is None
    assert bindings.apply(record(A, [TWO], 4, first=2)).current.version == 2


def test_a_digest_is_dropped_with_its_last_version_of_any_name():
    bindings = Bindings()
    bindings.apply(record(A, [ONE, TWO, ONE], 1))
    bindings.apply(record(B, [ONE], 2))
    assert bindings.apply(record(A, [], 3)).dropped == {TWO}
    assert bindings.apply(record(B, [], 4)).dropped == {ONE}


def test_a_pin_moves_with_its_name():
    bindings = Bindings()
    pinned = bindings.apply(record(A, [ONE], 1, is_pinned=True))
    assert (pinned.unpinned, pinned.pinned) == (None, ONE)
    moved = bindings.apply(record(A, [ONE, TWO], 2, is_pinned=True))
    assert (moved.unpinned, moved.pinned) == (ONE, TWO)
    assert bindings.apply(record(A, [], 3)).unpinned == TWO


def test_versions_are_found_by_their_numbers():
    bindings = Bindings()
    bindings.apply(record(A, [ONE, TWO], 1, first=7))
    assert bindings.get_version(A, 8).digest == TWO
    for name, version in ((A, 6), (A, 9), (B, 7)):
        with pytest.raises(AdapterNotFoundError):
            bindings.get_version(name, version)


def test_a_number_that_is_given_again_is_another_entry():
    bindings = Bindings()
    old = bindings.apply(record(A, [ONE], 5)).current
    bindings.forget_revisions()
    new = bindings.apply(record(A, [TWO], 1)).current
    assert (old.key, old.digest) == (new.key, ONE)
    assert bindings.find_entry(new.key) is new
    bindings.close_entry(old)
    assert bindings.find_entry(new.key) is new
    bindings.check_integrity()


def test_integrity_names_what_is_wrong():
    bindings = Bindings()
    entry = bindings.apply(record(A, [ONE], 1)).current
    bindings._current[A] = dataclasses.replace(entry)
    with pytest.raises(RuntimeError, match="not its version"):
        bindings.check_integrity()
    del bindings._current[A]
    with pytest.raises(RuntimeError, match="without an entry"):
        bindings.check_integrity()
    bindings._current[A] = entry
    bindings._by_digest.clear()
    with pytest.raises(RuntimeError, match="index"):
        bindings.check_integrity()
