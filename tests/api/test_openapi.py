"""The OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any

import openapi_spec_validator
import pytest
from pydantic import BaseModel
from tests.api.harness import serving

from pipeserve.sdk.pipeline import pipeline
from pipeserve.sdk.step import step


class Place(BaseModel):
    city: str


class Job(BaseModel):
    """Of the same name as one of the service's."""

    title: str
    place: Place


@step
def hire(job: Job, salary: int = 1) -> Annotated[Job, "hired"]:
    return job


@pipeline
def employ(job: Job, note: str = ""):
    """Employs people."""
    return hire(job)


@pytest.fixture
async def document():
    async with serving(employ) as service:
        answer = await service.http.get("/openapi.json")
        assert answer.status_code == 200
        yield answer.json()


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        found = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return found.union(*(references(inner) for inner in value.values()))
    if isinstance(value, list):
        return set().union(*(references(inner) for inner in value))
    return set()


async def test_the_document_names_the_pipelines_own_parameters_and_outputs(document: dict[str, Any]):
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"] == "employ"
    schemas = document["components"]["schemas"]
    invoke = document["paths"]["/invoke"]["post"]
    body = invoke["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Invocation"}
    assert schemas["Invocation"]["properties"]["parameters"] == {"$ref": "#/components/schemas/Parameters"}
    assert {"job", "note", "hire.salary"} <= set(schemas["Parameters"]["properties"])
    assert schemas["Parameters"]["required"] == ["job"]
    assert set(schemas["Outputs"]["properties"]) == {"hired"}
    assert schemas["InvocationResult"]["properties"]["outputs"] == {"$ref": "#/components/schemas/Outputs"}


async def test_an_authors_model_does_not_replace_the_services_own(document: dict[str, Any]):
    schemas = document["components"]["schemas"]
    assert "title" in schemas["employ.Job"]["properties"]
    assert "job_id" in schemas["Job"]["properties"]


async def test_every_reference_leads_somewhere(document: dict[str, Any]):
    for reference in references(document):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


async def test_every_route_is_described_with_its_problems(document: dict[str, Any]):
    routes = {"/jobs", "/jobs/{job_id}", "/jobs/{job_id}/cancel", "/jobs/{job_id}/result", "/jobs/{job_id}/events"}
    routes |= {
        "/invoke",
        "/invoke/batch",
        "/jobs/{job_id}/retry",
        "/jobs/{job_id}/token",
        "/jobs/{job_id}/artifacts/{name}",
        "/jobs/{job_id}/explain",
        "/jobs/{job_id}/logs",
        "/jobs/{job_id}/visualizations",
        "/jobs/{job_id}/visualizations/{index}",
        "/stream/{job_id}",
        "/events",
        "/health",
        "/health/live",
        "/health/ready",
        "/info",
        "/metrics",
        "/status",
        "/status/drill",
    }
    assert set(document["paths"]) == routes
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status == "default" or int(status) >= 400:
                    health = operation["operationId"].startswith("health_health_get")
                    media_type = "application/json" if health else "application/problem+json"
                    assert list(response["content"]) == [media_type]


async def test_what_authors_answer_in_their_own_words_is_a_problem_of_any_status(document: dict[str, Any]):
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for operation in (document["paths"]["/invoke"]["post"], document["paths"]["/jobs/{job_id}/result"]["get"]):
        assert operation["responses"]["default"]["content"] == problem


async def test_an_unhealthy_service_is_described(document: dict[str, Any]):
    responses = document["paths"]["/health"]["get"]["responses"]
    assert set(responses) == {"200", "503"}
    assert responses["200"]["content"] == responses["503"]["content"]
    assert "problems" in document["components"]["schemas"]["Health"]["properties"]


async def test_without_a_key_none_is_described(document: dict[str, Any]):
    assert "security" not in document
    assert "securitySchemes" not in document["components"]
    assert not any("401" in each["responses"] for path in document["paths"].values() for each in path.values())


async def test_a_key_is_described_once_it_is_needed():
    async with serving(employ, service={"auth_key": "k"}) as service:
        document = (await service.http.get("/openapi.json", headers={"X-API-Key": "k"})).json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"] == {"type": "http", "scheme": "bearer"}
    assert schemes["apiKey"] == {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    assert (schemes["token"]["in"], schemes["token"]["name"]) == ("query", "token")
    keys = [{"bearer": []}, {"apiKey": []}]
    assert document["security"] == keys
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            is_open = path.startswith("/health")
            assert ("401" in operation["responses"]) is not is_open
            takes_token = method == "get" and path.startswith(("/jobs/{job_id}", "/stream/", "/events"))
            expected = [*keys, {"token": []}] if takes_token else [] if is_open else None
            assert operation.get("security") == expected


async def test_the_docs_page_shows_the_document():
    async with serving(employ) as service:
        answer = await service.http.get("/docs")
        assert answer.status_code == 200
        assert "/openapi.json" in answer.text


async def test_what_a_body_may_say_of_its_job_is_described(document: dict[str, Any]):
    schemas = document["components"]["schemas"]
    terms = {"run_name", "timeout", "labels", "webhook", "priority", "run_at", "expires_in"}
    assert set(schemas["Invocation"]["properties"]) == terms | {"parameters", "taps"}
    assert set(schemas["BatchItem"]["properties"]) == terms | {"parameters"}
    assert schemas["BatchItem"]["properties"]["parameters"] == {"$ref": "#/components/schemas/Parameters"}
    assert set(schemas["WebhookTerms"]["properties"]) == {"url", "events"}
    moment = next(kind for kind in schemas["Invocation"]["properties"]["run_at"]["anyOf"] if kind["type"] == "string")
    assert moment["format"] == "date-time"


async def test_every_way_to_submit_has_its_body_and_its_key(document: dict[str, Any]):
    paths = document["paths"]
    put, batch, again = (
        paths["/jobs/{job_id}"]["put"],
        paths["/invoke/batch"]["post"],
        paths["/jobs/{job_id}/retry"]["post"],
    )
    for operation, name in ((paths["/invoke"]["post"], "Invocation"), (put, "BatchItem"), (batch, "Batch")):
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{name}"}
    assert "requestBody" not in again
    for operation in (paths["/invoke"]["post"], put, batch, again):
        assert "Idempotency-Replayed" in operation["responses"]["202"]["headers"]
    for operation in (paths["/invoke"]["post"], batch, again):
        assert "Idempotency-Key" in {parameter["name"] for parameter in operation["parameters"]}
    assert set(again["responses"]) >= {"202", "404", "409", "429"}


async def test_the_document_is_valid_openapi(document: dict[str, Any]):
    openapi_spec_validator.validate(document)
    for stream in (document["paths"]["/invoke"]["post"], document["paths"]["/stream/{job_id}"]["get"]):
        schema = stream["responses"]["200"]["content"]["text/event-stream"]["schema"]
        assert schema["contentMediaType"] == "text/event-stream"
