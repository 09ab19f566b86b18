"""The Open Inference Protocol: tensors in and out, what they are called, and what does not fit."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from seqapp import bundle
from seqapp.completion import GenerationInput
from seqapp.tasks.sentiment import SentimentInput
from seqapp.translation import TranslationInput
from serving.app import create_app
from serving.models import go_live
from serving.settings import Settings
from tests.serving.test_serving_translation import write_translator

TEXTS = ["good soup", "a bad room", "it broke"]
LIMITS = Settings(max_items=4, max_characters=500, max_tokens=30, max_completions=4, max_beam_tokens=200,
                  max_beam_characters=4000)  # fmt: skip


@pytest.fixture(scope="module")
def bundles(tiny: Path, writers: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(tiny), writers[0], write_translator(tmp_path_factory.mktemp("inference") / "en-de", "en", "de")]


@pytest.fixture(scope="module")
def all_tasks(bundles: list[str]) -> Iterator[TestClient]:
    models = go_live(bundles, threads=1)
    assert not models.refused
    with TestClient(create_app(LIMITS, models), raise_server_exceptions=False) as client:
        yield client


def tensor(name: str, data: list[Any], **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": "BYTES", "data": data, **changes}


def infer(client: TestClient, model: str, name: str, data: list[Any], **more: Any) -> dict[str, Any]:
    answer = client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor(name, data)], **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return {one["name"]: one for one in found["outputs"]} | {"": found}


def wrong(answer: Response, status: int, *told: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["error"] == found["detail"]  # what Triton's client shows
    for part in told:
        assert part in found["detail"], found["detail"]
    return found


def test_the_server_and_its_models_tell_what_they_are(all_tasks: TestClient) -> None:
    assert all_tasks.get("/v2").json()["name"] == "seqapp"
    assert all_tasks.get("/v2/health/live").json() == {"live": True}
    assert all_tasks.get("/v2/health/ready").json() == {"ready": True}
    for name in ("tiny", "writer", "en-de"):
        told = all_tasks.get(f"/v2/models/{name}").json()
        (version,) = told["versions"]
        assert all_tasks.get(f"/v2/models/{name}/versions/{version}").json() == told
        assert all_tasks.get(f"/v2/models/{name}/ready").json() == {"name": name, "ready": True}
        assert all_tasks.get(f"/v2/models/{name}/versions/{version}/ready").json()["ready"]


@pytest.mark.parametrize(("model", "name"), [("tiny", "text"), ("writer", "prompt"), ("en-de", "text")])
def test_metadata_tells_what_an_answer_has(all_tasks: TestClient, model: str, name: str) -> None:
    """Whatever the metadata names is there, of that type and shape, and the parameters it names are taken."""
    told = all_tasks.get(f"/v2/models/{model}").json()
    assert [(one["name"], one["datatype"], one["shape"]) for one in told["inputs"]] == [(name, "BYTES", [-1])]
    short = {"parameters": {"max_tokens": 5}} if model == "writer" else {}
    found = infer(all_tasks, model, name, ["the man sleeps .", "good soup"], **short)
    answered = found.pop("")["outputs"]
    assert [one["name"] for one in told["outputs"]] == [one["name"] for one in answered]
    kinds = {"BYTES": str, "FP64": float, "INT64": int}
    for promised, given in zip(told["outputs"], answered, strict=True):
        assert given["datatype"] == promised["datatype"]
        assert given["shape"] == [2, *promised["shape"][1:]]
        assert len(given["data"]) == 2 * (promised["shape"][1] if len(promised["shape"]) > 1 else 1)
        assert all(type(value) is kinds[given["datatype"]] for value in given["data"])
        assert given["parameters"].get("labels") == promised["parameters"].get("labels")
    assert not {"explain", "return_beams", "alternatives", name} & told["parameters"].keys()


def test_tensors_are_what_the_bundle_says(all_tasks: TestClient, bundles: list[str]) -> None:
    """Each element is answered as the model itself answers it."""
    sentiment, writer, translator = map(bundle.load, bundles)
    outputs = sentiment.predict([SentimentInput(text=text) for text in TEXTS])
    found = infer(all_tasks, "tiny", "text", TEXTS)
    assert found["label"]["data"] == [one.label for one in outputs]
    assert found["score"]["data"] == pytest.approx([one.score for one in outputs])
    labels = found["scores"]["parameters"]["labels"]
    assert found["scores"]["shape"] == [3, len(labels)]
    assert found["scores"]["data"] == pytest.approx([one.scores[label] for one in outputs for label in labels])

    asked = {"max_tokens": 6, "temperature": 0.5, "seed": 3, "n": 2}
    written = writer.predict([GenerationInput(prompt=text, **asked) for text in ("the ", "a")])
    found = infer(all_tasks, "writer", "prompt", ["the ", "a"], parameters=asked)
    assert found["text"]["shape"] == [4]
    assert found["text"]["data"] == [one.text for output in written for one in output.completions]
    assert found["tokens"]["data"] == [one.tokens for output in written for one in output.completions]

    (translated,) = translator.predict([TranslationInput(text="the man sleeps .", beam_size=2)])
    found = infer(all_tasks, "en-de", "text", ["the man sleeps ."], parameters={"beam_size": 2})
    assert found["translation"]["data"] == [translated.text]
    assert found["score"]["data"] == pytest.approx([translated.score])


def test_only_the_wanted_tensors_come_in_the_wanted_order(all_tasks: TestClient) -> None:
    wanted = [{"name": "score"}, {"name": "label", "parameters": {"binary_data": True}}]
    found = infer(all_tasks, "tiny", "text", TEXTS, id="x-1", outputs=wanted)[""]
    assert [one["name"] for one in found["outputs"]] == ["score", "label"]
    assert (found["id"], found["model_name"]) == ("x-1", "tiny")


def test_a_column_and_nested_data_fit(all_tasks: TestClient) -> None:
    flat = infer(all_tasks, "tiny", "text", TEXTS)["score"]["data"]
    for data in (TEXTS, [[text] for text in TEXTS]):
        asked = {"inputs": [tensor("text", data, shape=[3, 1])]}
        answer = all_tasks.post("/v2/models/tiny/infer", json=asked).json()
        assert answer["outputs"][1]["data"] == flat


def test_texts_come_in_tritons_binary_form_too(all_tasks: TestClient) -> None:
    texts = [*TEXTS, "café 😀"]
    raw = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)

    def post(raw: bytes, size: Any, length: int | None = None) -> Response:
        asked = {"name": "text", "shape": [4], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
        head = json.dumps({"inputs": [asked], "parameters": {"binary_data_output": True}}).encode()
        told = {"Inference-Header-Content-Length": str(len(head) if length is None else length)}
        return all_tasks.post("/v2/models/tiny/infer", content=head + raw, headers=told)

    answer = post(raw, len(raw))
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][1]["data"] == infer(all_tasks, "tiny", "text", texts)["score"]["data"]
    wrong(post(raw, len(raw) + 1), 422, "at most")
    wrong(post(raw, "4"), 422, "a number of bytes fits")
    wrong(post(raw[:-1], len(raw) - 1), 422, "the last element is longer")
    wrong(post(b"\x01\x00\x00\x00\xff" * 4, 20), 422, "UTF-8")
    wrong(post(raw, len(raw), length=10**6), 422, "the length of the JSON")


GOOD = tensor("text", ["good soup"])
CASES: list[tuple[dict[str, Any], str]] = [
    ({}, "inputs: is required"),
    ({"inputs": []}, "inputs: 0 tensors; one fits, called 'text'"),
    ({"inputs": [GOOD, GOOD]}, "inputs: 2 tensors"),
    ({"inputs": [{**GOOD, "name": "prompt"}]}, "inputs[0].name: 'prompt' is no input; 'text' fits"),
    ({"inputs": [{**GOOD, "datatype": "FP32"}]}, "inputs[0].datatype: FP32 does not fit, BYTES does"),
    ({"inputs": [{**GOOD, "shape": [2]}]}, "inputs[0].data: 1 elements; the shape [2] has 2"),
    ({"inputs": [{**GOOD, "shape": [1, 2]}]}, "inputs[0].shape: [1, 2] does not fit; [B] does"),
    ({"inputs": [{**GOOD, "shape": []}]}, "inputs[0].shape: [] does not fit"),
    (
        {"inputs": [{**GOOD, "shape": [0], "data": []}]},
        "inputs[0].shape[0]: Input should be greater than or equal to 1",
    ),
    ({"inputs": [{**GOOD, "data": [1]}]}, "inputs[0].data[0]: a text fits, not a number"),
    ({"inputs": [{**GOOD, "data": [""]}]}, "inputs[0].data[0]"),
    ({"inputs": [{**GOOD, "data": None}]}, "inputs[0].data: is required"),
    ({"inputs": [{**GOOD, "size": 1}]}, "inputs[0].size: no such field"),
    ({"inputs": [{**GOOD, "parameters": {"shared_memory_region": "a"}}]}, "no such parameter of a tensor"),
    ({"inputs": [tensor("text", ["a"] * 5)]}, "5 texts are too many; at most 4 fit"),
    ({"inputs": [tensor("text", ["a" * 501])]}, "501 characters; at most 500 fit"),
    ({"inputs": [GOOD], "outputs": [{"name": "lable"}]}, "outputs[0].name: no output is called 'lable'"),
    ({"inputs": [GOOD], "parameters": {"top": 1}}, "parameters.top: no such field"),
    ({"inputs": [GOOD], "parameters": {"explain": True}}, "parameters.explain: no tensor holds"),
    ({"inputs": [GOOD], "parameters": {"text": "a"}}, "parameters.text: it is the input tensor"),
]


@pytest.mark.parametrize(("asked", "told"), CASES, ids=[told[:40] for _, told in CASES])
def test_what_does_not_fit_is_told_with_what_would(all_tasks: TestClient, asked: dict[str, Any], told: str) -> None:
    wrong(all_tasks.post("/v2/models/tiny/infer", json=asked), 422, told)


@pytest.mark.parametrize(
    ("model", "parameters", "told"),
    [
        ("writer", {"max_tokens": 31}, "parameters.max_tokens: 31 tokens; at most 30 fit"),
        ("writer", {"n": 5}, "parameters.n: 5 completions in all; at most 4"),
        ("writer", {"beam_size": 10, "max_tokens": 21}, "beam_size: 210 prompts x beams x tokens in all"),
        ("writer", {"temperature": -1}, "parameters.temperature: "),
        ("en-de", {"beam_size": 64, "length_penalty": 11}, "parameters.length_penalty: "),
        ("en-de", {"beam_size": 64, "max_tokens": 100}, "max_tokens: 6400 sentences x tokens x beams"),
    ],
)
def test_the_limits_are_those_of_the_tasks_own_paths(
    all_tasks: TestClient, model: str, parameters: dict[str, Any], told: str
) -> None:
    name = "prompt" if model == "writer" else "text"
    asked = {"inputs": [tensor(name, ["a man"])], "parameters": parameters}
    wrong(all_tasks.post(f"/v2/models/{model}/infer", json=asked), 422, told)


@pytest.mark.parametrize("path", ["/v2/models/nobody", "/v2/models/nobody/ready", "/v2/models/tiny/versions/9",
                                  "/v2/models/..%2Ftiny", "/v2/models/tiny/versions/9/ready"])  # fmt: skip
def test_an_unknown_model_or_version(all_tasks: TestClient, path: str) -> None:
    assert "error" in wrong(all_tasks.get(path), 404)
    wrong(all_tasks.post("/v2/models/tiny/versions/9/infer", json={"inputs": [GOOD]}), 404, "tiny/9")
    wrong(all_tasks.post("/v2/models/tiny/versions/9/infer", json={}), 404, "tiny/9")
    wrong(all_tasks.post("/v2/models/nobody/infer", json={}), 404, "nobody")


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {"Content-Type": "application/json"}, 400),
        (b"", {"Content-Type": "application/json"}, 400),
        (b"\xff", {"Content-Type": "application/json"}, 400),
        (b"[" * 100_000, {"Content-Type": "application/json"}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"[]", {"Content-Type": "application/json"}, 422),
    ],
)
def test_a_body_that_cannot_be_read(all_tasks: TestClient, body: bytes, headers: dict[str, str], status: int) -> None:
    wrong(all_tasks.post("/v2/models/tiny/infer", content=body, headers=headers), status)


def test_not_ready_while_the_server_stops(tiny: Path) -> None:
    app = create_app(LIMITS, go_live([str(tiny)], threads=1))
    with TestClient(app) as client:
        app.state.stopping = True
        answer = client.get("/v2/health/ready")
        wrong(answer, 503, "stopping")
        assert int(answer.headers["Retry-After"]) >= 1
