"""Queries as tests see them: `promtool` parses them, and the series that they read are taken out of them."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from chart import CHART
from prometheus import find_program
from shadow_server.observability.series import ALL_SERIES

ALERTS = CHART / "rules/alerts.yaml"
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))

_VARIABLES = {"$__rate_interval": "1m", "$__all": ".*"}
_STRINGS_AND_SELECTORS = re.compile(r'"[^"]*"|\{[^{}]*\}')
_LABEL_LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAMES = re.compile(r"(?<![\w:$.])([a-zA-Z_][\w:]*)(?!\s*\(|[\w:])")
_WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring", "inf", "nan"}
_ENGINE_SERIES = re.compile(r'self\._(gauge|counter|histogram)_cls\(\s*name="(vllm:[^"]+)"')
_SUFFIXES = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


@dataclass(frozen=True)
class Query:
    """One query of a dashboard or an alert.

    Attributes:
        place: where it is, for people.
        expression: with the dashboard's variables replaced: everything is selected.
    """

    place: str
    expression: str


def dashboard_queries() -> list[Query]:
    """Return every panel's queries."""
    return [
        Query(f"{path.stem}: {panel['title']}", _without_variables(target["expr"]))
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    ]


def alert_queries() -> list[Query]:
    """Return every alert's query."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [Query(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


def series_of(expression: str) -> set[str]:
    """Return the names of the series that an expression reads."""
    bare = _LABEL_LISTS.sub(
        " ", re.sub(r"\[[^\]]*\]", " ", _STRINGS_AND_SELECTORS.sub(" ", expression))
    )
    return {name for name in _NAMES.findall(bare) if name not in _WORDS}


def known_series() -> dict[str, tuple[str, ...] | None]:
    """Return every series that /metrics has, as queries name it, with its labels; None where the engine decides."""
    known: dict[str, tuple[str, ...] | None] = {}
    for kind, name in _engine_series():
        known |= dict.fromkeys(_sample_names(kind, name), None)
    for series in ALL_SERIES:
        name = series.name.removesuffix("_total")
        known |= dict.fromkeys(_sample_names(series.kind, name), series.labels)
    return known


def find_syntax_error(queries: Sequence[Query]) -> str | None:
    """Return what promtool says about the first queries that it cannot parse, None when it can."""
    rules = [{"record": f"query:{i}", "expr": q.expression} for i, q in enumerate(queries)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}, file)
        file.flush()
        done = promtool("check", "rules", file.name)
    return None if done.returncode == 0 else done.stderr


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool."""
    command = [find_program("promtool"), *map(str, words)]
    return subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)


def _without_variables(expression: str) -> str:
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    return re.sub(r"\$\w+", ".*", expression)


def _sample_names(kind: str, name: str) -> Iterator[str]:
    return (f"{name}{suffix}" for suffix in _SUFFIXES[kind])


def _engine_series() -> list[tuple[str, str]]:
    # Read, not imported: that would bring torch.
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    return _ENGINE_SERIES.findall((Path(spec.origin).parent / "v1/metrics/loggers.py").read_text())
