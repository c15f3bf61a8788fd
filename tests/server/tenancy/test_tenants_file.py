"""The tenants file: strict to read, whole or unchanged to write."""

import json
import os
import stat
import subprocess
import sys

import pytest

from shadow_server.tenancy import tenants_file
from shadow_server.tenancy.key import mint_key
from shadow_server.tenancy.tenants_file import (
    KeyRow,
    TenantRow,
    TenantsFileError,
    edit_document,
    new_document,
    parse_document,
    read_document,
)


def row(name, *keys):
    rows = (KeyRow(id=k.key_id, hash=k.hash, role="user", created_unix=1) for k in keys)
    return TenantRow(name=name, keys=tuple(rows))


def add(path, *rows):
    def change(document):
        for each in rows:
            document = document.with_tenant(each)
        return document, None

    edit_document(path, change)


VALID = {
    "version": 1,
    "salt": "ab" * 32,
    "tenants": [
        {
            "name": "acme",
            "weight": 2,
            "can_use_base": False,
            "quotas": {"max_adapters": 3},
            "keys": [{"id": "0" * 12, "hash": "0" * 64, "role": "admin", "created_unix": 5}],
        }
    ],
}


def changed(**fields):
    return json.loads(json.dumps(VALID)) | fields


def with_tenant(**fields):
    return changed(tenants=[VALID["tenants"][0] | fields])


def with_key(**fields):
    return with_tenant(keys=[VALID["tenants"][0]["keys"][0] | fields])


def test_valid_file():
    (acme,) = parse_document(json.dumps(VALID).encode()).tenants
    assert (acme.name, acme.weight, acme.can_use_base) == ("acme", 2.0, False)
    assert (acme.quotas.max_adapters, acme.quotas.max_stored_bytes) == (3, None)
    assert acme.keys[0].is_valid_at(1e12)
    assert parse_document(json.dumps(changed(tenants=[])).encode()).tenants == ()


WITHOUT_VERSION = {k: v for k, v in VALID.items() if k != "version"}
TWICE = changed(tenants=[VALID["tenants"][0], VALID["tenants"][0] | {"keys": []}])
SAME_ID = changed(tenants=[VALID["tenants"][0], VALID["tenants"][0] | {"name": "other"}])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "the file"),
        (WITHOUT_VERSION, "version"),
        (changed(version=2), "version"),
        (changed(extra=1), "extra"),
        (changed(salt="short"), "salt"),
        (changed(salt="AB" * 32), "salt"),
        (with_tenant(name="Acme"), "name"),
        (with_tenant(name="a/b"), "name"),
        (with_tenant(weight=0), "weight"),
        (with_tenant(weight=1e9), "weight"),
        (with_tenant(weight="1"), "weight"),
        (with_tenant(can_use_base="no"), "can_use_base"),
        (with_tenant(quotas={"max_adapters": 0}), "max_adapters"),
        (with_tenant(quotas={"max_adapters": 1.5}), "max_adapters"),
        (with_tenant(quotas={"max_adapter": 1}), "max_adapter"),
        (with_tenant(quotas={"tokens_per_minute": True}), "tokens_per_minute"),
        (with_key(role="root"), "role"),
        (with_key(hash="secret"), "hash"),
        (with_key(id="x"), "id"),
        (with_key(revoked="yes"), "revoked"),
        (with_key(key="sk-shadow-plain"), "key"),
        (TWICE, "appears twice"),
        (SAME_ID, "appears twice"),
    ],
)
def test_invalid_files_are_refused_in_one_sentence(content, said, tmp_path):
    path = tmp_path / "tenants.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TenantsFileError, match="is not a tenants file") as caught:
        read_document(path)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert "sk-shadow-plain" not in message


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"null", b'{"version": NaN}'])
def test_what_is_not_json(data):
    with pytest.raises(TenantsFileError):
        parse_document(data)


def test_missing_and_huge_files(tmp_path, monkeypatch):
    with pytest.raises(TenantsFileError, match="cannot be read: No such file"):
        read_document(tmp_path / "none")
    with pytest.raises(TenantsFileError, match="cannot be read"):
        read_document(tmp_path)
    monkeypatch.setattr(tenants_file, "MAX_FILE_BYTES", 10)
    (tmp_path / "big").write_bytes(b" " * 11)
    with pytest.raises(TenantsFileError, match="larger than 10 bytes"):
        read_document(tmp_path / "big")


def test_edit_starts_a_file_keeps_its_salt_and_shows_it_to_nobody_else(tmp_path):
    path = tmp_path / "tenants.json"
    add(path, row("acme"))
    salt = read_document(path).salt
    add(path, row("zeta", mint_key()), row("acme", mint_key()))
    document = read_document(path)
    assert document.salt == salt
    assert [tenant.name for tenant in document.tenants] == ["acme", "zeta"]
    assert len(document.find("acme").keys) == 1
    assert new_document().salt != salt
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tenants.json", "tenants.json.lock"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "t.json", tmp_path / "t.json"
    add(target, row("acme"))
    link.symlink_to(target)
    add(link, row("zeta"))
    assert link.is_symlink()
    assert len(read_document(target).tenants) == 2


def test_a_change_that_fails_leaves_the_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "tenants.json"
    add(path, row("acme"))
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(ZeroDivisionError):
        edit_document(path, lambda document: (document, 1 / 0))
    monkeypatch.setattr(tenants_file.os, "fsync", fail)
    with pytest.raises(TenantsFileError, match="cannot be written: No space left"):
        add(path, row("zeta"))
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_broken_file_is_not_overwritten(tmp_path):
    path = tmp_path / "tenants.json"
    path.write_text("{}")
    with pytest.raises(TenantsFileError, match="is not a tenants file"):
        add(path, row("acme"))
    assert path.read_text() == "{}"


def test_edits_of_several_processes_are_all_there(tmp_path):
    path = tmp_path / "tenants.json"
    code = (
        "import sys; from shadow_server.cli import main;"
        "[main(['tenants', 'create', f'{sys.argv[1]}{i}', '--tenants-file', sys.argv[2]])"
        " for i in range(8)]"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, name, str(path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for name in "abc"
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    assert len(read_document(path).tenants) == 24


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("")
    os.symlink(victim, tmp_path / "tenants.json.lock")
    with pytest.raises(TenantsFileError, match="cannot be written"):
        add(tmp_path / "tenants.json", row("acme"))
