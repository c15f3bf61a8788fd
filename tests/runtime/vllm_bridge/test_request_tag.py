"""What the server says about a request wins over what its client says."""

from __future__ import annotations

from contextvars import copy_context
from types import SimpleNamespace

import pytest

from shadow_runtime.types import RequestTag
from shadow_runtime.vllm_bridge.request_tag import apply_tag, combine_salts, with_tag

TAG = RequestTag("t1", "acme", 2.0, "salt")
OURS = {"shadow_tag": "t1", "shadow_tenant": "acme", "shadow_weight": 2.0}


@pytest.mark.parametrize(
    ("client", "kept"),
    [
        (None, {}),
        ({}, {}),
        ({"session_id": "s", "x": 1}, {"session_id": "s", "x": 1}),
        ({"shadow_tag": "t2", "shadow_weight": 1e9, "shadow_other": 1, "x": 2}, {"x": 2}),
    ],
)
def test_a_client_sets_none_of_our_keys(client, kept) -> None:
    assert with_tag(client, TAG) == kept | OURS


def test_a_clients_salt_only_divides_its_tenants_blocks() -> None:
    assert combine_salts(None, None) is None
    assert combine_salts(None, "c") == "c"
    assert combine_salts("t", None) == "t"
    salts = {combine_salts(t, c) for t in (None, "t", "tc", "u") for c in (None, "c", "tc", "cc")}
    # ("t", "cc") and ("tc", "c") are different requests; and no client spells another tenant's salt.
    assert len(salts) == 16 - 1  # None twice: no tenant with "tc" and tenant "tc" without
    assert len({combine_salts(t, c) for t in ("t", "tc", "u") for c in ("c", "tc", "cc")}) == 9


def test_the_tag_is_written_after_validation() -> None:
    asked = SimpleNamespace(vllm_xargs={"shadow_tenant": "victim"}, cache_salt="mine")
    copy_context().run(apply_tag, asked, TAG)
    assert asked.vllm_xargs == OURS
    assert asked.cache_salt == combine_salts("salt", "mine")
