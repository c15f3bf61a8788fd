"""The Helm chart as tests see it: rendered by the real Helm, one dict for each object."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

from source_tree import ROOT

CHART = ROOT / "helm"
RELEASE, NAMESPACE = "rel", "serving"
NAME = "rel-shadowserve"
VALUES_FILES = sorted((CHART / "ci").glob("*.yaml"))

Object = dict[str, Any]


@functools.cache
def _chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def read_values(path: Path) -> Object:
    """Return the values of a file below the chart's `ci`."""
    values: Object = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


class Release:
    """What Helm makes of values; raises helm_python.HelmError for values that the chart refuses."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self.texts = _chart().render(dict(values or {}), name=RELEASE, namespace=NAMESPACE)
        self.objects = [o for t in self._manifests() for o in yaml.safe_load_all(t) if o]

    def _manifests(self) -> Iterator[str]:
        return (text for path, text in self.texts.items() if path.endswith(".yaml"))

    def all(self, kind: str) -> list[Object]:
        """Return the objects of a kind."""
        return [o for o in self.objects if o["kind"] == kind]

    def get(self, kind: str, name: str | None = None) -> Object:
        """Return the one object of a kind, or the one of that name."""
        [found] = [o for o in self.all(kind) if name in (None, o["metadata"]["name"])]
        return found

    @property
    def pod(self) -> Object:
        """Spec of the server's pods."""
        return self.get("Deployment")["spec"]["template"]["spec"]

    @property
    def server(self) -> Object:
        """The server's container."""
        [server] = self.pod["containers"]
        return server

    @property
    def arguments(self) -> list[str]:
        """The server's command line, after `serve`."""
        first, *rest = self.server["args"]
        assert first == "serve"
        return rest

    @property
    def tenants_path(self) -> str | None:
        """Where the server reads its tenants, None when it has none."""
        options = [word.partition("=") for word in self.arguments]
        return next((path for option, _, path in options if option == "--tenants-file"), None)

    @property
    def config(self) -> dict[str, str]:
        """Files of the ConfigMap that pods mount."""
        return self.get("ConfigMap", self.get("Deployment")["metadata"]["name"])["data"]

    def pod_specs(self) -> dict[str, Object]:
        """Return the spec of every pod that the release makes, by what makes it."""
        specs = {f"Pod {o['metadata']['name']}": o["spec"] for o in self.all("Pod")}
        for kind in ("Deployment", "Job"):
            for made in self.all(kind):
                name = f"{kind} {made['metadata']['name']}"
                specs[name] = made["spec"]["template"]["spec"]
        return specs


def refusal(values: Mapping[str, Any]) -> str:
    """Return what Helm says about values that the chart refuses."""
    try:
        Release(values)
    except helm_python.HelmError as error:
        return str(error)
    raise AssertionError(f"not refused: {values}")
