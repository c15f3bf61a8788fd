"""Adapters from a Hugging Face hub, at a pinned commit, from repositories that the operator has allowed.

Runs in: API process. Imports neither torch nor vllm.

`huggingface_hub` makes the addresses and headers and knows the protocol's names. Its own download functions are not
used: they follow redirects with one client for the whole process, write without a cap, end at no deadline and keep a
cache of their own. Here the files go straight into the store's staging, and every request is made by a client that
follows a redirect only where this module says so.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from shadow_runtime import __version__
from shadow_runtime.errors import (
    AdapterFileError,
    AdapterLimitError,
    AdapterNotFoundError,
    SourceForbiddenError,
    SourceUnavailableError,
)
from shadow_runtime.quote import quote
from shadow_runtime.store.budget import ADAPTER_FILES, needed_files
from shadow_runtime.store.staging import CopyProgress, StagedArtifact
from shadow_runtime.store.store import ArtifactStore

if TYPE_CHECKING:
    import httpx

PUBLIC_ENDPOINT = "https://huggingface.co"
PUBLIC_DOWNLOAD_HOSTS = ("*.hf.co", "*.huggingface.co")
"""Where the public hub sends clients for large files."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_DOWNLOAD_SCHEME = "https"
_MAX_REDIRECTS = 4
_CONNECT_SECONDS = 10.0
_READ_SECONDS = 30.0
_MISSING_ENTRY = "EntryNotFound"


class HubSource:
    """Stages adapters from one hub. Thread-safe; without patterns it refuses everything.

    Args:
        allow: patterns of repositories, `org/name` with `*` and `?` inside either part.
        endpoint: address of the hub.
        token: sent to the endpoint only, for private repositories.
        download_hosts: patterns of other hosts that the endpoint may send us to for large files; by default those of
            the public hub for the public endpoint, and none for any other.
        max_seconds: for all files of one adapter together.
    """

    def __init__(
        self,
        allow: Sequence[str] = (),
        *,
        endpoint: str = PUBLIC_ENDPOINT,
        token: str | None = None,
        download_hosts: Collection[str] | None = None,
        max_seconds: float = 600.0,
    ) -> None:
        self._allow = tuple(allow)
        self._endpoint = endpoint.rstrip("/")
        self._token = token
        is_public = self._endpoint == PUBLIC_ENDPOINT
        default_hosts = PUBLIC_DOWNLOAD_HOSTS if is_public else ()
        self._download_hosts = tuple(default_hosts if download_hosts is None else download_hosts)
        self._max_seconds = max_seconds

    def stage(
        self,
        store: ArtifactStore,
        repository: str,
        revision: str,
        *,
        progress: CopyProgress | None = None,
    ) -> StagedArtifact:
        """Download an adapter's files into the store's staging.

        Args:
            store: takes the files.
            repository: `org/name`.
            revision: 40 hexadecimal digits; branches and tags move, so they are refused.
            progress: told how far it is.

        Raises:
            SourceForbiddenError: the repository is not allowed, or the hub sends us elsewhere.
            AdapterNotFoundError: no such repository or commit.
            AdapterFileError, AdapterLimitError: a file is too large, all of them are, or they take too long.
            SourceUnavailableError: the hub cannot be reached or fails.
            StorageError: the store cannot be written.
        """
        self._check_allowed(repository, revision)
        with _network_errors():
            download = _Download(
                repository, revision, self._endpoint, self._download_hosts, self._max_seconds
            )
            with _client() as client:
                return download.run(client, self._headers(), store, progress)

    def _check_allowed(self, repository: str, revision: str) -> None:
        if not self._allow:
            raise SourceForbiddenError("loading from a hub is switched off on this server")
        if not _is_repository(repository):
            raise SourceForbiddenError(f"{quote(repository)} is not a repository's org/name")
        if not any(_matches(repository, pattern) for pattern in self._allow):
            raise SourceForbiddenError(f"this server may not load from {quote(repository)}")
        if not _COMMIT.fullmatch(revision):
            raise SourceForbiddenError(
                f"revision {quote(revision)} is not a commit of 40 hexadecimal digits, which alone cannot move"
            )

    def _headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers

        # False: never a token that lies around in the environment or home directory.
        headers: dict[str, str] = build_hf_headers(
            token=self._token or False, library_name="shadowserve", library_version=__version__
        )
        return headers


class _Download:
    """One repository's files on their way into a store."""

    def __init__(
        self,
        repository: str,
        revision: str,
        endpoint: str,
        download_hosts: Sequence[str],
        max_seconds: float,
    ) -> None:
        self._repository = repository
        self._revision = revision
        self._endpoint = endpoint
        self._download_hosts = download_hosts
        self._max_seconds = max_seconds
        self._deadline = time.monotonic() + max_seconds

    def run(
        self,
        client: httpx.Client,
        headers: Mapping[str, str],
        store: ArtifactStore,
        progress: CopyProgress | None,
    ) -> StagedArtifact:
        found = {name: self._find_size(client, headers, name) for name in ADAPTER_FILES}
        present = {name: size for name, size in found.items() if size is not None}
        sizes = {name: present[name] for name in needed_files(present)}
        store.check_sizes(sizes)
        session, done = store.begin_upload(), 0
        try:
            for name, size in sizes.items():
                with session.open(name) as writer:
                    for data in self._read(client, headers, name, size):
                        writer.write(data)
                        done += len(data)
                        if progress is not None:
                            details = {"num_bytes": done, "total_bytes": sum(sizes.values())}
                            progress("reading", details)
            return session.finish(f"hub {self._repository}@{self._revision}")
        except BaseException:
            session.discard()
            raise

    def _find_size(self, client: httpx.Client, headers: Mapping[str, str], name: str) -> int | None:
        """Return a file's size before any of it is read; None where the repository has no such file."""
        from huggingface_hub import constants

        with self._open(client, "HEAD", headers, name) as response:
            if response is None:
                return None
            size = response.headers.get(
                constants.HUGGINGFACE_HEADER_X_LINKED_SIZE, response.headers.get("content-length")
            )
        if size is None or not re.fullmatch(r"[0-9]{1,18}", size):
            raise SourceUnavailableError(f"the hub does not say how large {quote(name)} is")
        return int(size)

    def _read(
        self, client: httpx.Client, headers: Mapping[str, str], name: str, num_bytes: int
    ) -> Iterator[bytes]:
        """Give a file's bytes; at most as many as the hub has stated, and exactly so many in the end."""
        left = num_bytes
        with self._open(client, "GET", headers, name) as response:
            if response is None:
                raise SourceUnavailableError(f"the hub no longer has {quote(name)}")
            # As the bytes come: collecting them into pieces would let a slow hub outlast the deadline.
            for data in response.iter_raw():
                self._check_deadline()
                left -= len(data)
                if left < 0:
                    break
                yield data
        if left != 0:
            raise AdapterFileError(f"{quote(name)} has another size than the hub has stated")

    @contextlib.contextmanager
    def _open(
        self, client: httpx.Client, method: str, headers: Mapping[str, str], name: str
    ) -> Iterator[httpx.Response | None]:
        """Give the response that has a file or tells about it; None where there is no such file."""
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self._repository, name, revision=self._revision, endpoint=self._endpoint)
        for _ in range(_MAX_REDIRECTS):
            self._check_deadline()
            own = headers if self._is_endpoint(url) else {"user-agent": headers["user-agent"]}
            # Compressed answers could grow without end when they are unpacked.
            own = {**own, "accept-encoding": "identity"}
            with client.stream(method, url, headers=own) as response:
                if not response.has_redirect_location:
                    yield self._checked(response)
                    return
                target = str(response.url.join(response.headers["location"]))
                self._check_redirect(target)
                if method == "HEAD" and not self._is_endpoint(target):
                    # What is elsewhere is large, and the endpoint has told its size.
                    yield response
                    return
            url = target
        raise SourceUnavailableError("the hub redirects without end")

    def _checked(self, response: httpx.Response) -> httpx.Response | None:
        from huggingface_hub import constants

        code = response.headers.get("x-error-code")
        if response.status_code == 404 and code == _MISSING_ENTRY:
            return None
        if response.status_code in (401, 403, 404):
            raise AdapterNotFoundError(
                f"the hub has no repository {quote(self._repository)} at {self._revision}, or hides it"
            )
        if response.status_code != 200:
            raise SourceUnavailableError(f"the hub answers with status {response.status_code}")
        commit = response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT, self._revision)
        if commit != self._revision:
            raise SourceUnavailableError(
                "the hub answers with another commit than it was asked for"
            )
        return response

    def _check_redirect(self, target: str) -> None:
        parts = urlsplit(target)
        if self._is_endpoint(target):
            # A renamed repository would be one that nobody has allowed.
            path = unquote(parts.path)
            is_allowed = f"/{self._repository}/" in path and self._revision in path
        else:
            host = parts.hostname or ""
            is_allowed = parts.scheme == _DOWNLOAD_SCHEME and any(
                fnmatch.fnmatchcase(host, pattern) for pattern in self._download_hosts
            )
        if not is_allowed:
            raise SourceForbiddenError(
                f"the hub redirects to {quote(parts.hostname)}, which this server may not load from"
            )

    def _is_endpoint(self, url: str) -> bool:
        ours, other = urlsplit(self._endpoint), urlsplit(url)
        return (ours.scheme, ours.netloc) == (other.scheme, other.netloc)

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline:
            raise AdapterLimitError(
                f"downloading the adapter takes more than the {self._max_seconds:g} s that the server allows"
            )


def _client() -> httpx.Client:
    import httpx

    timeout = httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
    return httpx.Client(follow_redirects=False, timeout=timeout)


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    import httpx

    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SourceUnavailableError(
            f"the hub cannot be reached ({type(error).__name__})"
        ) from error


def _is_repository(text: str) -> bool:
    return bool(_REPOSITORY.fullmatch(text)) and ".." not in text and "--" not in text


def _matches(repository: str, pattern: str) -> bool:
    parts, patterns = repository.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))
