"""The server's own parser takes every command line that the chart makes, and it means what the values say."""

import json

import pytest

from chart import VALUES_FILES, Release, read_values
from shadow_runtime.vllm_bridge.serving_args import DRAIN_SECONDS, make_parser, parse
from shadow_server.cli import add_server_arguments, check_server_arguments
from shadow_server.demo_command import serve_arguments
from shadow_server.tenancy.tenants_file import new_document

CASES = [pytest.param({}, id="defaults")] + [
    pytest.param(read_values(path), id=path.stem.removesuffix("-values")) for path in VALUES_FILES
]


@pytest.fixture
def parsed(tmp_path):
    """Return what the server makes of a release's command line, with the pod's files at other places."""

    def places(release: Release) -> dict[str, str]:
        config, tenants, root = (tmp_path / name for name in ("serve.yaml", "t.json", "adapters"))
        config.write_text(release.config["serve.yaml"])
        tenants.write_text(new_document().model_dump_json())
        root.mkdir(exist_ok=True)
        tenants_file = f"--tenants-file={release.tenants_path}"
        return {
            "/etc/shadowserve/config/serve.yaml": str(config),
            tenants_file: f"--tenants-file={tenants}",
            "--adapter-root=/adapters": f"--adapter-root={root}",
        }

    def run(release: Release):
        moved = places(release)
        parser = make_parser()
        add_server_arguments(parser)
        args = parse(parser, [moved.get(word, word) for word in release.arguments])
        check_server_arguments(args)
        return args

    return run


@pytest.mark.parametrize("values", CASES)
def test_parser_takes_it(parsed, values):
    release = Release(values)
    args = parsed(release)

    assert (args.host, args.port) == ("0.0.0.0", 8000)
    assert str(args.state_dir) == "/var/lib/shadowserve/state"
    assert args.shutdown_timeout == 120
    assert (args.tenants_file is None) == args.allow_unauthenticated


def test_options_and_adapters_arrive(parsed):
    [path] = [p for p in VALUES_FILES if p.stem == "gpu-values"]
    args = parsed(Release(read_values(path)))

    assert args.max_model_len == 16384
    assert args.enable_prefix_caching is False
    assert args.max_resident_adapters == 32
    assert args.hub_allow == ["acme/*"]
    assert [(a.name, str(a.path)) for a in args.adapter] == [
        ("support", "/adapters/support"),
        ("narrow", "/adapters/narrow"),
    ]
    assert str(args.adapter[1].backbone_config) == "/adapters/narrow/config.json"


def test_fleet_options_arrive(parsed):
    [path] = [p for p in VALUES_FILES if p.stem == "fleet-values"]
    args = parsed(Release(read_values(path)))

    assert args.tensor_parallel_size == 2
    assert args.compilation_config.cudagraph_capture_sizes == [1, 8, 32]
    assert args.registry_url.reveal().startswith("postgresql://shadowserve@postgres.data.svc:6432/")
    assert args.otlp_traces_endpoint == "http://collector.tracing:4317"


def test_the_default_release_is_the_demo(parsed, tmp_path):
    args = parsed(Release())
    words = serve_arguments(tmp_path)
    parser = make_parser()
    add_server_arguments(parser)
    demo = parse(parser, words)

    for name in ("served_model_name", "max_model_len", "enforce_eager", "gpu_memory_utilization"):
        assert getattr(args, name) == getattr(demo, name), name


def test_the_drain_is_longer_than_the_servers_default():
    assert Release().pod["terminationGracePeriodSeconds"] > DRAIN_SECONDS


def test_publishers_file_is_json():
    [path] = [p for p in VALUES_FILES if p.stem == "gpu-values"]
    adapters = json.loads(Release(read_values(path)).config["adapters.json"])

    assert [adapter["name"] for adapter in adapters] == ["support", "narrow", "legal"]
