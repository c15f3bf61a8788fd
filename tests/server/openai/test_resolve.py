"""The rule of names as a table, over bases whose own names look like adapters, versions and tenants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow_server.engine import AdapterName
from shadow_server.errors import ApiError
from shadow_server.openai.resolve import resolve_adapter
from shadow_server.tenancy.identity import ANONYMOUS, Identity

BASES = ("org/base", "org/base:fp8", "Qwen/Qwen3-8B", "acme/base@1", "plain")
KNOWN = {
    AdapterName("acme", "math"): 3,
    AdapterName("acme", "poet"): 1,
    AdapterName("zeta", "math"): 1,
    AdapterName("default", "math"): 1,
    AdapterName("org", "base"): 1,
    AdapterName("acme", "plain"): 1,
}
ACME = Identity("acme", "user")
ADMIN = Identity("ops", "admin")


def has(name, version=None):
    return name in KNOWN and (version is None or version <= KNOWN[name])


def resolve(identity, **body):
    asked = resolve_adapter(body, BASES, identity, has)
    return None if asked is None else (str(asked.name), asked.version)


def refused(identity, **body):
    with pytest.raises(ApiError) as caught:
        resolve_adapter(body, BASES, identity, has)
    error = caught.value
    return error.rule.status, error.rule.code, error.param, error.message


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({}, None),
        ({"model": None, "adapter": None}, None),
        *(({"model": base}, None) for base in BASES),
        ({"model": "org/base:math"}, ("acme/math", None)),
        ({"model": "org/base:fp8:math"}, ("acme/math", None)),
        ({"model": "Qwen/Qwen3-8B:math@2"}, ("acme/math", 2)),
        ({"model": "Qwen/Qwen3-8B:acme/math@2"}, ("acme/math", 2)),
        ({"model": "acme/base@1:math"}, ("acme/math", None)),
        ({"model": "math"}, ("acme/math", None)),
        ({"model": "math@3"}, ("acme/math", 3)),
        ({"model": "acme/math"}, ("acme/math", None)),
        ({"model": "acme/math@1"}, ("acme/math", 1)),
        ({"adapter": "math"}, ("acme/math", None)),
        ({"adapter": "math@2"}, ("acme/math", 2)),
        ({"adapter": "acme/math@2"}, ("acme/math", 2)),
        # That it exists is found out by leasing it.
        ({"adapter": "nobody"}, ("acme/nobody", None)),
        ({"adapter": "math@9"}, ("acme/math", 9)),
        ({"model": "org/base:nobody"}, ("acme/nobody", None)),
        # An adapter of a base's name is reached by `adapter` only.
        ({"model": "plain"}, None),
        ({"adapter": "plain"}, ("acme/plain", None)),
        # Spellings that agree.
        ({"model": "math", "adapter": "acme/math"}, ("acme/math", None)),
        ({"model": "org/base:acme/math", "adapter": "math"}, ("acme/math", None)),
        ({"model": "math", "adapter": "math@2"}, ("acme/math", 2)),
        ({"model": "acme/math@2", "adapter": "math"}, ("acme/math", 2)),
        ({"model": "math@2", "adapter": "acme/math@2"}, ("acme/math", 2)),
        ({"model": "org/base", "adapter": "math"}, ("acme/math", None)),
    ],
)
def test_spellings_of_a_tenants_own(body, asked):
    assert resolve(ACME, **body) == asked


@pytest.mark.parametrize(
    "body",
    [
        {"model": "math", "adapter": "poet"},
        {"model": "math@1", "adapter": "math@2"},
        {"model": "org/base:math", "adapter": "poet"},
        {"model": "acme/math", "adapter": "poet@1"},
    ],
)
def test_conflicts(body):
    assert refused(ACME, **body)[:3] == (400, "adapter_conflict", "adapter")


def test_an_admin_reaches_every_tenant_in_full_and_its_own_in_short():
    assert resolve(ADMIN, adapter="acme/math@2") == ("acme/math", 2)
    assert resolve(ADMIN, model="zeta/math") == ("zeta/math", None)
    assert resolve(ADMIN, model="org/base:zeta/math") == ("zeta/math", None)
    assert resolve(ADMIN, adapter="math") == ("ops/math", None)
    # The base wins over an adapter that is spelled alike.
    assert resolve(ADMIN, model="org/base") is None
    assert resolve(ADMIN, adapter="org/base") == ("org/base", None)


def test_without_tenants_names_are_short():
    assert resolve(ANONYMOUS, model="math@1") == ("default/math", 1)
    assert resolve(ANONYMOUS, model="default/math") == ("default/math", None)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"model": "{}"}, "model_not_found", "model"),
        ({"model": "{}@1"}, "model_not_found", "model"),
        ({"adapter": "{}"}, "adapter_not_found", "adapter"),
        ({"adapter": "{}@1"}, "adapter_not_found", "adapter"),
        ({"model": "org/base:{}"}, "adapter_not_found", "adapter"),
        ({"model": "math", "adapter": "{}"}, "adapter_not_found", "adapter"),
        ({"model": "{}", "adapter": "math"}, "model_not_found", "model"),
    ],
)
def test_another_tenants_adapter_is_one_that_does_not_exist(body, code, param):
    def filled(name):
        return {field: text.format(name) for field, text in body.items()}

    there, missing = refused(ACME, **filled("zeta/math")), refused(ACME, **filled("zeta/none"))
    assert there[:3] == missing[:3] == (404, code, param)
    assert there[3].replace("zeta/math", "zeta/none") == missing[3]


BAD_NAMES = ["../x", "/etc/passwd", "a/b/c", "a//b", "/math", "math/", "math@", "math@0", "math@01"]
BAD_NAMES += ["@1", "math@-1", "math@1@1", "math@x", "math@1e3", "ACME/math", "acme/-x", "ma th"]


@pytest.mark.parametrize("text", [*BAD_NAMES, "a" * 129])
def test_what_can_be_no_name_is_not_found(text):
    assert refused(ACME, adapter=text)[:2] == (404, "adapter_not_found")
    assert refused(ACME, model=text)[:2] == (404, "model_not_found")
    assert refused(ACME, model=f"org/base:{text}")[:2] == (404, "adapter_not_found")


def test_adapter_is_taken_out_of_the_body():
    body = {"model": "org/base", "adapter": "math", "prompt": "x"}
    assert resolve_adapter(body, BASES, ACME, has).name.name == "math"
    assert body == {"model": "org/base", "prompt": "x"}


values = st.one_of(st.none(), st.integers(), st.text(max_size=20), st.lists(st.integers()))
parts = st.sampled_from(
    ["math", "poet", "acme/math", "zeta/math", "nobody", "acme/plain", "org/base", "plain"]
)
names = st.builds(
    lambda base, name, version: base + name + version,
    st.sampled_from(["", *(f"{base}:" for base in BASES)]),
    parts,
    st.sampled_from(["", "@1", "@3", "@99"]),
)


@given(
    model=st.one_of(values, names, st.sampled_from(BASES)),
    adapter=st.one_of(values, names),
    identity=st.sampled_from([ACME, ADMIN, ANONYMOUS]),
)
def test_any_pair_is_refused_or_answered_by_what_was_asked_for(model, adapter, identity):
    try:
        asked = resolve(identity, model=model, adapter=adapter)
    except ApiError as error:
        assert error.rule.status in (400, 404)  # noqa: PT017
        return
    if asked is None:
        assert adapter is None
        assert model is None or model in BASES
        return
    name, version = asked
    tenant, short = name.split("/")
    assert identity.role == "admin" or tenant == identity.tenant
    spellings = [
        (full if full else short) + suffix
        for full in ("", name)
        for suffix in ("", f"@{version}" if version else "")
    ]
    given_texts = [text for text in (model, adapter) if isinstance(text, str) and text not in BASES]
    if adapter is not None:
        given_texts.append(adapter)
    assert given_texts
    for text in given_texts:
        assert any(text == s or text.endswith(f":{s}") for s in spellings), (text, asked)
