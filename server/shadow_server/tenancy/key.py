"""API keys: `sk-shadow-<key id>-<secret>`, of which only the sha256 of the secret is ever stored.

Runs in: API process, and the `tenants` command.

A fast hash is right here: the secret is 256 random bits, not a password, so there is no dictionary to try
and a slow hash would only tax every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

_KEY = re.compile(r"sk-shadow-([0-9a-f]{12})-([A-Za-z0-9_-]{43,128})")
_NO_SECRET_HASH = hashlib.sha256(secrets.token_bytes(32)).hexdigest()


@dataclass(frozen=True, slots=True)
class MintedKey:
    """A new key, the only time that its text is known.

    Attributes:
        text: what the tenant sends; never stored, never logged.
        key_id: its public part.
        hash: sha256 of the secret part, 64 hex digits.
    """

    text: str
    key_id: str
    hash: str

    def __repr__(self) -> str:
        return f"MintedKey(key_id={self.key_id!r})"


def mint_key() -> MintedKey:
    """Return a new random key."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return MintedKey(f"sk-shadow-{key_id}-{secret}", key_id, hash_secret(secret))


def split_key(text: str) -> tuple[str, str] | None:
    """Return the key id and the secret of a well-formed key, None for any other text."""
    match = _KEY.fullmatch(text)
    return None if match is None else (match[1], match[2])


def hash_secret(secret: str) -> str:
    """Return the sha256 of a key's secret part, 64 hex digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def matches(secret: str, expected_hash: str | None) -> bool:
    """Return whether `secret` has the hash, in a time that tells nothing about it.

    None stands for an unknown key id: it takes the same time, and nothing matches it.
    """
    is_equal = hmac.compare_digest(hash_secret(secret), expected_hash or _NO_SECRET_HASH)
    return is_equal and expected_hash is not None
