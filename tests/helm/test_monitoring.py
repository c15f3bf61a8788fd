"""Dashboards and alerts: queries parse and read series and labels that the server has; alerts fire when they must."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from chart import VALUES_FILES, Release, read_values
from promql import (
    ALERTS,
    DASHBOARDS,
    Query,
    alert_queries,
    dashboard_queries,
    find_syntax_error,
    known_series,
    promtool,
    series_of,
)
from shadow_server.observability.series import ALL_SERIES
from source_tree import ROOT

QUERIES = dashboard_queries() + alert_queries()
WITH_MONITORING = read_values(next(p for p in VALUES_FILES if p.stem == "tenants-values"))
TARGET_LABELS = {"namespace", "job", "instance", "service", "le"}
PAGES = {path.stem: json.loads(path.read_text()) for path in DASHBOARDS}


def test_every_query_parses():
    assert len(QUERIES) > 50
    assert find_syntax_error(QUERIES) is None


def test_a_query_that_does_not_parse_is_found():
    assert "parse error" in find_syntax_error([Query("here", "sum(rate(a[5m]")])


def test_every_series_is_one_that_metrics_has():
    known = known_series()

    unknown = [(q.place, s) for q in QUERIES for s in series_of(q.expression) if s not in known]
    assert unknown == []
    assert all(series_of(query.expression) for query in QUERIES)


def test_series_are_taken_out_of_queries():
    expression = (
        'sum by (le, job) (rate(a_bucket{x="y",z=~"b.*"}[5m])) / on (job) vllm:c > 14.4 * 0.01 '
        'or label_replace(d, "e", "f", "g", "h") and absent(i{j="k"} offset 1h)'
    )

    assert series_of(expression) == {"a_bucket", "vllm:c", "d", "i"}


def test_misspelled_series_is_unknown():
    known = known_series()

    assert "shadow_requests_total" in known
    assert "vllm:prefix_cache_hits_total" in known
    assert "vllm:kv_cache_usage_perc" in known
    assert not {"shadow_requests", "shadow_request_total", "vllm:prefix_cache_hits"} & set(known)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.place)
def test_selected_and_grouped_labels_are_the_series(query):
    known = known_series()
    labels = [known[name] for name in series_of(query.expression)]
    selectors = re.findall(r"\{([^}]*)\}", query.expression)
    used = {name for s in selectors for name in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", s)}
    used |= {
        n.strip() for g in re.findall(r"by \(([^)]*)\)", query.expression) for n in g.split(",")
    }

    if None not in labels:
        assert used - TARGET_LABELS <= {name for own in labels for name in own}


def test_latency_objective_is_a_bucket():
    [first_token] = [s for s in ALL_SERIES if s.name == "shadow_time_to_first_token_seconds"]
    bounds = {float(b) for q in alert_queries() for b in re.findall(r'le="([\d.]+)"', q.expression)}

    assert bounds == {2.5}
    assert bounds <= set(first_token.bounds)


def test_every_alert_fires_when_it_must_and_only_then(tmp_path):
    done = run_alert_tests(tmp_path, ALERTS.read_text())

    assert done.returncode == 0, done.stdout + done.stderr
    tried = set(re.findall(r"alertname: (\w+)", (ROOT / "tests/helm/alert.test.yaml").read_text()))
    assert tried == {query.place for query in alert_queries()}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("14.4 * 0.01", "144 * 0.01"),
        ("[5m]", "[1h]"),
        ("shadow_oldest_waiting_seconds) > 30", "shadow_oldest_waiting_seconds) > 3"),
        ('adapter!="__base__"', 'adapter!=""'),
        ('or sum by (namespace, job, instance) (shadow_adapters{state="failed"}) > 0', ""),
        ("shadow_engine_stalled_seconds) > 30", "shadow_engine_stalled_seconds) >= 0"),
    ],
)
def test_a_wrong_alert_is_found(tmp_path, right, wrong):
    text = ALERTS.read_text()
    assert right in text

    assert run_alert_tests(tmp_path, text.replace(right, wrong)).returncode == 1


def run_alert_tests(folder: Path, alerts: str):
    (folder / "alerts.yaml").write_text(alerts)
    shutil.copy(ROOT / "tests/helm/alert.test.yaml", folder)
    return promtool("test", "rules", folder / "alert.test.yaml")


@pytest.mark.parametrize(
    "rule", yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"], ids=lambda r: r["alert"]
)
def test_alert_says_what_is_wrong_and_how_bad(rule):
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}


def test_pages_are_the_three_that_operators_need():
    assert set(PAGES) == {"adapter", "fleet", "tenant"}
    read = {
        s
        for q in dashboard_queries()
        if q.place.startswith("adapter")
        for s in series_of(q.expression)
    }

    assert read >= {
        "shadow_time_to_first_token_seconds_bucket",
        "shadow_inter_token_latency_seconds_bucket",
        "vllm:lora_adapter_loaded",
        "shadow_adapter_load_seconds_count",
        "shadow_adapter_evictions_total",
        "shadow_oldest_waiting_seconds",
    }


def test_every_series_of_the_server_is_on_a_page_or_in_an_alert():
    read = {s for query in QUERIES for s in series_of(query.expression)}
    unread = {
        series.name
        for series in ALL_SERIES
        if series.name.startswith("shadow_") and not any(s.startswith(series.name) for s in read)
    }

    assert unread == {"shadow_adapters_pinned", "shadow_adapter_running_requests"}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_panels_fill_rows_and_do_not_overlap(page):
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in page["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in page["panels"]}) == len(page["panels"])


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_every_variable_that_a_query_names_is_on_its_page(page):
    variables = {variable["name"] for variable in page["templating"]["list"]}
    named = set(re.findall(r"\$\{?(\w+)", json.dumps(page["panels"] + page["templating"]["list"])))

    assert named - {"__rate_interval", "__all"} <= variables


def test_chart_ships_every_page_and_every_alert_but_the_disabled():
    release = Release(WITH_MONITORING)
    shipped = {
        n: json.loads(t)
        for o in release.all("ConfigMap")
        for n, t in o["data"].items()
        if n in page_files()
    }
    [group] = release.get("PrometheusRule")["spec"]["groups"]
    rules = {rule["alert"]: rule for rule in group["rules"]}
    [source] = yaml.safe_load(ALERTS.read_text())["groups"]

    assert shipped == {f"{name}.json": page for name, page in PAGES.items()}
    assert rules == {r["alert"]: r for r in source["rules"] if r["alert"] != "ShadowServeRefusing"}


def page_files() -> set[str]:
    return {path.name for path in DASHBOARDS}


def test_pages_carry_the_sidecars_label():
    found = [o for o in Release(WITH_MONITORING).all("ConfigMap") if page_files() & set(o["data"])]

    assert {o["metadata"]["labels"]["grafana_dashboard"] for o in found} == {"1"}
    assert len(found) == len(PAGES)


def test_own_groups_are_added():
    values = {"metrics": {"prometheusRule": {"enabled": True, "extraGroups": [{"name": "own"}]}}}

    groups = Release(values).get("PrometheusRule")["spec"]["groups"]
    assert [group["name"] for group in groups] == ["shadowserve", "own"]


def test_monitor_reads_metrics_of_the_service_with_the_admins_key():
    release = Release(WITH_MONITORING)
    monitor = release.get("ServiceMonitor")["spec"]
    [endpoint] = monitor["endpoints"]

    assert (
        monitor["selector"]["matchLabels"].items()
        <= release.get("Service")["metadata"]["labels"].items()
    )
    assert endpoint["port"] in {port["name"] for port in release.get("Service")["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    assert endpoint["authorization"]["credentials"] == {"name": "ops-shadowserve", "key": "key"}


def test_scalers_go_by_the_queue():
    [path] = [p for p in VALUES_FILES if p.stem == "fleet-values"]
    [trigger] = Release(read_values(path)).get("ScaledObject")["spec"]["triggers"]
    query = Query("keda", trigger["metadata"]["query"])

    assert find_syntax_error([query]) is None
    assert series_of(query.expression) == {"vllm:num_requests_waiting"}
    assert 'namespace="serving"' in query.expression
    # A failed scrape must not look like an empty queue.
    assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_composed_prometheus_takes_its_configuration(tmp_path):
    config = (ROOT / ".docker/prometheus.yml").read_text()
    path = tmp_path / "prometheus.yml"
    path.write_text(config.replace("/etc/prometheus/rules", str(ALERTS.parent)))

    done = promtool("check", "config", path)
    assert done.returncode == 0, done.stderr
    assert "9 rules found" in done.stdout
