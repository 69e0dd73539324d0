"""``docker compose up`` as its users meet it: the file as it is, images and all, on a real engine."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from tests.docker_engine import docker, has_image
from tests.e2e.compose import Project, project
from tests.service import ROOT, free_port
from tests.store_fixtures import wait_until

from pipeserve.key_file import KeyScope, new_key, stanza

pytestmark = [pytest.mark.docker, pytest.mark.e2e, pytest.mark.timeout(400)]

JOBS = 100
QUICKSTART = orjson.loads((ROOT / "examples" / "quickstart.json").read_bytes())


async def ready(up: Project) -> None:
    async def answers() -> bool:
        try:
            async with httpx.AsyncClient(base_url=up.url, timeout=5) as http:
                return (await http.get("/health/ready")).status_code == 200
        except httpx.TransportError:
            return False

    await wait_until(answers, description="the service is ready", seconds=90, every=0.2)


async def test_the_quickstart_needs_nothing_filled_in() -> None:
    with project() as up:
        up.compose("up", "--detach", "--build")
        await ready(up)
        async with httpx.AsyncClient(base_url=up.url, timeout=30) as http:
            answer = await http.post("/invoke", json=QUICKSTART)
            assert answer.json()["success"] is True, answer.text


async def test_a_hundred_jobs_outlive_a_killed_worker_and_a_restart_of_redis() -> None:
    with project(PIPELINE="jobs:quick", PIPELINE_FOLDER=str(ROOT / "tests" / "e2e" / "pipelines")) as up:
        up.compose("up", "--detach", "--build", "--scale", "worker=3")
        await ready(up)
        assert len(up.containers("worker")) == 3
        body = {"parameters": {"path": "/artifacts/runs", "seconds": 2}}
        async with httpx.AsyncClient(base_url=up.url, timeout=30) as http:

            async def listed() -> set[tuple[str, int]]:
                workers = (await http.get("/status")).json()["workers"]
                return {(worker["host"], worker["pid"]) for worker in workers}

            async def all_listed() -> bool:
                return len({host for host, _ in await listed()}) == 3

            async def all_busy() -> bool:
                return (await http.get("/jobs", params={"status": "running"})).json()["total"] >= JOBS // 2

            await wait_until(all_listed, description="/status lists three containers", seconds=60)
            job_ids = [await submitted(http, body) for _ in range(JOBS - 20)]
            await wait_until(all_busy, description="half of the jobs run")
            killed = kill_a_worker_process(up)
            docker("restart", "--time", "5", *up.containers("redis"))
            job_ids += [await submitted(http, body) for _ in range(20)]

            jobs = [await ended(http, job_id) for job_id in job_ids]
            assert len(set(job_ids)) == JOBS
            assert [job["status"] for job in jobs] == ["completed"] * JOBS
            assert any(job["attempt"] > 1 for job in jobs), "the process that was killed had no job"
            for job_id in job_ids:
                events = (await http.get(f"/jobs/{job_id}/events")).json()["events"]
                assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
                assert [event["event_type"] for event in events].count("pipeline_completed") == 1

            async def replaced() -> bool:
                return await all_listed() and killed not in await listed()

            await wait_until(replaced, description="another process is there in place of the killed one", seconds=60)
        up.compose("down", "--volumes")
        assert up.left() == []


async def submitted(http: httpx.AsyncClient, body: Any) -> str:
    """The id of a new job, once the store takes it."""
    answers: list[httpx.Response] = []

    async def accepted() -> bool:
        answers.append(await http.post("/invoke", params={"mode": "async"}, json=body))
        assert answers[-1].status_code in (202, 503), answers[-1].text
        return answers[-1].status_code == 202

    await wait_until(accepted, description="a job is accepted", seconds=60)
    return answers[-1].json()["job_id"]


async def ended(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """The job once it has ended."""
    last: list[dict[str, Any]] = []

    async def terminal() -> bool:
        answer = await http.get(f"/jobs/{job_id}", params={"wait": 5})
        if answer.status_code == 503:
            return False
        last.append(answer.raise_for_status().json())
        return last[-1]["completed_at"] is not None

    await wait_until(terminal, description=f"{job_id} ends", seconds=60)
    return last[-1]


def kill_a_worker_process(up: Project) -> tuple[str, int]:
    """SIGKILL for one process that runs jobs, from outside; its container and its pid in there."""
    container = up.containers("worker")[0]
    rows = [line.split() for line in docker("top", container, "-o", "pid,ppid").splitlines()[1:]]
    parents = {ppid for _, ppid in rows}
    leaves = [int(pid) for pid, _ in rows if pid not in parents]
    assert leaves, rows
    status = Path(f"/proc/{leaves[-1]}/status").read_text()
    inside = int(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1])
    os.kill(leaves[-1], signal.SIGKILL)
    return container[:12], inside


async def test_containers_have_no_rights_that_they_do_not_need() -> None:
    with project() as up:
        up.compose("up", "--detach", "--build")
        await ready(up)
        for service in ("api", "worker"):
            [container] = up.containers(service)
            assert docker("exec", container, "id", "-u").strip() == "10001"
            for path, writable in (
                ("/app/x", False),
                ("/pipelines/x", False),
                ("/tmp/x", True),
                ("/artifacts/x", True),
            ):
                said = docker("exec", container, "sh", "-c", f"touch {path} 2>/dev/null && echo yes || echo no")
                assert said.strip() == ("yes" if writable else "no"), (service, path)
            [told] = orjson.loads(docker("inspect", container))
            host = told["HostConfig"]
            assert (host["ReadonlyRootfs"], host["Init"], host["CapDrop"]) == (True, True, ["ALL"])
            assert host["Memory"] > 0
            assert host["PidsLimit"] > 0
            assert "no-new-privileges:true" in host["SecurityOpt"]
            secrets = [entry for entry in told["Config"]["Env"] if entry.split("=")[0].endswith(("KEY", "SECRET"))]
            assert all(entry.endswith("=") or "=" not in entry for entry in secrets)
        published = docker("ps", "--filter", f"label=com.docker.compose.project={up.name}", "--format", "{{.Ports}}")
        assert "0.0.0.0" not in published
        assert "[::]" not in published


async def test_several_api_containers_take_a_port_each() -> None:
    with project(PORT="0") as up:
        up.compose("up", "--detach", "--build", "--scale", "api=2")
        places = {docker("port", container, "8001").split()[0] for container in up.containers("api")}
        assert len(places) == 2
        for place in places:
            assert place.startswith("127.0.0.1:")
            await ready(replace(up, port=int(place.rpartition(":")[2])))


async def test_a_derived_image_serves_a_pipeline_with_a_requirement_of_its_own() -> None:
    derived = ROOT / "deploy" / "derived"
    with project(
        API_IMAGE="pipeserve-test-derived-api:local",
        WORKER_IMAGE="pipeserve-test-derived-worker:local",
        DEPLOY_IMAGE="pipeserve-test-derived-worker:local",
        PIPELINE="my_pipeline:slugs",
        PIPELINE_FOLDER=str(derived),
    ) as up:
        for target in ("api", "worker"):
            base = f"pipeserve-test-base-{target}:local"
            docker("build", "-q", "-f", str(ROOT / "deploy" / "Dockerfile"), "--target", target, "-t", base, str(ROOT))
            name = f"pipeserve-test-derived-{target}:local"
            docker("build", "-q", "--build-arg", f"BASE={base}", "-t", name, str(derived))
        up.compose("up", "--detach", "--no-build")
        await ready(up)
        body = {"parameters": {"title": "Über alles: ein Test"}}
        async with httpx.AsyncClient(base_url=up.url, timeout=30) as http:
            called = (await http.post("/invoke", json=body)).raise_for_status().json()
            assert called["outputs"] == {"slug": "uber-alles-ein-test"}
            job = await ended(http, await submitted(http, body))
            assert job["outputs"] == called["outputs"]


async def test_nginx_spreads_calls_over_the_api_containers_and_demands_the_keys_of_production(tmp_path: Path) -> None:
    key = new_key()
    keys = tmp_path / "keys.toml"
    keys.write_text(stanza("tester", key, list(KeyScope)))
    for path in (keys, tmp_path):
        path.chmod(0o755)
    edge_port = free_port()
    with project(
        ROOT / "docker-compose.production.yml",
        PORT="0",
        EDGE_PORT=str(edge_port),
        NGINX_IMAGE=nginx_image(),
        PIPESERVE_KEYS_FOLDER=str(tmp_path),
        PIPESERVE_TOKEN_SECRET="secret",
    ) as up:
        up.compose("--profile", "edge", "up", "--detach", "--build", "--scale", "api=2")
        edge = replace(up, port=edge_port)
        await ready(edge)
        async with httpx.AsyncClient(base_url=edge.url, timeout=30) as http:
            assert (await http.post("/invoke", json=QUICKSTART)).status_code == 401
            http.headers["X-API-Key"] = key
            answers = [(await http.post("/invoke", json=QUICKSTART)).raise_for_status().json() for _ in range(20)]
            ran = [(await ended(http, answer["job_id"]))["worker"].split(":")[0] for answer in answers]
        async with httpx.AsyncClient(base_url=edge.url, timeout=30) as http:
            replaced = keys.with_name("new.toml")
            replaced.write_text(stanza("another", "psk_another", list(KeyScope)))
            replaced.chmod(0o644)
            replaced.replace(keys)

            async def shut() -> bool:
                return (await http.get("/info", headers={"X-API-Key": key})).status_code == 401

            await wait_until(shut, description="a key that was taken away opens nothing")
        assert set(ran) == {container[:12] for container in up.containers("api")}
        up.compose("--profile", "edge", "down", "--volumes")
        assert up.left() == []


def nginx_image() -> str:
    """The image that the file names where the engine has it, or can fetch it; else a stand-in."""
    official = "nginx:1.28-alpine"
    if has_image(official):
        return official
    standin = "pipeserve-test-nginx:local"
    folder = ROOT / "tests" / "e2e"
    docker("build", "-q", "-f", str(folder / "nginx.Dockerfile"), "-t", standin, str(folder))
    return standin
