"""The server's pods: how they start, update, end, what they may do, and where their state is."""

import pytest

from chart import NAME, VALUES_FILES, Release, read_values, refusal
from shadow_server.generation_watch import ANSWER_SECONDS

CASES = [pytest.param({}, id="defaults")] + [
    pytest.param(read_values(path), id=path.stem.removesuffix("-values")) for path in VALUES_FILES
]
GPU, FORGETFUL = {"gpu": {"count": 1}}, {"persistence": {"enabled": False}}


def values_of(stem: str) -> dict:
    [path] = [p for p in VALUES_FILES if p.stem == f"{stem}-values"]
    return read_values(path)


def mounts(container: dict) -> dict[str, dict]:
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


def environment(container: dict) -> dict[str, dict]:
    return {entry["name"]: entry for entry in container.get("env", [])}


@pytest.mark.parametrize("values", CASES)
def test_no_container_may_more_than_it_must(values):
    for name, pod in Release(values).pod_specs().items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"] + pod.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("values", CASES)
def test_every_folder_that_is_written_is_a_volume(values):
    release = Release(values)
    writable = {path for path, mount in mounts(release.server).items() if not mount.get("readOnly")}

    assert writable == {"/var/lib/shadowserve", "/var/cache/shadowserve", "/tmp", "/dev/shm"}
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR"):
        assert environment(release.server)[name]["value"].startswith("/var/cache/shadowserve")


@pytest.mark.parametrize("values", CASES)
def test_every_mount_has_its_volume_and_no_volume_is_left(values):
    for name, pod in Release(values).pod_specs().items():
        containers = pod["containers"] + pod.get("initContainers", [])
        mounted = {m["name"] for c in containers for m in c["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}, name


@pytest.mark.parametrize("values", CASES)
def test_selectors_find_the_servers_pods_and_no_others(values):
    release = Release(values)
    labels = release.get("Deployment")["spec"]["template"]["metadata"]["labels"]
    selector = release.get("Service")["spec"]["selector"]
    others = [o["spec"]["template"]["metadata"]["labels"] for o in release.all("Job")]
    others += [o["metadata"]["labels"] for o in release.all("Pod")]

    assert release.get("Deployment")["spec"]["selector"]["matchLabels"] == selector
    assert selector.items() <= labels.items()
    assert others
    assert not any(selector.items() <= other.items() for other in others)


@pytest.mark.parametrize(
    ("values", "max_surge"),
    [
        (GPU | FORGETFUL, 0),
        (FORGETFUL, 1),
        (values_of("fleet"), 0),
        (values_of("hpa"), 1),  # CPUs, a shared volume and a shared registry
    ],
)
def test_an_update_needs_no_second_gpu(values, max_surge):
    strategy = Release(values).get("Deployment")["spec"]["strategy"]

    assert strategy == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": max_surge, "maxUnavailable": 1 - max_surge},
    }


@pytest.mark.parametrize(
    "values",
    [
        {},
        GPU,
        # SQLite on a network file system: two nodes would spoil it.
        {"persistence": {"accessMode": "ReadWriteMany"}},
        {"persistence": {"existingClaim": "mine"}},
        {"registry": {"url": "postgresql://u@db/s"}},
    ],
)
def test_an_update_never_has_two_pods_on_one_servers_state(values):
    strategy = Release(values).get("Deployment")["spec"]["strategy"]

    assert strategy == {"type": "Recreate"}


def test_an_update_may_wait_for_the_old_pods_last_answer():
    values = {**values_of("gpu"), "drainSeconds": 7200, "preStopSeconds": 20}
    release = Release(values)
    [job] = release.all("Job")
    [publisher] = job["spec"]["template"]["spec"]["containers"]

    waited = 7200 + 20 + 1800
    assert release.get("Deployment")["spec"]["progressDeadlineSeconds"] > waited
    assert f"--ready-seconds={waited}" in publisher["args"]
    assert job["spec"]["activeDeadlineSeconds"] > waited


def test_base_model_and_adapters_come_from_one_hub():
    values = {"model": {"name": "org/model"}, "hub": {"endpoint": "http://hub:8081"}}
    release = Release(values)

    assert environment(release.server)["HF_ENDPOINT"]["value"] == "http://hub:8081"
    assert "--hub-endpoint=http://hub:8081" in release.arguments
    assert "HF_ENDPOINT" not in environment(Release().server)


@pytest.mark.parametrize(("drain", "pre_stop"), [(120, 5), (1, 0), (3600, 20)])
def test_a_pod_may_take_longer_to_end_than_its_drain(drain, pre_stop):
    release = Release({"drainSeconds": drain, "preStopSeconds": pre_stop})

    assert f"--shutdown-timeout={drain}" in release.arguments
    assert release.server["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(pre_stop)]
    assert release.pod["terminationGracePeriodSeconds"] >= drain + pre_stop + 30


@pytest.mark.parametrize(("seconds", "period"), [(1800, 10), (95, 10), (1_000_000, 7)])
def test_startup_probe_waits_for_a_model_to_load(seconds, period):
    release = Release({"probes": {"startupSeconds": seconds, "periodSeconds": period}})
    probe = release.server["startupProbe"]

    waited = probe["periodSeconds"] * probe["failureThreshold"]
    assert seconds <= waited < seconds + period
    assert release.get("Deployment")["spec"]["progressDeadlineSeconds"] > waited


def test_probes_ask_the_servers_own_routes():
    server = Release().server

    paths = {
        k: server[f"{k}Probe"]["httpGet"]["path"] for k in ("startup", "readiness", "liveness")
    }
    assert paths == {
        "startup": "/health/ready",
        "readiness": "/health/ready",
        "liveness": "/health/live",
    }


def test_probes_wait_longer_than_an_answer_takes_and_ask_while_the_server_watches():
    for server in (Release().server, Release({"probes": {"timeoutSeconds": 2}}).server):
        assert server["readinessProbe"]["timeoutSeconds"] >= 2 * ANSWER_SECONDS
    seconds = {"timeoutSeconds": 1, "periodSeconds": 31}
    told = [refusal({"probes": {name: value}}) for name, value in seconds.items()]
    assert ["timeoutSeconds" in told[0], "periodSeconds" in told[1]] == [True, True]


def test_gpus_are_asked_for_beside_other_resources():
    values = values_of("gpu")
    resources = Release(values).server["resources"]

    assert resources["limits"] == {"memory": "96Gi", "nvidia.com/gpu": "1"}
    assert resources["requests"]["nvidia.com/gpu"] == "1"
    assert Release().server["resources"] == {}


def test_image_follows_engine_tag_and_digest():
    assert Release().server["image"] == "shadowserve:0.1.0-cpu"
    assert Release(GPU).server["image"] == "shadowserve:0.1.0-gpu"
    assert Release({"image": {"tag": "x"}}).server["image"] == "shadowserve:x"
    assert "shadowserve@sha256:0123" in Release(values_of("hpa")).server["image"]


def test_large_numbers_stay_whole():
    release = Release({"runAsUser": 1_000_650_000, "slots": {"maxHost": 2_000_000}})

    assert release.pod["securityContext"]["runAsUser"] == 1_000_650_000
    assert "--max-host-adapters=2000000" in release.arguments


def test_state_is_on_the_volume_that_survives_the_release():
    release = Release()
    claim = release.get("PersistentVolumeClaim")
    state = next(v for v in release.pod["volumes"] if v["name"] == "state")

    assert "--state-dir=/var/lib/shadowserve/state" in release.arguments
    assert state["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert Release(values_of("hpa")).all("PersistentVolumeClaim") == []
    assert Release(FORGETFUL).all("PersistentVolumeClaim") == []


def test_secrets_are_references_and_no_part_of_the_command_line():
    release = Release(values_of("fleet"))
    known = environment(release.server)

    assert known["PGPASSWORD"]["valueFrom"]["secretKeyRef"]["name"] == "shadowserve-postgres"
    assert known["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "hub-token", "key": "token"}
    assert release.all("Secret") == []


def test_the_hub_is_off_unless_something_comes_from_it():
    assert environment(Release().server)["HF_HUB_OFFLINE"]["value"] == "1"
    assert "HF_HUB_OFFLINE" not in environment(Release(values_of("fleet")).server)
    assert "HF_HUB_OFFLINE" not in environment(Release({"hub": {"allow": ["o/*"]}}).server)


def test_tenants_file_is_made_before_the_server_begins():
    release = Release(values_of("tenants"))
    [maker] = release.pod["initContainers"]
    [output] = [a.partition("=")[2] for a in maker["args"] if a.startswith("--output=")]

    assert maker["restartPolicy"] == "Always"
    assert output in maker["startupProbe"]["exec"]["command"]
    assert f"--tenants-file={output}" in release.arguments
    assert "--allow-unauthenticated" not in release.arguments
    assert mounts(release.server)["/run/shadowserve"]["readOnly"] is True
    assert "/etc/shadowserve/keys" not in mounts(release.server)


def test_every_referenced_key_is_a_file_for_the_maker_alone():
    release = Release(values_of("tenants"))
    keys = next(v for v in release.pod["volumes"] if v["name"] == "keys")["projected"]

    paths = [item["path"] for source in keys["sources"] for item in source["secret"]["items"]]
    assert paths == ["acme-shadowserve/key", "acme-shadowserve/next", "ops-shadowserve/key"]
    assert keys["defaultMode"] == 0o440


def test_changed_tenants_restart_nothing_and_changed_options_do():
    def annotations(**changed):
        values = values_of("tenants") | changed
        return Release(values).get("Deployment")["spec"]["template"]["metadata"]["annotations"]

    fewer = values_of("tenants")["tenants"][1:]
    assert annotations(tenants=fewer) == annotations()
    assert annotations(config={"max-model-len": 512}) != annotations()


def test_job_publishes_what_the_command_line_cannot():
    release = Release(values_of("gpu"))
    [job] = release.all("Job")
    [container] = job["spec"]["template"]["spec"]["containers"]

    assert job["metadata"]["annotations"]["helm.sh/hook"].startswith("post-install,post-upgrade")
    assert f"--url=http://{NAME}:8000" in container["args"]
    assert job["spec"]["activeDeadlineSeconds"] > release.server["startupProbe"]["failureThreshold"]
    assert Release({"adapters": [{"name": "a", "path": "/a"}]}).all("Job") == []


def test_budget_and_scalers_aim_at_the_deployment():
    for stem, kind in (("fleet", "ScaledObject"), ("hpa", "HorizontalPodAutoscaler")):
        release = Release(values_of(stem))
        deployment = release.get("Deployment")
        assert release.get(kind)["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        # Two owners of one number would fight.
        assert "replicas" not in deployment["spec"]
    assert Release().get("Deployment")["spec"]["replicas"] == 1


def test_pool_and_route_lead_to_the_servers_port():
    release = Release(values_of("fleet"))
    pool, route = release.get("InferencePool"), release.get("HTTPRoute")
    [rule] = route["spec"]["rules"]

    assert pool["spec"]["selector"]["matchLabels"] == release.get("Service")["spec"]["selector"]
    assert pool["spec"]["targetPorts"] == [{"number": 8000}]
    assert pool["spec"]["endpointPickerRef"]["name"] == "llm-endpoint-picker"
    assert rule["backendRefs"][0]["name"] == pool["metadata"]["name"]
    assert rule["timeouts"] == {"request": "0s"}


def test_route_without_a_pool_leads_to_the_service():
    values = {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}}
    route = Release(values | {"allowUnauthenticated": True}).get("HTTPRoute")

    assert route["spec"]["rules"][0]["backendRefs"] == [{"name": NAME, "port": 8000}]
