"""docker-compose.yml: the demo, Prometheus and Grafana, on this machine only."""

import re
from pathlib import Path

import pytest
import yaml

from dockerfile import read_stages
from shadow_runtime.vllm_bridge.serving_args import make_parser, parse
from shadow_server.cli import add_server_arguments, check_server_arguments
from shadow_server.demo import demo_adapter_paths, demo_model_path
from source_tree import ROOT

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
DEFAULTS = re.compile(r"\$\{\w+:-([^}]*)\}")


def default_of(text: str) -> str:
    """Return a text of the file as it is without variables in the environment."""
    return DEFAULTS.sub(r"\1", text)


def binds(service: dict) -> list[tuple[str, str]]:
    split = [volume.split(":") for volume in service.get("volumes", [])]
    return [(parts[0], parts[1]) for parts in split]


def test_server_takes_its_command_line():
    first, *words = [default_of(word) for word in SERVICES["shadowserve"]["command"]]
    image, here = "/opt/shadowserve/demo", str(demo_model_path().parent)
    parser = make_parser()
    add_server_arguments(parser)

    args = parse(parser, [word.replace(image, here) for word in words])
    check_server_arguments(args)

    assert first == "serve"
    assert {adapter.name: adapter.path for adapter in args.adapter} == demo_adapter_paths()
    grace = SERVICES["shadowserve"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > args.shutdown_timeout


def test_server_is_built_from_a_target_of_the_dockerfile():
    server = SERVICES["shadowserve"]
    _, stages = read_stages(ROOT / "Dockerfile")

    target = default_of(server["build"]["target"])
    assert target in {stage.name for stage in stages}
    assert default_of(server["image"]).endswith(f"-{target}")


def test_server_may_no_more_than_in_the_chart():
    server = SERVICES["shadowserve"]

    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in server  # the image's own


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_on_the_loopback_address(name):
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_images_have_a_version(name):
    assert re.search(r":v?\d+\.\d+\.\d+$", SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_mounted_path_is_there(name):
    for source, _ in binds(SERVICES[name]):
        is_named = source in COMPOSE["volumes"]
        assert is_named or (ROOT / source).exists(), source


def test_prometheus_scrapes_the_server_and_reads_the_charts_rules():
    config = yaml.safe_load((ROOT / ".docker/prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    [rules] = config["rule_files"]

    assert job["static_configs"] == [{"targets": ["shadowserve:8000"]}]
    assert dict(binds(SERVICES["prometheus"]))["./helm/rules"] == str(Path(rules).parent)


def test_grafana_has_the_source_and_the_charts_dashboards():
    folder = ROOT / ".docker/grafana/provisioning"
    [source] = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((folder / "dashboards/shadowserve.yml").read_text())["providers"]

    assert source["url"] == "http://prometheus:9090"
    mounted = dict(binds(SERVICES["grafana"]))
    assert mounted["./helm/dashboards"] == provider["options"]["path"]
    assert mounted["./.docker/grafana/provisioning"] == "/etc/grafana/provisioning"
