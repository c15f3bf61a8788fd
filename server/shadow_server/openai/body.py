"""Request bodies: read with a bound, parsed strictly, once.

Runs in: API process.
"""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi import Request

from shadow_server.errors import ApiError

_MAX_SALT = 256
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_json_object(request: Request, max_body_bytes: int) -> dict[str, Any]:
    """Return the request's JSON object.

    Stricter than `json.loads`: no duplicate keys (two readers could disagree about the adapter), no
    NaN or Infinity, UTF-8 only.

    Raises:
        ApiError: 413 over `max_body_bytes`, 415 for another content type, 400 for anything that is
            not one JSON object.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, "The content type must be application/json")
    body = parse_json(await _read_bounded(request, max_body_bytes))
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be a JSON object", code="invalid_json")
    return body


def parse_json(data: bytes) -> Any:
    """Return the JSON value in `data`; raises ApiError 400 when it is not strict JSON."""
    try:
        value = _DECODER.decode(data.decode("utf-8"))
        if _SURROGATE.search(data) is not None:
            _refuse_lone_surrogates(value)
        return value
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos}"
    except UnicodeEncodeError:
        reason = "it holds half of a surrogate pair"
    except ValueError as error:
        reason = str(error)
    raise ApiError(400, f"The request body is not valid JSON: {reason}", code="invalid_json")


def check_cache_salt(body: dict[str, Any]) -> None:
    """Raise ApiError 400 when `cache_salt` is there and is not 1 to 256 printable characters."""
    salt = body.get("cache_salt")
    if salt is None:
        return
    if not isinstance(salt, str) or not 1 <= len(salt) <= _MAX_SALT or not salt.isprintable():
        message = f"'cache_salt' must be a string of 1 to {_MAX_SALT} printable characters, or null"
        raise ApiError(400, message, param="cache_salt")


async def _read_bounded(request: Request, max_body_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    # The declared length refuses early; the count below is what holds.
    if declared.isdigit() and len(declared) < 20 and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes)
    chunks: list[bytes] = []
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > max_body_bytes:
            raise _too_large(max_body_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(max_body_bytes: int) -> ApiError:
    return ApiError(413, f"The request body is larger than {max_body_bytes} bytes")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:64]!r} appears twice")
    return body


def _refuse_lone_surrogates(value: Any) -> None:
    # No text holds one, and whatever writes the value as UTF-8 later would fail on it.
    json.dumps(value, ensure_ascii=False).encode()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
