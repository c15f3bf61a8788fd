"""Keys against a tenants file that changes."""

import asyncio
import hashlib
import hmac
import json
import logging
import os

import pytest

from fake_server import until
from shadow_server.engine import AdapterName
from shadow_server.tenancy import directory as directory_module
from shadow_server.tenancy.directory import TenantDirectory
from shadow_server.tenancy.key import mint_key
from shadow_server.tenancy.quota import TenantQuotas, quota_of
from shadow_server.tenancy.tenants_file import (
    KeyRow,
    TenantRow,
    TenantsFileError,
    edit_document,
    read_document,
)


class Tenants:
    """A tenants file to change."""

    def __init__(self, path):
        self.path = path

    def add(self, name, role="user", **fields):
        key = mint_key()
        times = {k: fields.pop(k) for k in ("expires_unix", "revoked") if k in fields}
        row = KeyRow(id=key.key_id, hash=key.hash, role=role, created_unix=1, **times)

        def change(document):
            known = document.find(name)
            keys = (*(known.keys if known else ()), row)
            return document.with_tenant(TenantRow(name=name, keys=keys, **fields)), None

        edit_document(self.path, change)
        return key.text


@pytest.fixture
def tenants(tmp_path):
    return Tenants(tmp_path / "tenants.json")


def test_a_key_stands_for_its_tenant(tenants):
    quotas = TenantQuotas(max_adapters=3, max_stored_bytes=9, requests_per_minute=5)
    key = tenants.add("acme", weight=2.5, can_use_base=False, quotas=quotas)
    boss = tenants.add("ops", role="admin")
    directory = TenantDirectory(tenants.path)
    acme, ops = directory.authenticate(key), directory.authenticate(boss)
    assert (acme.tenant, acme.role, acme.weight, acme.can_use_base) == ("acme", "user", 2.5, False)
    assert acme.key_id in key
    assert acme.quotas == quotas
    assert (ops.tenant, ops.role) == ("ops", "admin")
    assert acme.can_reach(AdapterName("acme", "x"))
    assert not acme.can_reach(AdapterName("ops", "x"))
    assert ops.can_reach(AdapterName("acme", "x"))
    assert (quota_of(acme).max_adapters, quota_of(acme).max_stored_bytes) == (3, 9)
    assert quota_of(ops) is None


def test_prefix_salts_differ_by_tenant_and_file_and_are_not_guessable(tenants, tmp_path):
    first, second = tenants.add("acme"), tenants.add("zeta")
    directory = TenantDirectory(tenants.path)
    salt = bytes.fromhex(read_document(tenants.path).salt)
    acme = directory.authenticate(first).cache_salt
    assert acme == hmac.new(salt, b"acme", hashlib.sha256).hexdigest()
    assert directory.authenticate(second).cache_salt != acme
    elsewhere = Tenants(tmp_path / "other.json")
    key = elsewhere.add("acme")
    assert TenantDirectory(elsewhere.path).authenticate(key).cache_salt != acme


def test_wrong_keys_stand_for_nobody(tenants):
    key, other = tenants.add("acme"), tenants.add("zeta")
    directory = TenantDirectory(tenants.path)
    crossed = key.rsplit("-", 1)[0][:22] + other[22:]
    for wrong in ("", "x", key[:-1], key + "a", key.swapcase(), crossed, mint_key().text):
        assert directory.authenticate(wrong) is None
    assert directory.authenticate(key) is not None


def test_revoked_and_expired_keys_stand_for_nobody(tenants):
    now = 1000.0
    revoked = tenants.add("acme", revoked=True)
    expiring = tenants.add("acme", expires_unix=1010)
    directory = TenantDirectory(tenants.path, now_unix=lambda: now)
    assert directory.authenticate(revoked) is None
    assert directory.authenticate(expiring).tenant == "acme"
    now = 1010.0
    assert directory.authenticate(expiring) is None


def test_every_way_takes_one_comparison(tenants, monkeypatch):
    key = tenants.add("acme")
    revoked = tenants.add("acme", revoked=True)
    directory = TenantDirectory(tenants.path)
    calls = []
    real = directory_module.matches

    def count(secret, expected_hash):
        calls.append(len(secret))
        return real(secret, expected_hash)

    monkeypatch.setattr(directory_module, "matches", count)
    for text in (key, key[:-1] + "x", revoked, mint_key().text, "", "no key at all"):
        directory.authenticate(text)
    assert calls == [43] * 6


async def test_changes_are_taken_over(tenants):
    key = tenants.add("acme")
    directory = TenantDirectory(tenants.path)
    assert not await directory.refresh()
    later = tenants.add("zeta")
    assert directory.authenticate(later) is None
    assert await directory.refresh()
    assert directory.authenticate(later).tenant == "zeta"
    assert directory.authenticate(key).tenant == "acme"
    assert not await directory.refresh()


async def test_the_watch_sees_a_change(tenants):
    tenants.add("acme")
    directory = TenantDirectory(tenants.path, poll_seconds=0.01)
    watching = asyncio.create_task(directory.watch())
    later = await asyncio.to_thread(tenants.add, "zeta")
    await until(lambda: directory.authenticate(later) is not None, 10)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


@pytest.mark.parametrize("breakage", ["{", "{}", None, "directory"])
async def test_a_broken_file_changes_nothing_and_is_told_once(tenants, caplog, breakage):
    key = tenants.add("acme")
    directory = TenantDirectory(tenants.path)
    good = tenants.path.read_bytes()
    if breakage is None:
        tenants.path.unlink()
    elif breakage == "directory":
        tenants.path.unlink()
        tenants.path.mkdir()
    else:
        tenants.path.write_text(breakage)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert not await directory.refresh()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert directory.authenticate(key).tenant == "acme"
    if breakage == "directory":
        tenants.path.rmdir()
    tenants.path.write_bytes(good)
    later = tenants.add("zeta")
    assert await directory.refresh()
    assert directory.authenticate(later).tenant == "zeta"


async def test_a_change_of_equal_size_and_time_is_seen_by_its_file(tenants):
    key = tenants.add("acme")
    directory = TenantDirectory(tenants.path)
    before = tenants.path.stat()
    content = json.loads(tenants.path.read_text())
    content["tenants"][0]["keys"][0]["revoked"] = True
    text = json.dumps(content, indent=2).replace('"revoked": true', '"revoked":true') + "\n"
    other = tenants.path.with_name("new")
    other.write_text(text + " " * (before.st_size - len(text)))
    os.utime(other, ns=(before.st_mtime_ns, before.st_mtime_ns))
    other.replace(tenants.path)
    assert tenants.path.stat().st_size == before.st_size
    assert await directory.refresh()
    assert directory.authenticate(key) is None


def test_a_server_does_not_start_without_its_file(tmp_path):
    with pytest.raises(TenantsFileError, match="cannot be read"):
        TenantDirectory(tmp_path / "none")


async def test_no_secret_is_logged(tenants, caplog):
    with caplog.at_level(logging.DEBUG):
        key = tenants.add("acme")
        directory = TenantDirectory(tenants.path)
        directory.authenticate(key)
        directory.authenticate(key[:-1])
        tenants.add("zeta")
        await directory.refresh()
        tenants.path.write_text(tenants.path.read_text().replace('"user"', '"root"'))
        await directory.refresh()
    document = tenants.path.read_text()
    secret = key.split("-", 3)[3]
    assert caplog.text
    assert secret not in caplog.text
    assert secret not in document
    for line in json.loads(document)["tenants"][0]["keys"]:
        assert line["hash"] not in caplog.text
