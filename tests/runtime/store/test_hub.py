"""Adapters from a hub: allowed repositories at a commit, bounded, and nowhere else than the operator said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_hub import COMMIT, FakeHub, running_hub
from shadow_runtime.errors import (
    AdapterFileError,
    AdapterLimitError,
    AdapterNotFoundError,
    ShadowError,
    SourceForbiddenError,
    SourceUnavailableError,
)
from shadow_runtime.store import ArtifactStore, HubSource

CONFIG, TENSORS = "shadow_config.json", "shadow_adapter.safetensors"
REPOSITORY = "acme/support-1.0"
FILES = {CONFIG: b"{}", TENSORS: bytes(range(256)) * 1000, "README.md": b"x", "adapter.pt": b"x"}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """Return a running hub with one repository."""
    with running_hub({REPOSITORY: dict(FILES)}) as hub:
        yield hub


def source(hub: FakeHub, **options: Any) -> HubSource:
    return HubSource(**({"allow": ["acme/*"], "endpoint": hub.url} | options))


def refuse(
    store: ArtifactStore,
    hub: FakeHub,
    error: type[ShadowError],
    message: str,
    repository: str = REPOSITORY,
    revision: str = COMMIT,
    **options: Any,
) -> None:
    with pytest.raises(error, match=message) as caught:
        source(hub, **options).stage(store, repository, revision)
    assert type(caught.value) is error
    assert str(caught.value).isascii()
    assert list((store.root / "staging").iterdir()) == []


def test_the_files_of_an_adapter_are_staged(store: ArtifactStore, hub: FakeHub) -> None:
    events: list[tuple[str, Any]] = []
    staged = source(hub).stage(
        store, REPOSITORY, COMMIT, progress=lambda *event: events.append(event)
    )
    staged_files = {path.name: path.read_bytes() for path in staged.path.iterdir()}
    assert staged_files == {name: FILES[name] for name in (CONFIG, TENSORS)}
    assert staged.source == f"hub {REPOSITORY}@{COMMIT}"
    assert staged.num_bytes == 256_002
    assert events[-1] == ("reading", {"num_bytes": 256_002, "total_bytes": 256_002})


def test_nothing_but_known_names_is_asked_for(store: ArtifactStore, hub: FakeHub) -> None:
    source(hub).stage(store, REPOSITORY, COMMIT)
    downloaded = {path.rsplit("/", 1)[1] for method, path, _ in hub.requests if method == "GET"}
    assert downloaded == {CONFIG, TENSORS}
    assert all(path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/") for _, path, _ in hub.requests)


def test_off_by_default(store: ArtifactStore, hub: FakeHub) -> None:
    refuse(store, hub, SourceForbiddenError, "switched off", allow=())
    assert hub.requests == []


@pytest.mark.parametrize(
    "repository",
    [
        "other/support",
        "acmes/x",
        "acme",
        "acme/",
        "/x",
        "acme/x/y",
        "acme/../x",
        "acme/..",
        "../acme/x",
        "acme/x\x00",
        "acme/x?y",
        "acme/x#y",
        "acme/" + "x" * 300,
        "\u0430cme/x",
        "acme/x--y",
        "acme/x%2Fy",
        "acme@evil.example/x",
        "http://evil.example/x",
        "acme/x\n",
    ],
)
def test_repositories_that_are_not_allowed(
    store: ArtifactStore, hub: FakeHub, repository: str
) -> None:
    refuse(store, hub, SourceForbiddenError, "may not|not a repository", repository=repository)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("pattern", "is_allowed"),
    [
        ("acme/support-1.0", True),
        ("acme/support-*", True),
        ("*/*", True),
        ("*", False),
        ("acme", False),
        ("ACME/*", False),
        ("acme/support", False),
    ],
)
def test_patterns(store: ArtifactStore, hub: FakeHub, pattern: str, is_allowed: bool) -> None:
    if is_allowed:
        source(hub, allow=["x/y", pattern]).stage(store, REPOSITORY, COMMIT).discard()
    else:
        refuse(store, hub, SourceForbiddenError, "may not", allow=[pattern])


@pytest.mark.parametrize("revision", ["main", "", COMMIT[:39], COMMIT.upper(), "v1", COMMIT + "\n"])
def test_a_revision_that_could_move(store: ArtifactStore, hub: FakeHub, revision: str) -> None:
    refuse(store, hub, SourceForbiddenError, "not a commit", revision=revision)
    assert hub.requests == []


def test_a_repository_that_is_not_there(store: ArtifactStore, hub: FakeHub) -> None:
    refuse(store, hub, AdapterNotFoundError, "no repository", repository="acme/other")


def test_a_commit_that_is_not_there(store: ArtifactStore, hub: FakeHub) -> None:
    refuse(store, hub, AdapterNotFoundError, "no repository", revision="f" * 40)


def test_a_repository_without_an_adapter(store: ArtifactStore, hub: FakeHub) -> None:
    hub.files[REPOSITORY] = {"README.md": b"x"}
    refuse(store, hub, AdapterFileError, "no file")


def test_too_large_by_what_the_hub_says(store: ArtifactStore, hub: FakeHub) -> None:
    hub.stated_sizes[TENSORS] = 1 << 40
    refuse(store, hub, AdapterFileError, "over the limit")
    assert all(method == "HEAD" for method, _, _ in hub.requests)


@pytest.mark.parametrize("stated", [10, 255_999, 256_001])
def test_another_size_than_the_hub_says(store: ArtifactStore, hub: FakeHub, stated: int) -> None:
    hub.stated_sizes[TENSORS] = stated
    refuse(store, hub, AdapterFileError, "another size")


def test_a_hub_that_does_not_tell_sizes(
    store: ArtifactStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.stated_sizes[TENSORS] = -1
    refuse(store, hub, SourceUnavailableError, "how large")


@pytest.mark.parametrize(
    "target",
    [
        "http://localhost:1/x",
        "https://evil.example/x",
        "file:///etc/passwd",
        "//evil.example/x",
        "http://169.254.169.254/latest/meta-data",
        "/other/repository/resolve/main/x",
    ],
)
def test_redirects_to_elsewhere(store: ArtifactStore, hub: FakeHub, target: str) -> None:
    hub.redirects[TENSORS] = target
    refuse(store, hub, SourceForbiddenError, "redirects to", token="hf_secret")


def test_redirect_to_a_download_host_needs_https(store: ArtifactStore, hub: FakeHub) -> None:
    hub.redirects[TENSORS] = "http://cdn.example/x"
    refuse(store, hub, SourceForbiddenError, "redirects to", download_hosts=["cdn.example"])


def test_redirects_inside_the_repository_are_followed(store: ArtifactStore, hub: FakeHub) -> None:
    target = f"/api/resolve-cache/models/{REPOSITORY}/{COMMIT}/{TENSORS}"
    hub.redirects[TENSORS] = target
    staged = source(hub).stage(store, REPOSITORY, COMMIT)
    assert (staged.path / TENSORS).read_bytes() == FILES[TENSORS]


def test_redirects_without_end(store: ArtifactStore, hub: FakeHub) -> None:
    hub.redirects[TENSORS] = "{path}"
    refuse(store, hub, SourceUnavailableError, "without end")


def test_large_files_come_from_the_download_host_without_the_token(
    store: ArtifactStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Loopback has no certificates: both hosts are plain here, and which is which is told by the name.
    with running_hub({REPOSITORY: dict(FILES)}) as cdn:
        hub.redirects[TENSORS] = cdn.url.replace("127.0.0.1", "localhost") + "{path}"
        hub.stated_sizes[TENSORS] = len(FILES[TENSORS])
        monkeypatch.setattr("shadow_runtime.store.hub._DOWNLOAD_SCHEME", "http")
        staged = source(hub, token="hf_secret", download_hosts=["localh*"]).stage(
            store, REPOSITORY, COMMIT
        )
    assert (staged.path / TENSORS).read_bytes() == FILES[TENSORS]
    assert [method for method, _, _ in cdn.requests] == ["GET"]
    assert "authorization" not in cdn.requests[0][2]
    assert {headers["authorization"] for _, _, headers in hub.requests} == {"Bearer hf_secret"}


def test_a_token_that_lies_around_is_not_sent(
    store: ArtifactStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    source(hub).stage(store, REPOSITORY, COMMIT)
    assert not any("authorization" in headers for _, _, headers in hub.requests)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, AdapterNotFoundError),
        (403, AdapterNotFoundError),
        (429, SourceUnavailableError),
        (500, SourceUnavailableError),
        (206, SourceUnavailableError),
    ],
)
def test_other_answers(
    store: ArtifactStore, hub: FakeHub, status: int, error: type[ShadowError]
) -> None:
    hub.statuses[TENSORS] = status
    refuse(store, hub, error, "hub")


def test_another_commit_than_asked_for(store: ArtifactStore, hub: FakeHub) -> None:
    hub.commit = "f" * 40
    refuse(store, hub, SourceUnavailableError, "another commit")


def test_a_hub_that_trickles(store: ArtifactStore, hub: FakeHub) -> None:
    hub.byte_seconds = 0.02
    started = time.monotonic()
    refuse(store, hub, AdapterLimitError, "more than the 0.5 s", max_seconds=0.5)
    assert time.monotonic() - started < 5


def test_a_hub_that_is_not_there(store: ArtifactStore, hub: FakeHub, tmp_path: Path) -> None:
    options = {"endpoint": "http://127.0.0.1:9"}
    refuse(store, hub, SourceUnavailableError, "cannot be reached", **options)
