"""Tenants on a real engine: keys, quotas, whose adapters and whose prefix blocks, and a full queue."""

import asyncio
import contextlib
import io
import json
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest

from fake_server import error_of
from running_server import BASE, GREEDY, PROMPTS, START_SECONDS, text_of
from shadow_server.cli import main
from shadow_server.server_process import ServerProcess

pytestmark = pytest.mark.engine

PAGE = {"/console": 200, "/console/x": 404}
"""What the console's own files answer without a key: they hold no data."""

PROBES = {"/health/live", "/health/ready"}
OPERATORS = {"/load", "/metrics", "/metrics/"}
TOKENS_PER_MINUTE = 600
TAKEN_OVER_SECONDS = 3.0
MAX_RUNNING = MAX_QUEUED = 4
BLOCK_SIZE = 128
PROMPT = PROMPTS[0]
TENANTS = {
    "acme": [],
    "zeta": [],
    "ops": ["--role", "admin"],
    "plain": ["--no-base"],
    "slow": ["--requests-per-minute", "2"],
    "metered": ["--tokens-per-minute", str(TOKENS_PER_MINUTE)],
    "leaver": [],
    "turner": [],
}


@dataclass
class TenantsServer:
    """A started server; `acme` has the adapter `shout`, `zeta` the same bytes as `mine`."""

    process: ServerProcess
    path: str
    keys: dict[str, str] = field(default_factory=dict)

    def tenants(self, *words: str) -> list[str]:
        """Run `shadowserve tenants` on the server's file and return the keys that it shows."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(["tenants", *words, "--tenants-file", self.path]) == 0
        return out.getvalue().split()

    def headers(self, tenant: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[tenant]}"}

    def request(self, tenant: str, method: str, path: str, **fields) -> httpx.Response:
        url = f"{self.process.url}{path}"
        return httpx.request(method, url, headers=self.headers(tenant), timeout=60, **fields)

    def complete(self, tenant: str, **fields) -> httpx.Response:
        body = {"prompt": PROMPT.prompt, **GREEDY, **fields}
        return self.request(tenant, "POST", "/v1/completions", json=body)

    def is_known(self, key: str) -> bool:
        headers = {"authorization": f"Bearer {key}"}
        status = httpx.get(f"{self.process.url}/v1/models", headers=headers).status_code
        assert status in (200, 401)
        return status == 200


@pytest.fixture(scope="module")
def tenants(start_server, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tenants") / "tenants.json")
    options = ["--tenants-file", path, "--enable-prompt-tokens-details"]
    options += ["--max-num-seqs", f"{MAX_RUNNING}", "--max-queued-requests", f"{MAX_QUEUED}"]
    process, _ = start_server(*options)
    server = TenantsServer(process, path)
    for name, words in TENANTS.items():
        (server.keys[name],) = server.tenants("create", name, *words)
    with process:
        process.wait_until_ready(START_SECONDS)
        for name in ("acme/shout", "zeta/mine"):
            body = {"name": name, "path": "shout"}
            assert server.request("ops", "POST", "/v1/adapters", json=body).status_code == 201
        yield server


def until(is_true, within_seconds):
    """Return the seconds until `is_true()`; fails when they are over."""
    started = time.monotonic()
    while not is_true():
        assert time.monotonic() - started < within_seconds
        time.sleep(0.05)
    return time.monotonic() - started


def routes_of(server):
    """Return (method, path) of every route: those that the engine's launcher lists, and the API documents."""
    log = server.process.log_path.read_text()
    found = {
        (method.strip(), path)
        for path, methods in re.findall(r"Route: (\S+), Methods: ([A-Z, ]+)", log)
        for method in methods.split(",")
    }
    assert len(found) >= 20
    paths = server.request("acme", "GET", "/openapi.json").json()["paths"]
    assert len(paths) >= 15
    found |= {(method.upper(), path) for path, methods in paths.items() for method in methods}
    found |= {("GET", path) for path in OPERATORS}
    return sorted({(method, re.sub(r"{\w+(:\w+)?}", "x", path)) for method, path in found})


def test_every_route_but_probes_and_the_console_s_files_needs_a_key(tenants):
    routes = routes_of(tenants)
    assert {path for _, path in routes} >= PROBES | OPERATORS | {"/v1/completions"}
    for method, path in routes:
        answer = httpx.request(method, f"{tenants.process.url}{path}")
        if path in PROBES | PAGE.keys():
            assert answer.status_code == PAGE.get(path, 200), (method, path)
        else:
            assert answer.status_code == 401, (method, path)
            if method != "HEAD":
                assert error_of(answer)["code"] == "invalid_api_key"


def test_a_user_reaches_all_but_the_operator_s_routes(tenants):
    for method, path in routes_of(tenants):
        status = tenants.request("acme", method, path).status_code
        if path in OPERATORS:
            assert status == 403, (method, path)
        else:
            assert status not in (401, 403), (method, path)
            assert status < 500, (method, path)
    for path in OPERATORS:
        assert tenants.request("ops", "GET", path).status_code == 200
    assert "shadow_" in tenants.request("ops", "GET", "/metrics").text


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/completions", {"prompt": "x", "adapter": "{}"}),
        ("POST", "/v1/completions", {"prompt": "x", "model": "{}@1"}),
        ("POST", "/v1/completions", {"prompt": "x", "model": f"{BASE}:{{}}"}),
        ("POST", "/v1/chat/completions", {"messages": [{"role": "user"}], "adapter": "{}"}),
        ("POST", "/tokenize", {"prompt": "x", "adapter": "{}"}),
        ("GET", "/v1/models/{}", None),
        ("GET", "/v1/adapters/{}", None),
        ("GET", "/v1/adapters/{}@1", None),
        ("GET", "/v1/adapters/{}/versions", None),
        ("POST", "/v1/adapters/{}/rollback", None),
        ("POST", "/v1/adapters/{}/pin", None),
        ("POST", "/v1/adapters/{}/unpin", None),
        ("POST", "/v1/unload_lora_adapter", {"lora_name": "{}"}),
        ("DELETE", "/v1/adapters/{}", None),
    ],
)
def test_another_tenant_s_adapter_is_one_that_does_not_exist(tenants, method, path, body):
    told = []
    for name in ("acme/shout", "acme/nobody"):
        text = json.dumps(body).replace("{}", name)
        fields = {} if body is None else {"json": json.loads(text)}
        answer = tenants.request("zeta", method, path.replace("{}", name), **fields)
        headers = answer.headers.keys() - {"content-length"}
        told.append((answer.status_code, answer.text.replace(name, "NAME"), headers))
    assert told[0] == told[1]
    assert told[0][0] == 404
    assert tenants.request("acme", "GET", "/v1/adapters/shout").status_code == 200


def test_a_tenant_sees_its_own_adapters_only(tenants):
    listed = {
        name: {e["name"] for e in tenants.request(name, "GET", "/v1/adapters").json()["data"]}
        for name in ("acme", "zeta", "ops")
    }
    assert (listed["acme"], listed["zeta"]) == ({"shout"}, {"mine"})
    assert {"acme/shout", "zeta/mine", "default/shout"} <= listed["ops"]
    answer = tenants.complete("zeta", adapter="mine")
    assert text_of(answer) == PROMPT.expected["shout"]
    assert answer.headers["x-shadow-adapter"] == "zeta/mine"
    assert {m["id"] for m in tenants.request("zeta", "GET", "/v1/models").json()["data"]} == {
        BASE,
        "mine",
    }


def test_the_base_can_be_refused(tenants):
    answer = tenants.complete("plain")
    assert answer.status_code == 403
    assert error_of(answer)["code"] == "base_model_forbidden"
    text_of(tenants.complete("acme"))


def test_requests_a_minute_as_the_official_client_sees_them(tenants):
    client = openai.OpenAI(
        base_url=f"{tenants.process.url}/v1", api_key=tenants.keys["slow"], max_retries=0
    )
    with client:
        asked = {"model": BASE, "prompt": "x", "max_tokens": 1}
        for left in ("1", "0"):
            raw = client.completions.with_raw_response.create(**asked)
            assert raw.headers["x-ratelimit-remaining-requests"] == left
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**asked)
    headers = caught.value.response.headers
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(headers["retry-after"]) <= 30
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_tokens_a_minute_are_what_the_engine_used(tenants, is_streamed):
    short = {"prompt": [20, 21, 22], "max_tokens": 1}
    before, started = _remaining(tenants.complete("metered", **short)), time.monotonic()
    options = {"stream": True, "stream_options": {"include_usage": True}} if is_streamed else {}
    answer = tenants.complete("metered", max_tokens=200, ignore_eos=False, **options)
    assert _remaining(answer) <= before - 200 + 2 + 10 * (time.monotonic() - started)
    used = _usage(answer, is_streamed)["total_tokens"]
    assert 10 < used < 100
    after = _remaining(tenants.complete("metered", **short))
    # Each header was told while its own four tokens were reserved, which are what the short one takes.
    refilled = TOKENS_PER_MINUTE / 60 * (time.monotonic() - started)
    assert before - 4 - used - 1 <= after <= before - 4 - used + refilled + 1


def _remaining(answer):
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ratelimit-limit-tokens"] == str(TOKENS_PER_MINUTE)
    return int(answer.headers["x-ratelimit-remaining-tokens"])


def _usage(answer, is_streamed):
    if not is_streamed:
        return answer.json()["usage"]
    *_, last, done = answer.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    return json.loads(last.removeprefix("data: "))["usage"]


@pytest.mark.parametrize(
    ("mine", "other", "theirs"),
    [
        pytest.param(None, "zeta", None, id="base"),
        # One name and digest, asked for by two tenants' keys: only the salt tells them apart.
        pytest.param("shout", "ops", "acme/shout", id="adapter"),
        pytest.param("shout", "zeta", "mine", id="same bytes"),
    ],
)
def test_prefix_blocks_belong_to_a_tenant(tenants, mine, other, theirs):
    prompt = random.Random(f"{other} {theirs}").choices(range(20, 200), k=300)

    def num_cached(tenant):
        adapter = mine if tenant == "acme" else theirs
        answer = tenants.complete(tenant, prompt=prompt, adapter=adapter, max_tokens=1)
        assert answer.status_code == 200, answer.text
        return (answer.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0)

    found = [num_cached(name) for name in ("acme", "acme", other, other, "acme")]
    hit = len(prompt) // BLOCK_SIZE * BLOCK_SIZE
    assert found == [0, hit, 0, hit, hit]


def test_a_revoked_key_stops_working(tenants):
    key = tenants.keys["leaver"]
    assert tenants.is_known(key)
    words = [sys.executable, "-m", "shadow_server", "tenants", "revoke", "leaver"]
    words += ["--tenants-file", tenants.path]
    assert subprocess.run(words, capture_output=True, check=True).stdout == b""
    until(lambda: not tenants.is_known(key), TAKEN_OVER_SECONDS)
    assert tenants.is_known(tenants.keys["acme"])


def test_a_rotated_key_lives_on_for_its_grace(tenants):
    old, grace = tenants.keys["turner"], 4
    (new,) = tenants.tenants("rotate", "turner", "--grace", str(grace))
    tenants.keys["turner"] = new
    rotated = time.monotonic()
    until(lambda: tenants.is_known(new), TAKEN_OVER_SECONDS)
    is_known = tenants.is_known(old)
    assert is_known or time.monotonic() - rotated > grace - 1
    until(lambda: not tenants.is_known(old), grace + TAKEN_OVER_SECONDS)
    assert time.monotonic() - rotated > grace - 1
    assert tenants.is_known(new)


@dataclass
class Streamed:
    """One answer, timed from the request's last byte on."""

    head_seconds: float
    head: str
    body: str

    @property
    def status(self) -> int:
        return int(self.head.split(" ")[1])

    @property
    def text(self) -> str:
        """Return the streamed text; the stream must have ended in order."""
        assert "data: [DONE]" in self.body
        events = re.findall(r'"text":("(?:[^"\\]|\\.)*")', self.body)
        return "".join(json.loads(event) for event in events)


class Burst:
    """Connections that are open before anything is asked, so that only the answers are timed."""

    def __init__(self, server: TenantsServer) -> None:
        self._server = server
        self._port = int(server.process.url.rsplit(":", 1)[1])
        self.begun = asyncio.Semaphore(0)

    async def ask(self, tenant: str, number: int, **fields) -> list[Streamed]:
        """Ask the same `number` times at once."""
        connections = [
            await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
            for _ in range(number)
        ]
        data = json.dumps({"prompt": PROMPT.prompt, "stream": True, **GREEDY, **fields})
        lines = ["POST /v1/completions HTTP/1.1", "host: x", "connection: close"]
        lines += [f"authorization: {self._server.headers(tenant)['authorization']}"]
        lines += ["content-type: application/json", f"content-length: {len(data)}", "", data]
        request = "\r\n".join(lines).encode()
        return await asyncio.gather(*(self._exchange(*pair, request) for pair in connections))

    async def _exchange(self, reader, writer, request):
        writer.write(request)
        started = time.perf_counter()
        head = await reader.readuntil(b"\r\n\r\n")
        seconds = time.perf_counter() - started
        self.begun.release()
        body = await reader.read(-1)
        writer.close()
        return Streamed(seconds, head.decode().lower(), body.decode())


def check_refusals(answers):
    """Fail unless all are refused as the API says; returns p50 and p99 of their seconds."""
    for answer in answers:
        assert answer.status == 503
        assert int(re.search(r"\r\nretry-after: (\d+)\r\n", answer.head)[1]) >= 1
        assert json.loads(answer.body)["error"]["code"] == "server_overloaded"
    seconds = sorted(answer.head_seconds for answer in answers)
    return seconds[len(seconds) // 2], seconds[int(0.99 * len(seconds))]


async def test_what_finds_no_room_is_refused_and_what_does_is_answered(tenants):
    answers = await Burst(tenants).ask("acme", 80, adapter="shout")
    accepted = [answer for answer in answers if answer.status == 200]
    assert len(accepted) >= MAX_RUNNING
    assert {answer.text for answer in accepted} == {PROMPT.expected["shout"]}
    check_refusals([answer for answer in answers if answer.status != 200])


@pytest.mark.timing
async def test_a_refusal_does_not_wait_for_the_engine(tenants, capsys):
    burst = Burst(tenants)
    answers = await burst.ask("acme", 80)
    at_once = check_refusals([answer for answer in answers if answer.status != 200])
    # One after another, while others keep every place: what a refusal takes by itself.
    burst.begun = asyncio.Semaphore(0)
    long = burst.ask("acme", MAX_RUNNING, max_tokens=1000, ignore_eos=True)
    running = asyncio.create_task(long)
    for _ in range(MAX_RUNNING):
        await burst.begun.acquire()
    refused = []
    while len(refused) < 100:
        (answer,) = await burst.ask("acme", 1)
        if running.done():
            break  # there may have been room for this one
        refused.append(answer)
    assert len(refused) >= 10
    alone = check_refusals(refused)
    assert {answer.status for answer in await running} == {200}
    with capsys.disabled():
        figures = [f"{1000 * p50:.1f}/{1000 * p99:.1f}" for p50, p99 in (at_once, alone)]
        sys.stdout.write(f"\nrefusals, p50/p99 ms: 80 at once {figures[0]}, alone {figures[1]}\n")
    assert alone[0] < 0.1
    assert at_once[1] < 1.0


def test_no_key_is_in_the_log(tenants):
    (another,) = tenants.tenants("add-key", "acme")
    assert tenants.complete("acme", adapter="shout").status_code == 200
    log = tenants.process.log_path.read_text()
    assert "Route: " in log
    assert "/v1/completions" in log
    for key in (another, *tenants.keys.values()):
        assert key.split("-", 3)[3] not in log
    hashes = re.findall(r'"hash": ?"(\w+)"', Path(tenants.path).read_text())
    assert len(hashes) > len(TENANTS)
    assert not any(each in log for each in hashes)
