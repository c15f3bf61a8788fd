"""Keys: their form, and that every way of checking one compares."""

import hashlib
import hmac
import math

import pytest

from shadow_server.tenancy import key as key_module
from shadow_server.tenancy.key import hash_secret, matches, mint_key, split_key


def test_form_and_strength():
    minted = mint_key()
    prefix, scheme, key_id, secret = minted.text.split("-", 3)
    assert (prefix, scheme, key_id) == ("sk", "shadow", minted.key_id)
    assert len(secret) * math.log2(64) >= 256
    assert minted.hash == hashlib.sha256(secret.encode()).hexdigest()
    assert split_key(minted.text) == (key_id, secret)
    assert secret not in repr(minted)
    assert len({mint_key().text for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sk-shadow-",
        "sk-shadow-0123456789ab-",
        "sk-shadow-0123456789ab-" + "a" * 42,
        "sk-shadow-0123456789ab-" + "a" * 129,
        "sk-shadow-0123456789AB-" + "a" * 43,
        "sk-shadow-0123456789ab-" + "a" * 42 + "é",
        "sk-shadow-0123456789ab-" + "a" * 43 + "\n",
        "SK-shadow-0123456789ab-" + "a" * 43,
        "x" * 1_000_000,
    ],
)
def test_malformed(text):
    assert split_key(text) is None


def test_matching():
    assert matches("right", hash_secret("right"))
    assert not matches("wrong", hash_secret("right"))
    assert not matches("right", None)


def test_an_unknown_id_takes_the_same_comparison(monkeypatch):
    compared = []

    def compare(first, second):
        compared.append((len(first), len(second)))
        return hmac.compare_digest(first, second)

    monkeypatch.setattr(
        key_module, "hmac", type("H", (), {"compare_digest": staticmethod(compare)})
    )
    matches("x", hash_secret("y"))
    matches("x", None)
    assert compared == [(64, 64), (64, 64)]
