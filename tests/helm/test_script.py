"""The scripts that the chart's pods run, against a server over the fake engine."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from chart import CHART
from loopback_server import LoopbackServer
from shadow_server.admin.schema import PublishAdapter
from shadow_server.fake_adapter import ADAPTER_FILE
from shadow_server.fake_engine import BASE_NAME
from shadow_server.tenancy.directory import TenantDirectory
from shadow_server.tenancy.key import mint_key
from shadow_server.tenancy.quota import TenantQuotas

SECONDS = 60


def start(script: str, *words: object, key: str | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, CHART / "files" / script, *map(str, words)],
        env=os.environ | ({} if key is None else {"ADMIN_KEY": key}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, *words: object, key: str | None = None) -> tuple[int, str, str]:
    process = start(script, *words, key=key)
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


class Tenants:
    """The chart's tenants and the Secrets beside them, as files."""

    def __init__(self, folder: Path) -> None:
        self.values, self.keys = folder / "tenants.json", folder / "keys"
        self.output = folder / "run" / "tenants.json"
        self.output.parent.mkdir()
        self.write([])

    def write(self, tenants: list) -> None:
        self.values.write_text(json.dumps(tenants))

    def secret(self, name: str, key: str, text: str | None = None) -> str:
        text = text or mint_key().text
        (self.keys / name).mkdir(parents=True, exist_ok=True)
        # An editor's line end is no part of a key.
        (self.keys / name / key).write_text(f"{text}\n")
        return text

    @property
    def words(self) -> list[str]:
        return [f"--tenants={self.values}", f"--keys={self.keys}", f"--output={self.output}"]

    def compose(self) -> tuple[int, str, str]:
        return run("compose_tenants.py", *self.words, "--once")


@pytest.fixture
def tenants(tmp_path):
    return Tenants(tmp_path)


def write_adapter(folder: Path, content: str) -> None:
    folder.mkdir(parents=True)
    (folder / ADAPTER_FILE).write_text(content)


def reference(secret: str, key: str = "key", **more) -> dict:
    return {"secretName": secret, "secretKey": key, **more}


def test_server_knows_the_keys_of_the_secrets_and_the_values_limits(tenants):
    acme, ops = tenants.secret("acme", "key"), tenants.secret("ops", "key")
    quotas = {"maxStoredBytes": 2e10, "requestsPerMinute": 600, "requestBurst": 20}
    tenants.write(
        [
            {
                "name": "acme",
                "weight": 2,
                "canUseBase": False,
                "quotas": quotas,
                "keys": [reference("acme")],
            },
            {"name": "ops", "keys": [reference("ops", role="admin")]},
        ]
    )

    code, _, err = tenants.compose()

    assert (code, err) == (0, "tenants: the tenants file is new\n")
    directory = TenantDirectory(tenants.output)
    user, admin = directory.authenticate(acme), directory.authenticate(ops)
    assert (user.tenant, user.role, user.weight, user.can_use_base) == ("acme", "user", 2.0, False)
    assert user.quotas == TenantQuotas(
        max_stored_bytes=20_000_000_000, requests_per_minute=600, request_burst=20
    )
    assert (admin.tenant, admin.role) == ("ops", "admin")
    assert directory.authenticate(mint_key().text) is None
    assert acme.rpartition("-")[2] not in tenants.output.read_text()


def test_the_same_values_make_the_same_file(tenants):
    tenants.secret("acme", "key")
    tenants.write([{"name": "acme", "keys": [reference("acme")]}])
    tenants.compose()
    before = tenants.output.read_bytes()

    code, _, err = tenants.compose()

    assert (code, err) == (0, "")
    assert tenants.output.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "the Secret acme has no readable key key"),
        ("sk-wrong-" + "x" * 40, "key of the Secret acme is no key"),
    ],
)
def test_unusable_key_ends_the_start_and_is_not_shown(tenants, text, message):
    if text:
        tenants.secret("acme", "key", text)
    tenants.write([{"name": "acme", "keys": [reference("acme")]}])

    code, out, err = tenants.compose()

    assert code == 1
    assert message in err
    assert "xxxx" not in out + err
    assert not tenants.output.exists()


def wait_for(condition, process: subprocess.Popen) -> None:
    for _ in range(SECONDS * 10):
        if condition():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    raise AssertionError("did not happen")


def test_rotated_key_is_taken_over_and_a_broken_one_changes_nothing(tenants):
    old = tenants.secret("acme", "key")
    tenants.write([{"name": "acme", "keys": [reference("acme")]}])
    process = start("compose_tenants.py", *tenants.words)
    try:
        wait_for(tenants.output.exists, process)
        new = tenants.secret("acme", "key")
        wait_for(lambda: TenantDirectory(tenants.output).authenticate(new) is not None, process)
        assert TenantDirectory(tenants.output).authenticate(old) is None

        tenants.secret("acme", "key", "broken")
        lines = iter(process.stderr.readline, "")
        assert any("stays as it is" in line for line in lines)
        assert TenantDirectory(tenants.output).authenticate(new) is not None
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def server(tmp_path):
    """A server with tenants, one of which is an admin; yields it and the admin's key."""
    tenants = Tenants(tmp_path)
    key = tenants.secret("ops", "key")
    tenants.secret("acme", "key")
    rows = [{"name": "acme", "keys": [reference("acme")]}]
    tenants.write([*rows, {"name": "ops", "keys": [reference("ops", role="admin")]}])
    assert tenants.compose()[0] == 0
    roots = (str(tmp_path / "adapters"),)
    write_adapter(tmp_path / "adapters" / "shout", "shout")
    with LoopbackServer(tmp_path / "state", tenants.output, adapter_roots=roots) as running:
        yield running, key


def declare(tmp_path: Path, *adapters: dict) -> str:
    path = tmp_path / "adapters.json"
    path.write_text(json.dumps(adapters))
    return f"--adapters={path}"


def load(server, key: str, name: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    body = {"name": name, "path": "shout"}
    httpx.post(f"{server.url}/v1/adapters", json=body, headers=headers).raise_for_status()


def test_publisher_pins_and_says_what_was_refused(server, tmp_path):
    running, key = server
    load(running, key, "acme/shout")
    hub = {"repo": "acme/legal", "revision": "0" * 40}
    declared = declare(
        tmp_path,
        {"name": "legal", "tenant": "acme", "hub": hub},
        {"name": "shout", "tenant": "acme", "path": "shout", "pin": True},
        {"name": "plain", "path": "plain"},
    )

    code, out, _ = run(
        "publish_adapters.py", f"--url={running.url}", declared, "--ready-seconds=30", key=key
    )

    refused, pinned = out.splitlines()
    assert code == 1
    assert refused.startswith("acme/legal: 4")
    assert pinned == "acme/shout: pinned"
    cards = httpx.get(
        f"{running.url}/v1/adapters/acme/shout", headers={"authorization": f"Bearer {key}"}
    ).json()
    assert cards["pinned"] is True


def test_publisher_gives_up_on_a_server_that_is_not_there(tmp_path):
    code, out, _ = run(
        "publish_adapters.py", "--url=http://127.0.0.1:9", declare(tmp_path), "--ready-seconds=0"
    )

    assert (code, out) == (1, "the server is not ready after 0 s\n")


def smoke(server, declared: str, *words: object, key: str) -> tuple[int, str]:
    code, out, err = run(
        "smoke_test.py", f"--url={server.url}", f"--model={BASE_NAME}", declared, *words, key=key
    )
    return code, out + err


def test_helm_test_asks_every_declared_adapter(server, tmp_path):
    running, key = server
    load(running, key, "acme/shout")

    code, out = smoke(running, declare(tmp_path, {"name": "shout", "tenant": "acme"}), key=key)

    assert (code, out) == (0, "acme/shout: answers\npassed\n")


def test_helm_test_fails_on_a_missing_adapter_and_a_wrong_key(server, tmp_path):
    running, key = server

    code, out = smoke(running, declare(tmp_path, {"name": "gone"}), key=key)
    assert code == 1
    assert "failed: POST /v1/completions: 404" in out
    code, out = smoke(running, declare(tmp_path), key=mint_key().text)
    assert code == 1
    assert "401" in out


def test_helm_test_deletes_what_it_loaded_and_fails_on_another_answer(server, tmp_path):
    running, key = server
    demo = tmp_path / "demo"
    write_adapter(demo / "adapters" / "french", "french")
    prompts = [{"prompt": "the fox", "expected": {"french": "le renard"}}]
    (demo / "prompts.json").write_text(json.dumps(prompts))

    code, out = smoke(running, declare(tmp_path), f"--demo={demo}", key=key)

    assert code == 1
    assert "failed: french answers '[ops/helm-test-" in out
    assert "not 'le renard'" in out
    left = httpx.get(f"{running.url}/v1/adapters", headers={"authorization": f"Bearer {key}"})
    assert left.json()["data"] == []


def test_publisher_asks_for_the_pinned_revision_and_then_the_pin():
    # The fake engine takes files of its own names only, which no hub has: what is sent is looked at instead.
    spec = importlib.util.spec_from_file_location("publish", CHART / "files/publish_adapters.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.content))
        return httpx.Response(201, json={"version": 1, "digest": "sha256:ab"})

    hub = {"repo": "acme/legal", "revision": "0" * 40}
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://s") as client:
        line = script.publish(client, {"name": "legal", "tenant": "acme", "hub": hub, "pin": False})

    assert line == "acme/legal: version 1, sha256:ab, unpinned"
    (path, body), unpin = asked
    assert path == "/v1/adapters"
    assert PublishAdapter.model_validate_json(body).hub.revision == "0" * 40
    assert unpin == ("/v1/adapters/acme/legal/unpin", b"")
