"""`shadowserve tenants` from the command line on."""

import json

import pytest

from shadow_server.cli import main
from shadow_server.tenancy import command
from shadow_server.tenancy.directory import TenantDirectory
from shadow_server.tenancy.quota import TenantQuotas
from shadow_server.tenancy.tenants_file import read_document


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tenants.json"


@pytest.fixture
def run(path, capsys):
    """Return a function that runs one command and returns its status, output and errors."""

    def run(*words):
        try:
            status = main(["tenants", *words, "--tenants-file", str(path)])
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def keys_of(output):
    keys = output.split()
    assert all(key.startswith("sk-shadow-") for key in keys)
    return keys


def who(path, key):
    found = TenantDirectory(path).authenticate(key)
    return None if found is None else (found.tenant, found.role)


def test_create_prints_the_key_once_and_stores_its_hash(run, path):
    words = ["--weight", "2", "--no-base", "--max-adapters", "5", "--tokens-per-minute", "900"]
    status, out, err = run("create", "acme", *words)
    (key,) = keys_of(out)
    assert status == 0
    assert key not in err
    assert who(path, key) == ("acme", "user")
    identity = TenantDirectory(path).authenticate(key)
    assert (identity.weight, identity.can_use_base) == (2.0, False)
    assert identity.quotas.max_adapters == 5
    assert identity.quotas.tokens_per_minute == 900
    assert identity.quotas.requests_per_minute is None
    assert key.split("-", 3)[3] not in path.read_text()
    assert "sk-shadow" not in run("list")[1]


def test_add_key_and_roles(run, path):
    run("create", "acme", "--role", "admin")
    (key,) = keys_of(run("add-key", "acme")[1])
    (boss,) = keys_of(run("add-key", "acme", "--role", "admin")[1])
    assert (who(path, key), who(path, boss)) == (("acme", "user"), ("acme", "admin"))


def test_rotate_exchanges_every_key_and_keeps_the_roles(run, path):
    (first,) = keys_of(run("create", "acme")[1])
    (boss,) = keys_of(run("add-key", "acme", "--role", "admin")[1])
    status, out, _ = run("rotate", "acme")
    new_first, new_boss = keys_of(out)
    assert status == 0
    assert [who(path, key) for key in (first, boss)] == [None, None]
    assert [who(path, k) for k in (new_first, new_boss)] == [("acme", "user"), ("acme", "admin")]


def test_rotate_of_one_key_with_grace(run, path, monkeypatch):
    (first,) = keys_of(run("create", "acme")[1])
    (other,) = keys_of(run("add-key", "acme")[1])
    (new,) = keys_of(run("rotate", "acme", "--key", first.split("-")[2], "--grace", "60")[1])
    assert {who(path, key) for key in (first, other, new)} == {("acme", "user")}
    key = next(k for k in read_document(path).find("acme").keys if k.id in first)
    assert not key.is_valid_at(key.expires_unix)
    assert "expiring" in run("list")[1]
    # The next rotation leaves alone what runs out anyway.
    assert len(keys_of(run("rotate", "acme")[1])) == 2
    later = command._now() + 61
    monkeypatch.setattr(command, "_now", lambda: later)
    assert "expired" in run("list")[1]


def test_revoke_one_and_all(run, path):
    (first,) = keys_of(run("create", "acme")[1])
    (second,) = keys_of(run("add-key", "acme")[1])
    assert run("revoke", "acme", "--key", first.split("-")[2])[2] == "1 key revoked\n"
    assert (who(path, first), who(path, second)) == (None, ("acme", "user"))
    assert run("revoke", "acme") == (0, "", "1 key revoked\n")
    assert who(path, second) is None
    assert read_document(path).find("acme") is not None


def test_set_changes_what_is_named_and_nothing_else(run, path):
    words = ["--weight", "2", "--max-adapters", "5", "--tokens-per-minute", "900"]
    (key,) = keys_of(run("create", "acme", *words)[1])
    assert run("set", "acme", "--requests-per-minute", "7", "--max-adapters", "6") == (0, "", "")
    identity = TenantDirectory(path).authenticate(key)
    assert (identity.weight, identity.can_use_base, identity.role) == (2.0, True, "user")
    assert identity.quotas == TenantQuotas(
        max_adapters=6, tokens_per_minute=900, requests_per_minute=7
    )
    run("set", "acme", "--max-adapters", "none", "--weight", "3", "--no-base")
    identity = TenantDirectory(path).authenticate(key)
    assert (identity.weight, identity.can_use_base) == (3.0, False)
    assert identity.quotas == TenantQuotas(tokens_per_minute=900, requests_per_minute=7)
    run("set", "acme", "--base")
    assert TenantDirectory(path).authenticate(key).can_use_base


def test_a_burst_of_no_rate_is_refused(run, path):
    message = "request_burst needs requests_per_minute"
    assert message in run("create", "acme", "--request-burst", "3")[2]
    assert not path.exists()
    run("create", "acme", "--requests-per-minute", "7", "--request-burst", "3")
    assert message in run("set", "acme", "--requests-per-minute", "none")[2]
    assert read_document(path).find("acme").quotas.requests_per_minute == 7


def test_remove_takes_the_keys_and_leaves_the_other_tenants(run, path):
    (gone,) = keys_of(run("create", "acme")[1])
    (kept,) = keys_of(run("create", "zeta", "--weight", "2")[1])
    before = read_document(path)
    status, out, err = run("remove", "acme")
    assert (status, out) == (0, "")
    assert "adapters stay" in err
    assert (who(path, gone), who(path, kept)) == (None, ("zeta", "user"))
    after = read_document(path)
    assert (after.salt, after.tenants) == (before.salt, (before.find("zeta"),))
    # The name is free again, for another key.
    (new,) = keys_of(run("create", "acme")[1])
    assert (who(path, gone), who(path, new)) == (None, ("acme", "user"))


def test_list_for_programs_holds_no_hash(run, path):
    run("create", "acme", "--requests-per-minute", "7")
    (acme,) = json.loads(run("list", "--json")[1])
    assert acme["name"] == "acme"
    assert acme["quotas"]["requests_per_minute"] == 7
    (key,) = acme["keys"]
    assert (key["state"], key["role"]) == ("active", "user")
    assert "hash" not in key
    assert "salt" not in acme


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("create", "acme"), "exists already"),
        (("create", "zeta", "--weight", "0"), "weight"),
        (("create", "zeta", "--weight", "nan"), "weight"),
        (("add-key", "nobody"), "no tenant 'nobody'"),
        (("rotate", "nobody"), "no tenant 'nobody'"),
        (("set", "nobody", "--base"), "no tenant 'nobody'"),
        (("set", "acme", "--weight", "0"), "weight"),
        (("set", "acme", "--max-adapters", str(1 << 54)), "max_adapters"),
        (("remove", "nobody"), "no tenant 'nobody'"),
        (("rotate", "acme", "--key", "0" * 12), "no active key"),
        (("revoke", "acme", "--key", "0" * 12), "no active key"),
    ],
)
def test_what_cannot_be_done_is_status_1(run, path, words, said):
    run("create", "acme")
    before = path.read_bytes()
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("rotate", "acme"),
        ("revoke", "acme"),
        ("remove", "acme"),
        ("set", "acme", "--base"),
    ],
)
def test_without_a_file_there_is_nothing_to_do(run, path, words):
    assert run(*words)[0] == 1
    assert not path.exists()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("fly",),
        ("create",),
        ("create", "Acme"),
        ("create", "a/b"),
        ("create", "acme", "--max-adapters", "0"),
        ("create", "acme", "--max-adapters", "none"),
        ("set", "acme"),
        ("set", "acme", "--max-adapters", "0"),
        ("set", "acme", "--max-adapters", "all"),
        ("set", "acme", "--role", "admin"),
        ("remove",),
        ("create", "acme", "--role", "root"),
        ("rotate", "acme", "--grace", "-1"),
    ],
)
def test_wrong_command_lines_are_status_2(run, path, words):
    assert run(*words)[0] == 2
    assert not path.exists()


def test_the_file_must_be_named(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["tenants", "list"])
    assert stop.value.code == 2
