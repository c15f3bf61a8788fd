"""Uploads: any number of times the same bytes, read piece by piece."""

import asyncio
import os

import pytest
from python_multipart.multipart import MultipartParser

from shadow_client.adapter import Progress
from shadow_client.upload import PIECE_BYTES, MultipartUpload, find_file, find_files


def parts_of(upload, body):
    """Parse with the server's own library; returns (disposition header, content) of each part."""
    parts, header = [], [b""]
    parser = MultipartParser(
        upload.headers["content-type"].partition("boundary=")[2].encode(),
        {
            "on_part_begin": lambda: parts.append([b"", b""]),
            "on_header_field": lambda d, s, e: header.__setitem__(0, d[s:e].lower()),
            "on_header_value": lambda d, s, e: (
                header[0] == b"content-disposition" and parts[-1].__setitem__(0, d[s:e])
            ),
            "on_part_data": lambda d, s, e: parts[-1].__setitem__(1, parts[-1][1] + d[s:e]),
        },
    )
    parser.write(body)
    parser.finalize()
    return [tuple(part) for part in parts]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(os.urandom(2 * PIECE_BYTES + 17))
    (tmp_path / 'b "1".json').write_bytes(b"{}")
    return [tmp_path / "a.safetensors", tmp_path / 'b "1".json']


def test_the_body_is_what_was_declared_and_can_be_sent_again(files):
    seen = []
    upload = MultipartUpload({"name": "x", "wait": "true"}, files, seen.append)
    first, second = b"".join(upload), b"".join(upload)
    assert first == second
    assert len(first) == upload.total_bytes == int(upload.headers["content-length"])
    assert parts_of(upload, first) == [
        (b'form-data; name="name"', b"x"),
        (b'form-data; name="wait"', b"true"),
        (b'form-data; name="file"; filename="a.safetensors"', files[0].read_bytes()),
        (b'form-data; name="file"; filename="b %221%22.json"', b"{}"),
    ]
    assert seen[-1] == Progress("uploading", len(first), len(first))
    assert len(seen) == 2 * 7  # head, three pieces, head, piece, tail


def test_a_backbone_config_is_sent_as_what_it_is(files):
    upload = MultipartUpload({}, files[:1], backbone_config=files[1])
    body = b"".join(upload)
    assert len(body) == upload.total_bytes
    assert parts_of(upload, body) == [
        (b'form-data; name="file"; filename="a.safetensors"', files[0].read_bytes()),
        (b'form-data; name="backbone_config"; filename="b %221%22.json"', b"{}"),
    ]


def test_a_backbone_config_that_is_not_there_is_told_before_anything_is_sent(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        find_file(tmp_path / "missing.json")
    with pytest.raises(FileNotFoundError, match="no file"):
        find_file(tmp_path)


async def _collect(upload):
    return [piece async for piece in upload]


def test_the_asynchronous_body_is_the_same(files):
    upload = MultipartUpload({}, files)
    assert asyncio.run(_collect(upload)) == list(upload)


def test_pieces_are_bounded(files):
    assert max(len(piece) for piece in MultipartUpload({}, files)) == PIECE_BYTES


def test_a_folder_gives_the_adapters_files_only(tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors", "model.safetensors", "x.bin"):
        (tmp_path / name).write_bytes(b"")
    names = [path.name for path in find_files(tmp_path)]
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    (tmp_path / "adapter_model.safetensors").unlink()
    assert "model.safetensors" in [path.name for path in find_files(str(tmp_path))]


def test_no_adapter_is_told_before_anything_is_sent(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no file"):
        find_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_files(tmp_path / "none")


def test_the_files_are_the_stores():
    from shadow_client.upload import ADAPTER_FILES
    from shadow_runtime.store import budget

    assert budget.ADAPTER_FILES == ADAPTER_FILES
