"""Every hostile checkpoint is refused over HTTP with its documented code; nothing is left behind, nobody notices."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from canary_server import CanaryServer, canary_server
from engine_cast import write_tokenizer
from malicious_adapter import CORPUS, KINDS, build_originals

pytestmark = [pytest.mark.engine]

ROOT = Path(__file__).resolve().parents[2]
MAX_GROWTH_BYTES = 16 << 20
"""By which no process of the server may have grown over the whole corpus; keeping its files would take more."""

NUM_WARM_UP = 20
ASK = {"prompt": [5, 6, 7, 8], "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    build_originals(folder)
    write_tokenizer(folder / "base")
    return folder


@pytest.fixture(scope="module")
def server(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CanaryServer]:
    named = [word for kind in KINDS for word in ("--adapter", f"{kind}={originals / kind}")]
    folder = tmp_path_factory.mktemp("malicious")
    base = originals / "base"
    with canary_server(folder, *named, "--max-model-len", "256", formats=(), base=base) as running:
        yield running


@pytest.fixture
def client(server: CanaryServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@dataclass(frozen=True)
class Footprint:
    """What the server takes: bytes and file descriptors by process, files in the store."""

    memory: dict[str, int]
    descriptors: dict[str, int]
    stored: tuple[str, ...]

    @classmethod
    def of(cls, server: CanaryServer) -> Footprint:
        pids = server.pids()
        store = server.state / "store"
        return cls(
            {role: _rss(pid) for role, pid in pids.items()},
            {role: len(list(Path(f"/proc/{pid}/fd").iterdir())) for role, pid in pids.items()},
            tuple(sorted(str(p.relative_to(store)) for p in store.rglob("*") if p.is_file())),
        )


def _rss(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 1024 * int(found[1])


def documented() -> dict[str, int]:
    """Return the status of each error code in docs/errors.md."""
    rows = re.findall(r"^\| (\d+) \| `(\w+)` ", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    return {code: int(status) for status, code in rows}


def answers(client: httpx.Client) -> dict[str, str]:
    """Return what each sound adapter says."""
    texts = {}
    for kind in KINDS:
        answer = client.post("/v1/completions", json={**ASK, "adapter": kind})
        assert answer.status_code == 200, answer.text
        texts[kind] = answer.json()["choices"][0]["text"]
    return texts


def leads_out(path: Path, root: Path) -> bool:
    """Return whether a file of the checkpoint is a link to somewhere outside of the root."""
    links = (file for file in path.iterdir() if file.is_symlink())
    return any(not Path(os.path.realpath(link)).is_relative_to(root) for link in links)


def refuse(client: httpx.Client, originals: Path, root: Path, index: int) -> dict[str, Any] | None:
    """Publish and validate hostile checkpoint `index`; return what is wrong with the answers, None when all is well."""
    name, case = list(CORPUS.items())[index]
    path = case.build(originals, root / f"hostile-{index}")
    code, message = case.error.code, case.message
    if leads_out(path, root):
        code, message = "adapter_path_forbidden", "link out"
    published = client.post("/v1/adapters", json={"name": f"bad-{index}", "path": str(path)})
    checked = client.post("/v1/adapters/validate", json={"path": str(path)})
    error, report = published.json()["error"], checked.json()["error"]
    found = (
        published.status_code,
        error["code"],
        report["code"],
        checked.status_code in (200, 403),
    )
    expected = (documented()[code], code, code, True)
    if found == expected and re.search(message, error["message"]):
        return None
    return {"case": name, "expected": expected, "found": found, "error": error, "report": report}


def test_every_hostile_checkpoint_is_refused_and_leaves_nothing(
    server: CanaryServer, client: httpx.Client, originals: Path
) -> None:
    before = answers(client)
    (server.root / "warm-up").mkdir()
    for index in range(NUM_WARM_UP):
        refuse(client, originals, server.root / "warm-up", index)
    start = Footprint.of(server)
    wrong = [refuse(client, originals, server.root, index) for index in range(len(CORPUS))]
    end = Footprint.of(server)
    assert len(CORPUS) >= 40
    assert [problem for problem in wrong if problem] == []
    growth = {role: end.memory[role] - start.memory[role] for role in start.memory}
    assert max(growth.values()) <= MAX_GROWTH_BYTES, growth
    assert end.descriptors == start.descriptors
    assert end.stored == start.stored
    assert answers(client) == before
    names = {card["name"] for card in client.get("/v1/adapters").json()["data"]}
    assert names == set(KINDS)
    assert client.get("/health/ready").status_code == 200


def test_the_growth_bound_is_under_what_the_corpus_takes(originals: Path) -> None:
    sizes = [sum(f.stat().st_size for f in (originals / kind).iterdir()) for kind in KINDS]
    assert len(CORPUS) * min(sizes) > MAX_GROWTH_BYTES
