"""`shadowserve adapters` over the server: what is done, what is said, how it ends."""

import json

import pytest

from shadow_server.cli import main


def test_the_life_of_an_adapter(shell, write_adapter):
    folder = write_adapter("life", "one")
    status, out, _ = shell("adapters", "load", "life", "--server-path", folder)
    assert status == 0
    assert "RESIDENT" in out
    file = write_adapter("life", "two") / "adapter.txt"
    assert shell("adapters", "load", "life", file, "--pin")[0] == 0
    listed = json.loads(shell("adapters", "list", "--json")[1])
    (card,) = [card for card in listed if card["name"] == "life"]
    assert (card["pinned"], card["tenant"], card["state"]) == (True, "acme", "RESIDENT")
    second = card["digest"]
    versions = json.loads(shell("adapters", "versions", "life", "--json")[1])
    assert versions[-1]["digest"] == second
    back = json.loads(shell("adapters", "rollback", "life", "--json")[1])
    assert back["digest"] == versions[-2]["digest"]
    again = json.loads(
        shell("adapters", "rollback", "life", "--to", versions[-1]["version"], "--json")[1]
    )
    assert again["digest"] == second
    assert not json.loads(shell("adapters", "unpin", "life", "--json")[1])["pinned"]
    assert json.loads(shell("adapters", "pin", "life", "--json")[1])["pinned"]
    assert shell("adapters", "wait", "life", "--timeout", "5")[0] == 0
    status, out, err = shell("adapters", "unload", "life")
    assert (status, out, err) == (0, "", "'life' is deleted\n")
    assert shell("adapters", "versions", "life")[0] == 5


def test_a_list_for_people(shell, write_adapter):
    shell("adapters", "load", "listed", "--server-path", write_adapter("listed"))
    out = shell("adapters", "list")[1]
    head, *rows = out.splitlines()
    assert head.split() == [
        "name",
        "version",
        "state",
        "level",
        "pinned",
        "requests",
        "size",
        "digest",
    ]
    (row,) = [row for row in rows if row.startswith("listed")]
    assert "RESIDENT" in row
    assert "\x1b" not in out
    assert shell("adapters", "unload", "listed", "--json")[0] == 0


def test_validation_ends_with_a_status_of_its_own(shell, write_adapter):
    good, bad = write_adapter("good"), write_adapter("bad", "broken")
    status, out, _ = shell("adapters", "validate", "--server-path", good)
    assert (status, out.splitlines()[0]) == (0, "valid       yes")
    status, out, _ = shell("adapters", "validate", bad / "adapter.txt", "--json")
    assert (status, json.loads(out)["error"]["code"]) == (6, "adapter_tensor_invalid")
    status, out, _ = shell("adapters", "validate", "--server-path", bad)
    assert status == 6
    assert "(adapter_tensor_invalid)" in out


def test_a_folder_goes_with_a_backbone_config_of_this_machine(shell, write_adapter, tmp_path):
    folder, config = write_adapter("explicit", "explicit"), tmp_path / "narrow.json"
    config.write_text("{}")
    with_config = ("--backbone-config", config)
    assert shell("adapters", "validate", folder / "adapter.txt", *with_config)[0] == 0
    status, out, _ = shell("adapters", "load", "e", folder / "adapter.txt", *with_config, "--json")
    assert (status, json.loads(out)["stored_bytes"]) == (0, len("explicit") + 2)


@pytest.mark.parametrize(
    ("words", "status", "message", "hint"),
    [
        (("versions", "nobody"), 5, "adapter_not_found", "adapters list"),
        (("load", "x", "--server-path", "/etc"), 4, "adapter_path_forbidden", "which uploads"),
        (("load", "x", "/nowhere"), 5, "there is no folder '/nowhere'", None),
        (("load", "x", __file__, "--backbone-config", "/n"), 5, "there is no file '/n'", None),
        (
            ("load", "x", "--hub", "a/b@" + "0" * 40, "--backbone-config", "/n"),
            1,
            "goes with 'path' only",
            None,
        ),
        (("load", "x", "--hub", "a/b@" + "0" * 40), 4, "adapter_source_forbidden", "--hub-allow"),
        (("rollback", "a/../b"), 1, "is no adapter's name", None),
    ],
)
def test_refusals(shell, words, status, message, hint):
    ended, out, err = shell("adapters", *words)
    assert (ended, out) == (status, "")
    assert message in err
    assert ("  try: " in err) == (hint is not None)
    assert (hint or "") in err


def test_refusals_for_programs(shell):
    status, out, err = shell("adapters", "versions", "nobody", "--json")
    error = json.loads(err)["error"]
    assert (status, out, error["code"]) == (5, "", "adapter_not_found")
    assert error["request_id"]


@pytest.mark.parametrize(
    "words",
    [
        ("load", "x"),
        ("load", "x", "folder", "--server-path", "y"),
        ("load", "x", "--hub", "name-only"),
        ("list", "--url", "localhost:8000"),
        ("rollback", "x", "--to", "one"),
        ("fly",),
    ],
)
def test_wrong_command_lines(shell, words):
    status, out, err = shell("adapters", *words)
    assert (status, out) == (2, "")
    assert "Error" in err


def test_an_existing_name_is_kept_on_request(shell, write_adapter):
    shell("adapters", "load", "kept", "--server-path", write_adapter("kept", "one"))
    words = ("adapters", "load", "kept", "--server-path", write_adapter("kept", "two"))
    status, _, err = shell(*words, "--no-replace")
    assert status == 1
    assert "adapter_exists" in err
    assert shell(*words)[0] == 0
    shell("adapters", "unload", "kept")


def test_keys(shell, command_server, tmp_path, monkeypatch):
    monkeypatch.delenv("SHADOW_SERVER_KEY")
    status, _, err = shell("adapters", "list")
    assert status == 4
    assert "--key-file" in err
    (tmp_path / "key").write_text(command_server[2]["acme"] + "\nsecond line")
    assert shell("adapters", "list", "--key-file", tmp_path / "key")[0] == 0
    assert shell("adapters", "list", "--key", command_server[2]["ops"], "--tenant", "acme")[0] == 0
    assert shell("adapters", "list", "--key-file", tmp_path / "none")[0] == 5
    assert shell("adapters", "list", "--key", "wrong")[0] == 4


def test_a_server_that_is_not_there(capsys):
    assert main(["adapters", "list", "--url", "http://127.0.0.1:1"]) == 3
    err = capsys.readouterr().err
    assert "cannot be reached" in err
    assert "shadowserve doctor" in err


def test_a_busy_server(mock, capsys):
    mock.fail("server_overloaded", num_times=9)
    assert main(["adapters", "list"]) == 7


def test_progress_is_for_terminals(mock, capsys, monkeypatch, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert main(["adapters", "load", "a", str(tmp_path)]) == 0
    assert b'name="stream"\r\n\r\nfalse' in mock.requests[-1].content
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["adapters", "load", "a", str(tmp_path)]) == 0
    assert b'name="stream"\r\n\r\ntrue' in mock.requests[-1].content
    assert main(["adapters", "load", "a", str(tmp_path), "--json"]) == 0
    assert b'name="stream"\r\n\r\nfalse' in mock.requests[-1].content


def test_what_was_unloaded_before_a_refusal_is_said(mock, capsys):
    mock.publish("a")
    assert main(["adapters", "unload", "a", "nobody"]) == 5
    assert capsys.readouterr().err.startswith("'a' is deleted\n")
