"""Validation tells everything and changes nothing."""

import pytest

from shadow_server.fake_adapter import BASE_FINGERPRINT

FILES = {"files": ("adapter.txt", b"weights")}


async def test_a_good_adapter_is_reported_whole(server):
    server.write_adapter("math", "weights")
    answers = [
        await server.client.post("/v1/adapters/validate", json={"path": "math"}),
        await server.client.post("/v1/adapters/validate", files=FILES),
    ]
    for answer in answers:
        assert answer.status_code == 200
        report = answer.json()
        assert report["object"] == "adapter.validation"
        assert (report["is_valid"], report["error"]) == (True, None)
        assert report["digest"].startswith("sha256:")
        assert (report["format"], report["injection_rank"]) == ("paper", 16)
        assert (report["slot_class"], report["slot_bytes"]) == ("fake", 4096)
        assert report["stored_bytes"] == 7
        assert report["base_fingerprint"] == BASE_FINGERPRINT
        assert report["tensors"] == [
            {"name": "text", "dtype": "U8", "shape": [1], "num_bytes": 1, "is_finite": True}
        ]
        assert report["seconds"] >= 0
    changed = (await server.client.get("/v1/adapters")).json()["data"]
    assert changed == []
    assert server.engine.loader.num_loads == 0
    assert list((server.engine.adapters.store.root / "objects").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "code"), [(b"broken", "adapter_tensor_invalid"), (None, "adapter_file_invalid")]
)
async def test_a_bad_adapter_is_reported_with_the_reason(server, content, code):
    folder = server.root / "bad"
    folder.mkdir()
    if content is not None:
        (folder / "adapter.txt").write_bytes(content)
    answer = await server.client.post("/v1/adapters/validate", json={"path": "bad"})
    assert answer.status_code == 200
    report = answer.json()
    assert (report["is_valid"], report["error"]["code"]) == (False, code)
    assert report["digest"] is None
    assert "0x7f" not in answer.text
    assert str(server.root) not in answer.text


async def test_files_that_are_refused_unread_are_reported_too(server):
    folder = server.root / "bad"
    folder.mkdir()
    (folder / "adapter.txt").symlink_to(server.root / "elsewhere")
    (server.root / "elsewhere").write_text("x")
    answer = await server.client.post("/v1/adapters/validate", json={"path": "bad"})
    assert answer.status_code == 200
    assert answer.json()["error"]["code"] == "adapter_file_invalid"
    assert answer.json()["base_fingerprint"] is None


async def test_what_cannot_be_looked_at_is_an_error(server):
    for body, status in (
        ({"path": "nobody"}, 404),
        ({"path": "/etc"}, 403),
        ({}, 400),
        ({"path": "a", "name": "b"}, 400),
    ):
        answer = await server.client.post("/v1/adapters/validate", json=body)
        assert answer.status_code == status
