"""A server's state directory: what a restart finds in it."""

import asyncio

import pytest

from fake_runtime import (
    BASE_FINGERPRINT,
    FakeLoader,
    FakeValidator,
    digest_of,
    full_name,
    stage,
    until,
)
from shadow_runtime.errors import AdapterFailedError, ConfigError, StorageError
from shadow_runtime.registry import AdapterState, RegistrySettings, open_catalog, open_registry

A, B = full_name("a"), full_name("b")
ONE, TWO = digest_of("one"), digest_of("two")


async def open_in(directory, loader=None):
    return await open_registry(
        loader or FakeLoader(),
        FakeValidator(),
        state_dir=directory,
        base_fingerprint=BASE_FINGERPRINT,
        settings=RegistrySettings(poll_seconds=0.02),
    )


async def test_a_restart_shows_all_that_was_acknowledged(tmp_path):
    directory = tmp_path / "state"
    first = await open_in(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    for text in ("one", "two"):
        await first.publish(A, stage(first.store, text))
    await first.publish(B, stage(first.store, "one"))
    await first.pin(B)
    await first.start()  # the second time does nothing
    await first.close()
    loader = FakeLoader()
    again = await open_in(directory, loader)
    assert again.get(A).digest == TWO
    assert [v.digest for v in again.versions(A)] == [ONE, TWO]
    assert (again.get(A).state, again.get(A).level) == (AdapterState.RESIDENT, "disk")
    assert again.is_pinned(B)
    await until(lambda: loader.slots.pinned == {ONE})
    (await again.lease(A)).release()
    assert loader.held.keys() == {ONE, TWO}
    again.check_integrity()
    await again.close()


async def test_an_entry_without_its_bytes_is_registered_until_they_appear(tmp_path):
    first = await open_in(tmp_path)
    path = (await first.publish(A, stage(first.store, "one"))).entry.manifest.path
    await first.close()
    hidden = tmp_path / "hidden"
    await asyncio.to_thread(first.store.find(ONE).path.rename, hidden)
    again = await open_in(tmp_path)
    assert again.get(A).state is AdapterState.REGISTERED
    with pytest.raises(AdapterFailedError, match="not in this server's store"):
        await again.lease(A)
    await asyncio.to_thread(hidden.rename, path)
    (await again.lease(A)).release()
    assert again.get(A).state is AdapterState.RESIDENT
    await again.close()


def test_a_database_of_another_base_is_refused(tmp_path):
    open_catalog(tmp_path, BASE_FINGERPRINT).close()
    with pytest.raises(ConfigError):
        open_catalog(tmp_path, "sha256:" + "1" * 64)


def test_a_state_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        open_catalog(tmp_path / "file" / "state", BASE_FINGERPRINT)


def test_another_database_is_taken_by_its_url(tmp_path):
    url = f"sqlite:///{tmp_path / 'other.db'}"
    open_catalog(tmp_path / "state", BASE_FINGERPRINT, url).close()
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "state" / "registry.db").exists()
