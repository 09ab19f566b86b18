"""The OpenAPI document: whole, honest, and what it says is what the server does (schemathesis)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests
import schemathesis
from fastapi.openapi.models import OpenAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.app import ANSWERED, create_app
from serving.auth import OPEN
from serving.keys import create
from serving.models import go_live
from serving.problems import OPENAI
from serving.routes.inference import TASKS
from serving.settings import Settings
from tests.serving.conftest import answering, write_bundle, write_writer
from tests.serving.test_serving_translation import write_translator

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 6
"""Cases of each operation that fit its schema, and as many that do not."""
LIMITS = Settings(max_items=4, max_characters=200, max_tokens=8, max_completions=4, max_beam_tokens=64,
                  max_beam_characters=2000, max_bytes=100_000)  # fmt: skip


@pytest.fixture(scope="module")
def app(tiny: Path, writers: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("openapi")
    models = go_live([str(tiny), writers[0], write_translator(folder / "en-de", "en", "de")], threads=1)
    assert not models.refused
    return create_app(LIMITS, models)


@pytest.fixture(scope="module")
def document(app: Any) -> dict[str, Any]:
    found: dict[str, Any] = app.openapi()
    return found


@pytest.fixture(scope="module")
def url(app: Any) -> Iterator[str]:
    with answering(app, LIMITS) as port:
        yield f"http://127.0.0.1:{port}"


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_it_is_valid_and_each_operation_is_told_whole(document: dict[str, Any]) -> None:
    OpenAPI.model_validate(document)
    for reference in references(document):
        assert resolve(document, reference)
    named = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(named)) == len(named)
    for path, _, operation in operations(document):
        assert operation["summary"], path
        assert operation["tags"], path
        for name in ("RequestId", "RequestTimeout"):
            assert operation["parameters"].count({"$ref": f"#/components/parameters/{name}"}) == 1
        for status, response in operation["responses"].items():
            assert "X-Request-Id" in response["headers"]
            if status != "200":
                (content,) = response["content"].items()
                openai = bool(OPENAI.fullmatch(path))
                assert content[0] == ("application/json" if openai else "application/problem+json")
                schema = "OpenAIProblem" if openai else "InferenceProblem" if path.startswith("/v2") else "Problem"
                assert content[1]["schema"] == {"$ref": f"#/components/schemas/{schema}"}, (path, status)


def test_operation_ids_stay(document: dict[str, Any]) -> None:
    """Clients are generated from them."""
    known = {
        "sentiment": "/v1/sentiment",
        "completions": "/v1/completions",
        "translate": "/translate",
        "languages": "/languages",
        "list_models": "/v1/models",
        "model_card": "/v1/models/{model_id}/card",
        "server_metadata": "/v2",
        "server_live": "/v2/health/live",
        "server_ready": "/v2/health/ready",
        "model_metadata": "/v2/models/{name}",
        "version_metadata": "/v2/models/{name}/versions/{version}",
        "model_ready": "/v2/models/{name}/ready",
        "version_ready": "/v2/models/{name}/versions/{version}/ready",
        "model_infer": "/v2/models/{name}/infer",
        "version_infer": "/v2/models/{name}/versions/{version}/infer",
        "invocations": "/invocations",
        "ping": "/ping",
        "version": "/version",
        "livez": "/livez",
        "readyz": "/readyz",
    }
    found = {operation["operationId"]: path for path, _, operation in operations(document)}
    assert known.items() <= found.items()


def test_keys_are_told_where_they_are_asked_for(app: Any, tiny: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    create(keys, "somebody")
    for settings, asked in ((LIMITS, False), (LIMITS.model_copy(update={"keys": keys}), True)):
        models = go_live([str(tiny)], threads=1)
        document = create_app(settings, models).openapi()
        models.close()
        schemes = document["components"]["securitySchemes"]
        assert schemes["Bearer"]["scheme"] == "bearer"
        assert schemes["Key"]["name"] == "X-API-Key"
        assert document["security"] == [{"Bearer": []}, {"Key": []}] + ([] if asked else [{}])
        for path, _, operation in operations(document):
            assert operation.get("security") == ([] if path in OPEN else None), path


def test_every_example_fits_its_schema(document: dict[str, Any]) -> None:
    tried = 0
    for path, _, operation in operations(document):
        contents = [operation.get("requestBody", {}).get("content", {})]
        contents += [response.get("content", {}) for response in operation["responses"].values()]
        for content in contents:
            for media_type, told in content.items():
                examples = [one["value"] for one in told.get("examples", {}).values()]
                examples += [told["example"]] if "example" in told else []
                for example in examples:
                    schema = {**told["schema"], "components": document["components"]}
                    jsonschema.validate(example, schema, jsonschema.Draft202012Validator)
                    tried += 1
                assert examples or content is not contents[0] or media_type != "application/json", path
    assert tried > 40


def test_the_examples_of_sentiment_are_answered_as_told(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1/sentiment"]["post"]
    requests = operation["requestBody"]["content"]["application/json"]["examples"]
    answers = operation["responses"]["200"]["content"]["application/json"]["examples"]
    assert requests.keys() == answers.keys()
    for name, example in requests.items():
        answer = client.post("/v1/sentiment", json=example["value"])
        assert answer.status_code == 200
        assert shape(answer.json()) == shape(answers[name]["value"])


def test_every_task_that_is_answered_has_tensors() -> None:
    assert TASKS.keys() >= ANSWERED


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_operation_answers_as_the_document_says(document: dict[str, Any], url: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_dict(document)
    asked = dict.fromkeys((path for path, _, _ in operations(document)), 0)
    session = requests.Session()
    for found in schema.get_all_operations():
        operation = found.ok()

        @hypothesis_settings(
            max_examples=EXAMPLES,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(mode))
        def check(case: Any) -> None:
            asked[case.path] += 1
            if "X-Request-Timeout" in case.headers:  # whoever has no time is answered 504, as told
                case.headers["X-Request-Timeout"] = "30"
            response = case.call(base_url=url, session=session, timeout=30)
            case.validate_response(response, checks=CHECKS)

        if mode is GenerationMode.POSITIVE or operation.body or operation.path_parameters or operation.query:
            check()
    session.close()
    if mode is GenerationMode.POSITIVE:
        assert all(asked.values())


def test_the_commands_of_the_page_are_answered(writers: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """docs/http.md, and every path that it tells is there."""
    folder = tmp_path_factory.mktemp("page")
    bundles = [write_bundle(folder / "sentiment-bundled"), write_writer(folder / "generation-bundled")]
    names = [*map(str, bundles), write_translator(folder / "translation-bundled", "en", "de")]
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    lines = [
        shlex.split(line)
        for block in blocks
        for line in re.findall(r"curl (?:[^\n']|'[^']*')*", block.replace("\\\n", " "))
    ]
    assert len(lines) >= 16
    app = create_app(Settings(), go_live(names, threads=1))
    with TestClient(app) as client:
        for words in lines:
            (url,) = (word for word in words if word.startswith("http://"))
            options = {one: words[words.index(one) + 1] for one in ("-d", "-H", "-X", "--data-binary") if one in words}
            body = options.get("-d") or options.get("--data-binary", "").removeprefix("$").replace("\\n", "\n")
            kind = dict([options["-H"].split(": ")]) if "-H" in options else {}
            method = options.get("-X", "POST" if body else "GET")
            path = url.removeprefix("http://127.0.0.1:8000")
            answer = client.request(method, path, content=body or None, headers=kind)
            assert answer.status_code == 200, (path, answer.text)
    told = {re.sub(r"\[.*?\]", "", one) for one in re.findall(r"`(?:GET|POST) (/[^` ]*)`", page)}
    there = {re.sub(r"model_id|name", "X", path) for path in app.openapi()["paths"]}
    assert {re.sub(r"id|name", "X", one) for one in told} - {
        "/",
        "/docs",
        "/openapi.json",
        "/v2/...",
        "/metrics",
    } <= there


def shape(value: Any) -> Any:
    if isinstance(value, list):
        return [shape(value[0])]
    return {key: shape(inner) for key, inner in value.items()} if isinstance(value, dict) else type(value)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(document: Any, reference: str) -> Any:
    node = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node
