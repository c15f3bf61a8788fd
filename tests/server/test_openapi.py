"""The API documents: every route is in them, and every reference leads somewhere."""

import json
import re

from starlette.routing import Mount, Route

from shadow_server.errors import CODE_RULES
from shadow_server.fake_engine import FakeEngine
from shadow_server.openapi import build_document, render_page
from shadow_server.operation import COMMON_ERRORS, KEY_ERRORS, OPERATIONS


def documented():
    return {(o.method.upper(), o.path) for o in OPERATIONS}


async def test_every_route_of_the_application_is_documented_and_no_other(server):
    found = set()
    for route in server.app.routes:
        path = re.sub(r":path}", "}", route.path)
        if isinstance(route, Mount):
            found.add(("GET", path))
        elif isinstance(route, Route):
            found |= {(m, path) for m in route.methods - {"HEAD"}}
    assert found == documented()


async def test_served_as_data_and_as_a_page(server):
    document = (await server.client.get("/openapi.json")).json()
    assert document == build_document(FakeEngine.request_schemas())
    page = await server.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert page.text == render_page(document)
    for operation in OPERATIONS:
        assert operation.path in page.text
    assert "//" not in re.sub(
        r"https?://www\.w3\.org\S*", "", re.sub(r"<pre>.*?</pre>", "", page.text)
    )


def test_references_lead_somewhere():
    document = build_document(FakeEngine.request_schemas())
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)))
    assert len(references) > 8
    prefix = "#/components/schemas/"
    names = {reference.removeprefix(prefix) for reference in references}
    assert names <= set(document["components"]["schemas"])
    assert all(reference.startswith(prefix) for reference in references)


def test_errors_are_the_tables():
    document = build_document(FakeEngine.request_schemas())
    for operation in OPERATIONS:
        described = document["paths"][operation.path][operation.method]["responses"]
        for code in (*operation.errors, *COMMON_ERRORS):
            assert f"`{code}`" in described[str(CODE_RULES[code].status)]["description"]
    told = {c for o in OPERATIONS for c in (*o.errors, *COMMON_ERRORS, *KEY_ERRORS)}
    # What no operation answers with: routes that do not exist, and codes for whole classes of errors.
    assert set(CODE_RULES) - told == {
        *("route_not_found", "conflict", "unprocessable", "headers_too_large"),
        *("insufficient_storage", "shadow_error", "config_invalid", "unsupported_stack"),
    }


def test_bodies_are_the_engines_own():
    schemas = {
        "/v1/completions": {
            "$defs": {"Part": {"type": "object", "properties": {"p": {"$ref": "#/$defs/Part"}}}},
            "properties": {"parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}}},
        }
    }
    document = build_document(schemas)
    body = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]
    properties = body["application/json"]["schema"]["properties"]
    assert set(properties) == {"adapter", "parts"}
    name = "#/components/schemas/v1.completions.Part"
    assert properties["parts"]["items"] == {"$ref": name}
    part = document["components"]["schemas"]["v1.completions.Part"]
    assert part["properties"]["p"] == {"$ref": name}
    assert "$defs" not in json.dumps(document)
