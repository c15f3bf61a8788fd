"""/openapi.json and /docs: the table of operations and the table of errors as an OpenAPI 3.1 document.

Runs in: API process. Built by hand and not by FastAPI: most routes take a raw request, and an error is
described by the table that answers it.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse, JSONResponse

from shadow_server.admin.upload import BACKBONE_CONFIG
from shadow_server.engine import Engine
from shadow_server.errors import CODE_RULES
from shadow_server.operation import (
    COMMON_ERRORS,
    ENGINE_BODY,
    JSON,
    KEY_ERRORS,
    MULTIPART,
    OPERATIONS,
    Answer,
    Operation,
)

_REF = "#/components/schemas/"
_OWN_REF = "#/$defs/"
_ERROR_REF = {"$ref": f"{_REF}Error"}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ADAPTER_FIELD = {
    "type": ["string", "null"],
    "description": "The adapter that answers: `name`, `name@version` or `tenant/name`.",
}
_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "A name; a tenant and a slash may stand before it.",
    "schema": {"type": "string", "minLength": 1},
}
_FILE = {
    "name": "file",
    "in": "path",
    "required": True,
    "description": "A file's name.",
    "schema": {"type": "string", "minLength": 1},
}


def attach_openapi(app: FastAPI, engine: Engine) -> None:
    """Add /openapi.json and /docs, which describe the server over `engine`."""
    document = build_document(engine.request_schemas())
    page = render_page(document)

    async def openapi() -> JSONResponse:
        return JSONResponse(document)

    async def docs() -> HTMLResponse:
        return HTMLResponse(page)

    app.add_api_route("/openapi.json", openapi, response_model=None)
    app.add_api_route("/docs", docs, response_model=None)


def build_document(request_schemas: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the OpenAPI document.

    Args:
        request_schemas: see `Engine.request_schemas`.
    """
    components: dict[str, Any] = {"Error": _ERROR, **_model_schemas()}
    bodies = {
        path: _hoist(schema, path.strip("/").replace("/", "."), components)
        for path, schema in request_schemas.items()
    }
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation, bodies)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ShadowServe",
            "version": version("shadowserve"),
            "description": "Many ShadowPEFT adapters over one frozen base model.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _describe(operation: Operation, bodies: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method} {operation.path}",
        "responses": _answers(operation.answers) | _errors(operation),
    }
    if not operation.is_open:
        # A server without tenants takes no key.
        described["security"] = [{"key": []}, {}]
    parameters = [p for p in (_NAME, _FILE) if f"{{{p['name']}}}" in operation.path]
    if parameters:
        described["parameters"] = parameters
    if operation.body:
        described["requestBody"] = {
            "required": operation.is_body_required,
            "content": {
                media_type: {"schema": _body(operation.path, media_type, model, bodies)}
                for media_type, model in operation.body
            },
        }
    return described


def _body(
    path: str,
    media_type: str,
    model: type[BaseModel] | str,
    bodies: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    if isinstance(model, str):
        if model != ENGINE_BODY:
            raise ValueError(f"no body is called {model}")
        return bodies.get(path, {"type": "object"})
    if media_type != MULTIPART:
        return {"$ref": f"{_REF}{model.__name__}"}
    fields = model.model_json_schema()
    described = {name: dict(field) for name, field in fields.get("properties", {}).items()}
    file = {"type": "string", "format": "binary"}
    files = {"type": "array", "items": file}
    backbone = {
        **file,
        "description": "The config of an explicit backbone (JSON), if it is not among the files.",
    }
    return {
        "type": "object",
        "description": "The adapter's files, each under its own file name.",
        "properties": described | {"files": files, BACKBONE_CONFIG: backbone},
        "required": [*fields.get("required", []), "files"],
    }


def _answers(answers: Iterable[Answer]) -> dict[str, Any]:
    return {
        str(answer.status): {
            "description": answer.meaning,
            "content": {
                media_type: {"schema": {} if model is None else {"$ref": f"{_REF}{model.__name__}"}}
                for media_type, model in answer.content
            },
        }
        for answer in answers
    }


def _errors(operation: Operation) -> dict[str, Any]:
    codes = {*operation.errors, *COMMON_ERRORS, *(() if operation.is_open else KEY_ERRORS)}
    by_status: dict[int, list[str]] = {}
    for code in sorted(codes):
        by_status.setdefault(CODE_RULES[code].status, []).append(code)
    return {str(status): _error(by_status[status]) for status in sorted(by_status)}


def _error(codes: list[str]) -> dict[str, Any]:
    lines = (
        f"`{code}`{' (retry)' if CODE_RULES[code].is_retryable else ''}: {CODE_RULES[code].meaning}"
        for code in codes
    )
    return {"description": "\n\n".join(lines), "content": {JSON: {"schema": _ERROR_REF}}}


def _model_schemas() -> dict[str, Any]:
    asked = {m for o in OPERATIONS for _, m in o.body if not isinstance(m, str)}
    told = {m for o in OPERATIONS for a in o.answers for _, m in a.content if m is not None}
    models = sorted(asked | told, key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REF + "{model}"
    )
    found: dict[str, Any] = schemas["$defs"]
    return found


def _hoist(schema: dict[str, Any], prefix: str, components: dict[str, Any]) -> dict[str, Any]:
    """Move a schema's own definitions into the document's, under names that no other body uses."""

    def rewrite(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: rewrite(value) for key, value in node.items() if key != "$defs"}
        if isinstance(node, list):
            return [rewrite(item) for item in node]
        # References and the mappings of discriminators.
        is_reference = isinstance(node, str) and node.startswith(_OWN_REF)
        return f"{_REF}{prefix}.{node.removeprefix(_OWN_REF)}" if is_reference else node

    for name, definition in schema.get("$defs", {}).items():
        components[f"{prefix}.{name}"] = rewrite(definition)
    body: dict[str, Any] = rewrite(schema)
    if "properties" in body:
        body["properties"] = {"adapter": _ADAPTER_FIELD} | body["properties"]
    return body


def render_page(document: Mapping[str, Any]) -> str:
    """Return the document as one page that needs nothing from elsewhere."""
    sections = "".join(
        _render_operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    schemas = "".join(
        f"<h3 id='{html.escape(name)}'>{html.escape(name)}</h3><pre>"
        f"{html.escape(json.dumps(schema, indent=2))}</pre>"
        for name, schema in document["components"]["schemas"].items()
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>ShadowServe</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "pre{background:#f4f4f4;padding:.5rem;overflow:auto}td{padding:.2rem .8rem .2rem 0;"
        "vertical-align:top}</style></head><body><h1>ShadowServe</h1>"
        "<p>As data: <a href='/openapi.json'>openapi.json</a></p>"
        f"{sections}<h2>Schemas</h2>{schemas}</body></html>"
    )


def _render_operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{status}</td><td>{html.escape(answer['description'])}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    body = ""
    if "requestBody" in operation:
        text = json.dumps(operation["requestBody"]["content"], indent=2)
        body = f"<details><summary>Body</summary><pre>{html.escape(text)}</pre></details>"
    return (
        f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
        f"<p>{html.escape(operation['summary'])}</p>{body}<table>{rows}</table>"
    )
