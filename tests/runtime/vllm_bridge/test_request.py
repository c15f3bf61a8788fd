"""An adapter's identity survives vLLM's `LoRARequest`, and nothing else passes for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vllm.lora.request import LoRARequest

from shadow_runtime.errors import AdapterConfigError
from shadow_runtime.vllm_bridge.request import (
    AdapterSource,
    adapter_int_id,
    adapter_name,
    build_request,
)

DIGEST = "sha256:" + "3f" * 32
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
PATHS = st.text(min_size=1)
ODD_PATHS = (
    "/adapters/with space",
    "/adapters/größe/数学",
    "/a?path=/b&config=/c",
    "/a&b=c;d=e",
    "/a%20b%2Fc%",
    "/a#fragment+plus",
    "/a\\b\n\tc",
    "//double//slash/..",
    "shadow://sha256:00?path=/x",
)


@pytest.mark.parametrize("path", ODD_PATHS)
@pytest.mark.parametrize("config", [None, "/config & more/ü?.json"])
def test_odd_paths_survive_the_uri(path: str, config: str | None) -> None:
    source = AdapterSource(DIGEST, path, config)
    uri = source.to_uri()
    assert AdapterSource.from_uri(uri) == source
    # vLLM logs it and hashes it: one line of printable ASCII.
    assert uri.isascii()
    assert uri.isprintable()


@given(digest=HEX, path=PATHS, config=st.none() | PATHS)
@settings(max_examples=200, deadline=None, database=None)
@example(digest="0" * 64, path="\x00", config=None)
def test_any_path_survives_the_uri(digest: str, path: str, config: str | None) -> None:
    source = AdapterSource(f"sha256:{digest}", path, config)
    assert AdapterSource.from_uri(source.to_uri()) == source


@given(
    first=st.tuples(HEX, PATHS, st.none() | PATHS),
    second=st.tuples(HEX, PATHS, st.none() | PATHS),
)
@settings(max_examples=100, deadline=None, database=None)
def test_different_sources_have_different_uris(first: tuple, second: tuple) -> None:
    assert (AdapterSource(*first).to_uri() == AdapterSource(*second).to_uri()) == (first == second)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/adapters/one",
        "relative/one",
        "org/name",
        "file:///adapters/one",
        "shadow://",
        "shadow:///adapters/one",
        f"shadow://{DIGEST}",
        f"shadow://{DIGEST}?config=/c",
        f"shadow://{DIGEST}?path=",
        f"shadow://{DIGEST}?path=/a&path=/b",
        f"https://{DIGEST}?path=/a",
        "shadow://md5:00?path=/a",
        "shadow://sha256:00?path=/a",
        f"shadow://sha256:{'zz' * 32}?path=/a",
        f"shadow://{DIGEST}/elsewhere?path=/a",
        "shadow://[bad?path=/a",
        "/not/a/real/path",
    ],
)
def test_anything_else_is_refused(uri: str) -> None:
    with pytest.raises(AdapterConfigError, match="does not name a digest"):
        AdapterSource.from_uri(uri)


@given(digest=HEX)
@settings(max_examples=300, deadline=None, database=None)
@example(digest="0" * 64)
@example(digest="f" * 64)
@example(digest="00000001" + "0" * 56)
@example(digest="80000000" + "0" * 56)
@example(digest="40000000" + "0" * 56)
def test_ids_fit_31_bits_and_avoid_the_warm_up_ids(digest: str) -> None:
    adapter_id = adapter_int_id(f"sha256:{digest}")
    assert 1024 < adapter_id < 2**31
    assert adapter_id & (2**30 - 1) == int(digest[:8], 16) % 2**30


@pytest.fixture
def manifest(library: Any) -> Any:
    """Return the manifest of an adapter on disk."""
    return library.manifests["a"]


def test_name_path_and_id_are_of_the_digest(manifest: Any) -> None:
    # vLLM compares requests by name, keys prefix blocks by name and path, and the rest by id.
    first = build_request("math", manifest)
    other = build_request("math", replace(manifest, digest=DIGEST))
    assert first.lora_name == manifest.digest
    assert first != other
    assert first.lora_name != other.lora_name
    assert first.lora_path != other.lora_path
    assert first.lora_int_id != other.lora_int_id


def test_two_names_of_one_digest_differ_in_nothing_that_vllm_goes_by(manifest: Any) -> None:
    requests = [build_request(name, manifest) for name in ("math", "acme/sums")]
    assert len({(r.lora_name, r.lora_path, r.lora_int_id) for r in requests}) == 1
    assert requests[0] == requests[1]
    assert [adapter_name(request) for request in requests] == ["math", "acme/sums"]
    # As the engine core gets them.
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(requests), type=list[LoRARequest])
    assert [adapter_name(request) for request in sent] == ["math", "acme/sums"]
    assert adapter_name(None) is None


def test_a_request_leads_back_to_the_files(manifest: Any) -> None:
    source = AdapterSource.from_uri(build_request("math", manifest).lora_path)
    assert source == AdapterSource(manifest.digest, manifest.path, None)
    configured = replace(manifest, backbone_config="/c/config.json")
    source = AdapterSource.from_uri(build_request("math", configured).lora_path)
    assert source.backbone_config == "/c/config.json"


def test_the_request_survives_vllms_encoding(manifest: Any) -> None:
    import msgspec

    request = build_request("math", manifest)
    encode: Callable[[Any], bytes] = msgspec.msgpack.encode
    assert msgspec.msgpack.decode(encode(request), type=type(request)) == request
