"""The table of who may call what, against the application's real routes."""

import re

import pytest
from starlette._utils import get_route_path

from fake_tenants import route_paths
from shadow_server.middleware.access import ROUTE_ACCESS, find_access, route_path

PUBLIC = {"/health/live", "/health/ready", "/console", "/console/{file}"}


def test_the_table_knows_every_route_of_the_application(server):
    paths = route_paths(server.app)
    assert len(paths) >= 20
    assert {path for path in paths if find_access(path) is None} == set()


def test_the_table_knows_no_route_that_is_gone(server):
    paths = route_paths(server.app)
    optional = {"/docs/oauth2-redirect"}
    for template in ROUTE_ACCESS.keys() - optional:
        sample = re.sub(r"{\w+(:\w+)?}", "x", template)
        assert sample in paths, template


def test_only_probes_and_the_console_are_public_and_only_operators_see_all_tenants():
    by_access = {}
    for template, access in ROUTE_ACCESS.items():
        by_access.setdefault(access, set()).add(template)
    assert by_access["public"] == PUBLIC
    assert by_access["admin"] == {"/load", "/metrics", "/metrics/{path:path}"}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/nope",
        "/health/live/",
        "/health/live/x",
        "//health/live",
        "/health/../metrics",
        "/health/live\n",
        "/HEALTH/LIVE",
        "/v1",
        "/v1/",
        "/v2/models",
        "/invocations",
        "/sleep",
        "/metricsx",
        "/console/",
        "/console/a/b",
        "/consolex",
        "/v1/models/{name:path}x\n",
        "/{name:path}",
    ],
)
def test_everything_else_is_closed(path):
    access = find_access(path)
    assert access is None or (access == "user" and path.startswith("/v1/models/"))


@pytest.mark.parametrize(
    ("path", "access"),
    [
        ("/v1/adapters/acme/support/rollback", "user"),
        ("/v1/adapters/../../metrics", "user"),
        ("/v1/models/Qwen/Qwen3-8B", "user"),
        ("/metrics/", "admin"),
        ("/metrics/health/live", "admin"),
    ],
)
def test_paths_below_a_route(path, access):
    assert find_access(path) == access


@pytest.mark.parametrize(
    ("path", "prefix", "expected"),
    [
        ("/v1/models", "", "/v1/models"),
        ("/proxy/v1/models", "/proxy", "/v1/models"),
        ("/proxyx/v1/models", "/proxy", "/proxyx/v1/models"),
        ("/v1/models", "/proxy", "/v1/models"),
        ("/proxy", "/proxy", ""),
    ],
)
def test_the_path_is_what_the_router_matches(path, prefix, expected):
    scope = {"type": "http", "path": path, "root_path": prefix}
    assert route_path(scope) == expected == get_route_path(scope)
