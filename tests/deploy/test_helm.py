"""The Helm chart: what it renders is what a cluster takes, and what the service needs there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import orjson
import promql_parser
import pytest
import yaml
from tests.deploy.chart import CHART, EVERYTHING, MINIMAL, NAMESPACE, VALUES, Object, helm, render, template
from tests.deploy.test_monitoring import RULES, samples, used
from tests.service import ROOT, free_port
from tests.variables import settings_by_variable

SCHEMA = orjson.loads((CHART / "values.schema.json").read_bytes())
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
DEPLOYMENT_ID = "0d5c9a52-6d3e-4e0b-9a3a-0f5e3f1d2c4b"
VARIANTS: dict[str, tuple[Path, tuple[str, ...]]] = {
    "minimal": (MINIMAL, ()),
    "everything": (EVERYTHING, ()),
    "external metrics": (EVERYTHING, ("worker.autoscaling.by=hpa", "api.maxUnavailable=null")),
    "no keys, no policies, no account": (
        MINIMAL,
        ("auth.required=false", "auth.keysSecret=", "networkPolicy.enabled=false", "serviceAccount.create=false"),
    ),
    "made elsewhere": (MINIMAL, (f"pipeline.deploymentId={DEPLOYMENT_ID}", "service.type=LoadBalancer")),
    "another controller": (EVERYTHING, ("ingress.controller=other", "ingress.tlsSecret=", "fullnameOverride=x")),
}
KUBERNETES = ("1.27", "1.31", "1.35")
CUSTOM = ("keda.sh/v1alpha1", "monitoring.coreos.com/v1")
"""Of operators, whose schemas Kubernetes' own don't have."""
OWNED = {  # by other values than "settings"
    "PIPESERVE_ARTIFACTS_URL",
    "PIPESERVE_DRAIN_SECONDS",
    "PIPESERVE_KEYS_FILE",
    "PIPESERVE_MAX_BODY",
    "PIPESERVE_REDIS_URL",
    "PIPESERVE_REQUIRE_AUTH",
    "PIPESERVE_TOKEN_SECRET",
    "PIPESERVE_WEBHOOK_SECRET",
    "PIPESERVE_WORKER_CONCURRENCY",
    "PIPESERVE_WORKER_PROCESSES",
    "ZENML_PIPELINE_DEPLOYMENT_ID",
    "ZENML_SERVICE_HOST",
    "ZENML_SERVICE_PORT",
}
STANDARD = {  # of OpenTelemetry's SDK, which reads them itself
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
}
UNUSED = {
    "PIPESERVE_DATA_DIR",  # the embedded store's
    "ZENML_SERVICE_WORKERS",  # pods instead: each is scraped by itself
    "ZENML_SERVING_AUTH_KEY",  # the file of keys instead: a key is replaced without a restart
}

variants = pytest.mark.parametrize(("file", "settings"), VARIANTS.values(), ids=VARIANTS)
components = pytest.mark.parametrize("component", ["api", "worker"])


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize("file", [MINIMAL, EVERYTHING], ids=lambda file: file.stem)
def test_helm_finds_nothing_to_say(file: Path) -> None:
    done = helm("lint", "--strict", CHART, "--values", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@variants
@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_one_that_kubernetes_takes(file: Path, settings: tuple[str, ...], version: str) -> None:
    rendered = render(file, *settings)
    checked = [o for o in rendered.objects if o["apiVersion"] not in CUSTOM]
    for found in checked:
        kubernetes_validate.validate(found, version, strict=True)
    assert len(checked) >= 6


def test_what_kubernetes_does_not_take_is_found() -> None:
    service = render(MINIMAL).of("Service")
    wrong = {**service, "spec": {**service["spec"], "prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.31", strict=True)


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        (["redis.existingSecret="], "redis"),
        (["auth.keysSecret="], "keysSecret"),
        (["auth.tokenSecret.existingSecret="], "tokenSecret"),
        (["artifacts.existingClaim="], "artifacts"),
        (["artifacts.url=s3://bucket"], "artifacts"),
        (["replicas=3"], "replicas"),
        (["api.replicaCount=3"], "replicaCount"),
        (["api.replicas=many"], "replicas"),
        (["settings.PIPESERVE_RESULT_TLT=5"], "PIPESERVE_RESULT_TLT"),
        (["settings.PIPESERVE_TOKEN_SECRET=abc"], "PIPESERVE_TOKEN_SECRET"),
        (["settings.PIPESERVE_REQUIRE_AUTH=false"], "PIPESERVE_REQUIRE_AUTH"),
        (["drainSeconds=-1"], "drainSeconds"),
        (["pipeline.target=quickstart"], "target"),
        (["pipeline.target="], "pipeline"),
        (["pipeline.deploymentId=newest"], "deploymentId"),
        (["ingress.enabled=true"], "host"),
        (["serviceMonitor.enabled=true"], "keySecret"),
        (["worker.autoscaling.by=cpu"], "by"),
        (["networkPolicy.redisPorts={}"], "redisPorts"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_values_that_cannot_be_meant_are_refused_by_name(settings: list[str], place: str) -> None:
    done = template(MINIMAL, *settings)
    assert done.returncode != 0
    assert re.search(rf"values don't meet the specifications.*{place}", done.stderr, re.DOTALL), done.stderr


def test_without_any_values_it_says_what_is_missing(tmp_path: Path) -> None:
    (empty := tmp_path / "values.yaml").write_text("{}")
    done = template(empty)
    assert done.returncode != 0
    for name in ("redis", "existingSecret", "keysSecret", "tokenSecret", "artifacts"):
        assert name in done.stderr


def test_values_and_their_schema_have_the_same_names_and_refuse_all_others() -> None:
    for place, values, schema in branches(VALUES, SCHEMA):
        assert schema["additionalProperties"] is False, place
        names = set(schema["properties"]) - ({"global"} if place == "" else set())
        assert place == ".settings" or names == set(values), place


def branches(values: Object, schema: Object, place: str = "") -> Iterator[tuple[str, Object, Object]]:
    yield place, values, schema
    for name, below in schema["properties"].items():
        if below.get("type") == "object" and "properties" in below:
            yield from branches(values[name], below, f"{place}.{name}")


@variants
def test_every_variable_is_one_that_pipeserve_reads(file: Path, settings: tuple[str, ...]) -> None:
    rendered = render(file, *settings)
    known = set(settings_by_variable())
    for component in ("api", "worker"):
        names = set(rendered.environment(component)) - {"MODEL"}  # that one is the pipeline's
        assert names <= known, names - known
        assert "PIPESERVE_REDIS_URL" in names


def test_the_schema_names_every_setting_that_has_no_value_of_its_own() -> None:
    named = set(SCHEMA["properties"]["settings"]["properties"])
    assert named == set(settings_by_variable()) - OWNED - UNUSED | STANDARD
    rendered = render(EVERYTHING)
    assert set(rendered.environment("api")) | set(rendered.environment("worker")) >= OWNED - {
        "ZENML_PIPELINE_DEPLOYMENT_ID"  # from the file that the pod made
    }


def test_numbers_are_written_as_they_were_meant() -> None:
    environment = render(EVERYTHING).environment("api")
    assert environment["PIPESERVE_RESULT_TTL"] == "2000000"
    assert environment["PIPESERVE_TIMEOUT_GRACE"] == "0.5"
    assert environment["PIPESERVE_EXPOSE_TRACEBACKS"] == "false"


@variants
def test_pods_are_given_longer_than_what_they_do_at_their_end(file: Path, settings: tuple[str, ...]) -> None:
    rendered = render(file, *settings)
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    drain_there = int(compose["x-environment"]["PIPESERVE_DRAIN_SECONDS"])
    for component in ("api", "worker"):
        pod = rendered.pod(component)
        stop = (
            pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
        )
        after = int(compose["services"][component]["stop_grace_period"].removesuffix("s")) - drain_there
        drain = int(rendered.environment(component)["PIPESERVE_DRAIN_SECONDS"])
        assert pod["terminationGracePeriodSeconds"] >= int(stop[1]) + drain + after
    assert rendered.pod("api")["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][0] == "sleep"


@variants
def test_nothing_runs_as_root_or_can_become_it(file: Path, settings: tuple[str, ...]) -> None:
    """What the Pod Security Standard "restricted" asks for, and a read-only file system."""
    pods = render(file, *settings).pods()
    assert len(pods) == 3
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    for pod in pods:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert f"USER {security['runAsUser']}:{security['runAsGroup']}" in dockerfile
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in containers(pod):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert not {"runAsUser", "runAsNonRoot", "seccompProfile"} & set(own), "they would win over the pod's"
            assert container["resources"]["limits"]["memory"]
        assert not any("hostPath" in volume for volume in pod.get("volumes", []))


def test_keys_are_demanded_and_mounted_so_that_new_ones_arrive() -> None:
    assert VALUES["auth"]["required"] is True
    rendered = render(MINIMAL)
    environment = rendered.environment("api")
    assert environment["PIPESERVE_REQUIRE_AUTH"] == "true"
    pod = rendered.pod("api")
    [mount] = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "keys"]
    assert "subPath" not in mount
    assert Path(environment["PIPESERVE_KEYS_FILE"]) == Path(mount["mountPath"]) / "keys.toml"
    [volume] = [v for v in pod["volumes"] if v["name"] == "keys"]
    assert volume["secret"]["secretName"] == "pipeserve-keys"
    assert "pipeserve-keys" not in str(rendered.pod("worker")), "workers need no keys"


def test_secrets_come_from_secrets() -> None:
    rendered = render(EVERYTHING)
    environment = rendered.environment("api")
    assert environment["PIPESERVE_REDIS_URL"] == "pipeserve/url"
    assert environment["PIPESERVE_TOKEN_SECRET"] == "pipeserve/token-secret"
    assert environment["PIPESERVE_WEBHOOK_SECRET"] == "pipeserve/webhook-secret"
    assert not rendered.all_of("Secret")
    assert not rendered.all_of("ConfigMap")


@variants
def test_whatever_names_something_names_what_is_there(file: Path, settings: tuple[str, ...]) -> None:
    rendered = render(file, *settings)
    deployments = {o["metadata"]["name"]: o for o in rendered.all_of("Deployment")}
    labels = [o["spec"]["template"]["metadata"]["labels"] for o in deployments.values()]
    assert all("helm.sh/chart" not in found for found in labels), "another chart would start all pods anew"
    selectors = [o["spec"]["selector"]["matchLabels"] for o in deployments.values()]
    selectors += [o["spec"]["selector"]["matchLabels"] for o in rendered.all_of("PodDisruptionBudget")]
    selectors += [o["spec"]["podSelector"]["matchLabels"] for o in rendered.all_of("NetworkPolicy")]
    selectors.append(rendered.of("Service")["spec"]["selector"])
    for selector in selectors:
        assert [selector.items() <= found.items() for found in labels].count(True) == 1
    for scaler in rendered.all_of("HorizontalPodAutoscaler") + rendered.all_of("ScaledObject"):
        scaled = deployments[scaler["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in scaled["spec"], "an upgrade would set them back"
    for pod in rendered.pods():
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in containers(pod):
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
    for deployment in deployments.values():
        ports = deployment["spec"]["template"]["spec"]["containers"][0].get("ports", [])
        assert [port["name"] for port in ports] == (["http"] if deployment["metadata"]["name"].endswith("api") else [])
    assert all(o["metadata"]["namespace"] == NAMESPACE for o in rendered.objects)
    assert all(len(o["metadata"]["name"]) <= 63 for o in rendered.objects)


def test_names_stay_short_enough_whatever_the_release_is_called() -> None:
    for found in render(MINIMAL, f"fullnameOverride={'x' * 120}").objects:
        assert len(found["metadata"]["name"]) <= 63


def test_probes_ask_for_paths_that_need_no_key() -> None:
    from fastapi.routing import APIRoute

    from pipeserve_api.routes import operations

    paths = {route.path for route in operations.router.routes if isinstance(route, APIRoute)}
    [container] = render(MINIMAL).pod("api")["containers"]
    asked = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert set(asked.values()) <= paths
    assert asked["livenessProbe"] == "/health/live", "a store that is away must not restart anything"
    assert asked["readinessProbe"] == "/health/ready"


def test_the_ingress_holds_no_stream_back_and_has_the_limits_of_the_service() -> None:
    rendered = render(EVERYTHING)
    ingress = rendered.of("Ingress")
    found = ingress["metadata"]["annotations"]
    nginx = {name.split("/")[1]: value for name, value in found.items() if name.startswith("nginx.")}
    assert nginx["proxy-buffering"] == "off"
    assert int(nginx["proxy-read-timeout"]) > 300, "a long poll may be silent for so long"
    assert nginx["proxy-body-size"] == rendered.environment("api")["PIPESERVE_MAX_BODY"] == "20000000"
    assert "non_idempotent" not in nginx["proxy-next-upstream"]
    assert found["cert-manager.io/cluster-issuer"] == "letsencrypt"
    assert ingress["spec"]["tls"][0]["hosts"] == [ingress["spec"]["rules"][0]["host"]]
    other = render(EVERYTHING, "ingress.controller=other").of("Ingress")["metadata"]["annotations"]
    assert not any(name.startswith("nginx.") for name in other)
    name = r"ingress.annotations.nginx\.ingress\.kubernetes\.io/proxy-buffer-size=32k"
    assert "32k" in render(EVERYTHING, name).of("Ingress")["metadata"]["annotations"].values()


def test_pods_are_reached_and_reach_only_as_the_policies_say() -> None:
    rendered = render(MINIMAL)
    assert rendered.of("NetworkPolicy", "-worker")["spec"]["ingress"] == []
    [rule] = rendered.of("NetworkPolicy", "-api")["spec"]["ingress"]
    assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert all("namespaceSelector" in peer or "podSelector" in peer for peer in rule["from"])
    for policy in rendered.all_of("NetworkPolicy"):
        assert sorted(policy["spec"]["policyTypes"]) == ["Egress", "Ingress"]
        ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
        assert ports == {53, 6379}
    wide = render(EVERYTHING).of("NetworkPolicy", "-worker")["spec"]["egress"]
    assert {"ipBlock": {"cidr": "10.0.0.7/32"}} in [peer for rule in wide for peer in rule["to"]]
    assert {443, 26379} <= {port["port"] for rule in wide for port in rule["ports"]}


async def test_workers_are_scaled_by_metrics_that_exist() -> None:
    there = {name: labels | {"namespace", "service"} for name, labels in (await samples()).items()}
    triggers = render(EVERYTHING).of("ScaledObject")["spec"]["triggers"]
    asked: list[str] = []
    for trigger in triggers:
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        expression = trigger["metadata"]["query"]
        assert expression.startswith("max("), "each API process tells the same: a sum would count them often"
        for name, labels in used(promql_parser.parse(expression)):
            assert name in there, f"there is no {name}"
            assert labels <= there[name]
            asked.append(name)
    assert asked == ["pipeserve_oldest_job_age_seconds", "pipeserve_worker_slots_busy"]
    hpa = render(EVERYTHING, "worker.autoscaling.by=hpa").of("HorizontalPodAutoscaler", "-worker")
    assert {metric["external"]["metric"]["name"] for metric in hpa["spec"]["metrics"]} == set(asked)


def test_a_worker_pod_counts_as_many_slots_as_it_has() -> None:
    settings = ["worker.processes=3", "worker.concurrency=10", "worker.autoscaling.targetBusy=50"]
    rendered = render(EVERYTHING, *settings)
    environment = rendered.environment("worker")
    slots = int(environment["PIPESERVE_WORKER_PROCESSES"]) * int(environment["PIPESERVE_WORKER_CONCURRENCY"])
    [_, busy] = rendered.of("ScaledObject")["spec"]["triggers"]
    assert int(busy["metadata"]["threshold"]) == slots * 50 // 100 == 15


def test_prometheus_scrapes_what_the_alerts_ask_for() -> None:
    [endpoint] = render(EVERYTHING).of("ServiceMonitor")["spec"]["endpoints"]
    [job] = [rule["replacement"] for rule in endpoint["relabelings"] if rule["targetLabel"] == "job"]
    assert any(f'job="{job}"' in rule["expr"] for rule in RULES)
    assert endpoint["params"] == {"format": ["prometheus"]}
    assert endpoint["authorization"]["credentials"] == {"name": "prometheus-key", "key": "key"}
    assert endpoint["port"] in [port["name"] for port in render(EVERYTHING).of("Service")["spec"]["ports"]]


def test_notes_warn_of_what_is_open(tmp_path: Path) -> None:
    """Read by way of an object, because Helm 3 shows them to whoever has a cluster only."""
    shutil.copytree(CHART, chart := tmp_path / "pipeserve")
    shutil.copy(CHART / "templates" / "NOTES.txt", chart / "notes.txt")
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: notes\n"
    text += 'data:\n  notes: {{ tpl (.Files.Get "notes.txt") . | quote }}\n'
    (chart / "templates" / "notes.yaml").write_text(text)

    def notes(file: Path, *settings: str) -> str:
        done = template(file, *settings, chart=chart)
        assert done.returncode == 0, done.stderr
        [found] = [o for o in yaml.safe_load_all(done.stdout) if o and o["kind"] == "ConfigMap"]
        return found["data"]["notes"]

    assert "WARNING" not in notes(MINIMAL)
    assert "https://pipelines.example.com/" in notes(EVERYTHING)
    assert "WARNING" not in notes(EVERYTHING)
    assert "whoever reaches it can call it" in notes(MINIMAL, "auth.required=false", "auth.keysSecret=")
    assert "no TLS" in notes(MINIMAL, "ingress.enabled=true", "ingress.host=a.example")
    assert "NetworkPolicy" in notes(MINIMAL, "networkPolicy.enabled=false")
    assert "neither a bucket" in notes(MINIMAL, "artifacts.existingClaim=", "artifacts.url=s3://bucket")


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["name"] == project["name"]
    assert chart["appVersion"] == project["version"]
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    for image in ("api", "worker"):
        assert f" AS {image}\n" in dockerfile
        assert VALUES["image"][image] == f"pipeserve-{image}"


def test_the_page_names_values_that_exist() -> None:
    named = set(re.findall(r"--set(?:-string)? ([a-zA-Z.]+)=", PAGE)) | set(
        re.findall(r"`((?:api|worker|auth|networkPolicy|ingress|serviceMonitor|pipeline|artifacts)(?:\.\w+)+)`", PAGE)
    )
    assert len(named) > 8
    for path in named:
        found: Any = VALUES
        for part in path.split("."):
            assert part in found, f"docs/kubernetes.md: there is no {path}"
            found = found[part]


@components
def test_a_deployment_that_was_made_elsewhere_is_served_as_it_is(component: str) -> None:
    rendered = render(MINIMAL, f"pipeline.deploymentId={DEPLOYMENT_ID}")
    pod = rendered.pod(component)
    assert "initContainers" not in pod
    assert pod["containers"][0]["command"] == ["pipeserve", component]
    assert rendered.environment(component)["ZENML_PIPELINE_DEPLOYMENT_ID"] == DEPLOYMENT_ID


@pytest.mark.e2e
def test_the_commands_of_a_pod_serve_the_code_that_it_has(tmp_path: Path) -> None:
    """Run here as they stand, but for the folder that the pod's containers share."""
    (tmp_path / "mine.py").write_text(
        "from pipeserve import pipeline, step\n"
        'print("a module that talks")\n'
        "@step\ndef shout(text: str) -> str:\n    return text.upper()\n"
        "@pipeline\ndef loud(text: str) -> str:\n    return shout(text)\n"
    )
    keys = tmp_path / "keys.toml"
    command = [Path(sys.executable).with_name("pipeserve"), "keys", "new", "me", "--file", keys]
    key = subprocess.run(command, capture_output=True, text=True, timeout=40, check=True).stdout.split()[-1]
    port = free_port()
    rendered = render(MINIMAL, "pipeline.target=mine:loud")
    environment = {
        **outside(tmp_path),
        "PIPESERVE_REQUIRE_AUTH": rendered.environment("api")["PIPESERVE_REQUIRE_AUTH"],
        "PIPESERVE_KEYS_FILE": str(keys),
        "PIPESERVE_TOKEN_SECRET": "a" * 64,
        "ZENML_SERVICE_PORT": str(port),
    }
    pod = rendered.pod("api")
    done = run_to_end(here(pod["initContainers"][0], tmp_path), environment)
    assert done.returncode == 0, done.stderr
    deployment_id = str(uuid.UUID((tmp_path / "id").read_text().strip()))

    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(here(pod["containers"][0], tmp_path), env=environment, stdout=log, stderr=log)
    try:
        wait_until_ready(url, process, tmp_path / "log")
        with httpx.Client(base_url=url, headers={"X-API-Key": key}) as client:
            answer = client.post("/invoke", json={"parameters": {"text": "a"}})
            assert answer.status_code == 200, answer.text
            about = client.get("/info").json()["deployment"]
        assert (about["name"], about["id"]) == ("live-pipeserve", deployment_id)
        [test] = rendered.of("Pod")["spec"]["containers"]
        asked = [sys.executable, *test["command"][1:3], url, test["command"][4]]
        assert run_to_end(asked, environment).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.e2e
def test_a_pod_whose_pipeline_cannot_be_loaded_does_not_start(tmp_path: Path) -> None:
    [deploy] = render(MINIMAL, "pipeline.target=nowhere:loud").pod("worker")["initContainers"]
    done = run_to_end(here(deploy, tmp_path), outside(tmp_path))
    assert done.returncode != 0
    assert "nowhere" in done.stderr
    assert not (tmp_path / "id").exists()


def here(container: Object, folder: Path) -> list[str]:
    """A container's command, with ``folder`` for the volume where the deployment's id is."""
    return [word.replace("/deployment/", f"{folder}/") for word in container["command"]]


def outside(folder: Path) -> dict[str, str]:
    """What an image would set, and a store of the test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIPESERVE_", "ZENML_"))}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "PIPESERVE_DATA_DIR": str(folder / "data"),
    }


def run_to_end(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=40, check=False)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_rendering_gives_each_object_once() -> None:
    names = [(o["kind"], o["metadata"]["name"]) for o in render(EVERYTHING).objects]
    assert len(set(names)) == len(names)
