"""The Dockerfile: nothing for hadolint to say, steps that are scripts, pinned bases, and nobody special at run time."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import shadow_client
from chart import CHART, Release
from dockerfile import read_stages
from shadow_kernels.build import ARCHITECTURES
from source_tree import ROOT, repository_files

HADOLINT = Path(sys.executable).parent / "hadolint"
STEPS_WITH_TESTS = {
    ".ci/setup.sh",
    ".docker/add_user.sh",
    ".docker/build_kernels.sh",
    ".docker/build_wheel.sh",
    ".docker/install_system.sh",
    ".docker/install_wheel.sh",
}
ARGUMENTS, STAGES = read_stages(ROOT / "Dockerfile")
TARGETS = [stage for stage in STAGES if stage.name in ("cpu", "gpu")]


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, path], capture_output=True, check=False, text=True)


def test_linter_has_nothing_to_say():
    done = hadolint(ROOT / "Dockerfile")

    assert (done.returncode, done.stdout) == (0, "")


def test_linter_finds_a_base_without_a_version(tmp_path):
    path = tmp_path / "Dockerfile"
    path.write_text("FROM python\nRUN apt-get install curl\n")

    assert hadolint(path).returncode == 1


def test_every_step_is_a_script_that_ci_runs():
    steps = [step for stage in STAGES for step in stage.all("RUN")]
    scripts = {re.sub(r"^/opt/shadowserve/bin/", ".docker/", step.words[0]) for step in steps}

    assert scripts == STEPS_WITH_TESTS
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_targets_are_the_two_engines_on_pinned_images():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [engine] = project["optional-dependencies"]["gpu"]

    assert [stage.name for stage in TARGETS] == ["cpu", "gpu"]
    assert TARGETS[1].base == f"vllm/vllm-openai:v{engine.removeprefix('vllm==')}"
    assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-\w+", TARGETS[0].base)
    for stage in TARGETS:
        base = next(i.text for i in stage.all("LABEL")).rpartition("base.name=")[2]
        assert base.strip('"').endswith(stage.base)


@pytest.mark.parametrize("stage", TARGETS, ids=lambda stage: stage.name)
def test_target_runs_as_the_charts_user_and_gets_signals(stage):
    user = Release().pod["securityContext"]["runAsUser"]

    assert stage.last("USER").text == f"{user}:{user}"
    assert stage.last("ENTRYPOINT").words == ["shadowserve"]
    assert stage.last("CMD").words == ["--help"]
    # Nothing is written after the user is set.
    names = [i.name for i in stage.instructions]
    assert not {"RUN", "COPY"} & set(names[names.index("USER") :])


@pytest.mark.parametrize("stage", TARGETS, ids=lambda stage: stage.name)
def test_target_is_checked_and_labelled(stage):
    labels = " ".join(i.text for i in stage.all("LABEL"))
    versions = [i.text for i in stage.all("ARG") if i.text.startswith("VERSION=")]

    assert stage.last("HEALTHCHECK").words[1] == "/opt/shadowserve/bin/healthcheck.py"
    for name in ("title", "description", "licenses", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert versions == [f"VERSION={shadow_client.__version__}"]


@pytest.mark.parametrize("stage", TARGETS, ids=lambda stage: stage.name)
def test_target_has_what_the_chart_names(stage):
    chart = " ".join(p.read_text() for p in CHART.glob("templates/**/*.*"))
    copied = {i.text.split()[-1] for i in stage.all("COPY")}

    assert "/opt/shadowserve/demo/base" in chart
    assert "/opt/shadowserve/demo" in copied
    assert {"/var/lib/shadowserve", "/var/cache/shadowserve"} == set(stage.last("VOLUME").words)


def test_kernels_are_compiled_for_three_generations():
    assert {name.rstrip("a") for name in ARCHITECTURES} == {"80", "90", "100"}


def context(folder: Path) -> Path:
    """Copy what .dockerignore lets into a build, as far as git has it."""
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    assert all((ROOT / path).exists() for path in kept)
    for path in repository_files():
        if any(path == Path(k) or Path(k) in path.parents for k in kept):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, folder / path)
    return folder


def test_context_holds_what_the_stages_copy_and_the_wheel_needs(tmp_path):
    root = context(tmp_path / "src")
    library = root / "kernels/shadow_kernels/libshadow_kernels.so"
    library.write_bytes(b"compiled")

    subprocess.run(
        [root / ".docker/build_wheel.sh", tmp_path / "wheel"],
        check=True,
        env=os.environ | {"PYTHON": sys.executable},
        stdout=subprocess.DEVNULL,
    )

    [wheel] = (tmp_path / "wheel").iterdir()
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, check=True, text=True
    ).stdout
    for name in (
        "shadow_kernels/libshadow_kernels.so",
        "shadow_server/demo/assets/base/model.safetensors",
        "shadow_server/cli.py",
        "dist-info/entry_points.txt",
    ):
        assert name in names
    assert "tests/" not in names
    assert (root / "server/shadow_server/demo/assets/prompts.json").exists()
    assert (root / "kernels/csrc/boundary.cu").exists()
    assert not (root / "tests").exists()
