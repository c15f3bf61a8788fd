"""Every values file makes objects that Helm's linter and the schemas of Kubernetes accept."""

import json
import subprocess
import sys

import helm_python
import kubernetes_validate
import pytest
import yaml

import shadow_client
from chart import CHART, VALUES_FILES, Release, read_values
from custom_kind import CUSTOM_KINDS
from source_tree import ROOT

KUBERNETES_VERSIONS = ("1.29", "1.33", "1.37")
CASES = [pytest.param({}, id="defaults")] + [
    pytest.param(read_values(path), id=path.stem.removesuffix("-values")) for path in VALUES_FILES
]


@pytest.mark.parametrize("values", CASES)
def test_linter_has_nothing_to_say(values):
    report = helm_python.lint(CHART, values, strict=True)

    assert report["errors"] == []
    assert [m["error"] for m in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("values", CASES)
def test_objects_are_what_kubernetes_takes(values, version):
    objects = Release(values).objects

    # The others are in test_custom_kind.py.
    known = [o for o in objects if o["kind"] not in CUSTOM_KINDS]
    assert len(known) >= 6
    for made in known:
        kubernetes_validate.validate(made, version, strict=True)


def test_a_wrong_object_is_found():
    deployment = Release().get("Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolicies"] = "Always"

    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolicies"):
        kubernetes_validate.validate(deployment, KUBERNETES_VERSIONS[0], strict=True)


def test_values_files_make_every_kind_that_the_chart_has():
    made = {o["kind"] for values in CASES for o in Release(*values.values).objects}

    assert made >= CUSTOM_KINDS.keys() | {
        "HorizontalPodAutoscaler",
        "Ingress",
        "Job",
        "NetworkPolicy",
    }


def test_no_template_is_dead():
    texts = [Release(*values.values).texts for values in CASES]
    used = {path.partition("/")[2] for made in texts for path, text in made.items() if text.strip()}
    templates = {str(path.relative_to(CHART)) for path in CHART.glob("templates/**/*.yaml")}

    assert templates - used == {"templates/validate.yaml"}


@pytest.mark.parametrize("values", CASES)
def test_objects_have_the_release_in_their_names_and_labels(values):
    for made in Release(values).objects:
        labels = made["metadata"].get("labels", {})
        is_extra = made["metadata"]["name"] == "rel-note"
        assert made["metadata"]["name"].startswith("rel-")
        assert is_extra or labels["app.kubernetes.io/instance"] == "rel"


def test_no_two_objects_share_kind_and_name():
    for values in CASES:
        names = [(o["kind"], o["metadata"]["name"]) for o in Release(*values.values).objects]
        assert len(set(names)) == len(names)


def test_version_is_the_packages():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["appVersion"] == chart["version"] == shadow_client.__version__


def test_made_files_are_current():
    done = subprocess.run(
        [sys.executable, CHART / "generate.py", "--check"],
        capture_output=True,
        check=False,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_a_stale_file_is_named(tmp_path):
    copy = tmp_path / "helm"
    for path in (p for p in CHART.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        target = copy / path.relative_to(CHART)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    values = copy / "values.yaml"
    values.write_text(values.read_text().replace("replicas: 1", "replicas: 2"))

    done = subprocess.run(
        [sys.executable, copy / "generate.py", "--check"],
        capture_output=True,
        check=False,
        text=True,
    )

    assert done.returncode == 1
    assert "helm/README.md is not current" in done.stderr


def test_packaged_chart_holds_what_templates_read_and_no_tools(tmp_path):
    archive = helm_python.package(CHART, destination=tmp_path)
    chart = helm_python.Chart.load(archive)

    names = {file["name"] for file in chart.files}
    assert {"rules/alerts.yaml", "files/compose_tenants.py"} <= names
    assert not {n for n in names if n.startswith("ci/") or n in ("generate.py", "dashboard.py")}


def test_schema_names_every_default_and_nothing_else():
    schema = json.loads((CHART / "values.schema.json").read_text())

    assert _shape(schema) == _described_shape(
        yaml.safe_load((CHART / "values.yaml").read_text()), schema
    )


def _shape(schema):
    inner = schema.get("properties") if schema.get("additionalProperties") is False else None
    if inner is None:
        return None
    return {key: _shape(value) for key, value in inner.items() if key != "global"}


def _described_shape(default, schema):
    if schema.get("additionalProperties") is not False:
        return None
    return {k: _described_shape(v, schema["properties"][k]) for k, v in default.items()}


def test_every_values_file_of_the_chart_is_tried():
    assert len(VALUES_FILES) >= 5
    assert {path.suffix for path in VALUES_FILES} == {".yaml"}
    assert (ROOT / "helm/README.md").exists()
