"""A body as large as may be sent costs little, whatever is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.models import go_live
from serving.settings import Settings

LIMITS = Settings()
SENTIMENT, V2, ROWS, WRITER = "/v1/sentiment", "/v2/models/tiny/infer", "/invocations?model=tiny", "/v1/completions"
SECONDS = 5.0
"""A body of one of these kinds took up to 40 once, and one tenth now."""


def full(start: bytes, unit: bytes, end: bytes, size: int = LIMITS.max_bytes) -> bytes:
    return start + unit * ((size - len(start) - len(end)) // len(unit)) + end


TENSOR = b'{"inputs":[{"name":"text","datatype":"BYTES","data":["a"],"shape":['
HUGE = [
    (SENTIMENT, full(b'{"inputs":[', b"0,", b"0]}")),
    (SENTIMENT, full(b'{"inputs":[', b'"a",', b'"a"]}')),
    (SENTIMENT, full(b'{"inputs":[', b"{},", b"0]}")),
    (SENTIMENT, full(b'{"inputs":"a"', b',"b":0', b"}")),
    (SENTIMENT, full(b'{"inputs":"\\"', b'","', b'"]}')),
    (SENTIMENT, ('{"inputs":["\u2222",' + "0," * (LIMITS.max_bytes // 4 - 20) + "0]}").encode("utf-16")),
    ("/v1/models/reload", full(b'{"model":[', b"0,", b"0]}")),
    (WRITER, full(b'{"prompt":"a","condition":[', b'"",', b'""]}')),
    (WRITER, full(b'{"prompt":"a","logit_bias":{"a":1', b',"b":"x"', b"}}")),
    (V2, full(TENSOR, b"0,", b"0]}]}")),
    (V2, full(b'{"inputs":[', b"0,", b"0]}")),
    (ROWS, full(b'{"dataframe_records":[', b"0,", b"0]}")),
    (ROWS, full(b'{"dataframe_split":{"columns":["text"],"data":[', b"[],", b"[]]}}")),
    (ROWS, full(b"text\n", b"a\n", b"")),
    (ROWS, full(b'a"b\n', b"a,", b"")),
]  # fmt: skip


@pytest.fixture(scope="module")
def client(tiny: Path, writers: list[str]) -> Iterator[TestClient]:
    with TestClient(create_app(LIMITS, go_live([str(tiny), writers[0]], threads=1))) as client:
        yield client


@pytest.mark.parametrize(("path", "body"), HUGE, ids=[f"{path[:16]} {body[:24]!r}" for path, body in HUGE])
def test_a_body_of_many_values_is_refused_before_it_is_read(client: TestClient, path: str, body: bytes) -> None:
    kind = "application/json" if body[:1] in b"{\xff" else "text/csv"
    began = perf_counter()
    answer = client.post(path, content=body, headers={"Content-Type": kind})
    assert perf_counter() - began < SECONDS
    assert answer.status_code == (400 if path == WRITER else 422)
    assert "more than 100000 values" in answer.text


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        (SENTIMENT, {"inputs": [0] * 90_000}, "inputs[0]: a text fits"),
        (V2, json.loads(TENSOR + b"0," * 90_000 + b"0]}]}"), "inputs[0].shape[0]"),
        (WRITER, {"prompt": "a", "logit_bias": dict.fromkeys(map(str, range(30_000)), "x")}, "30000 numbers are too"),
        (ROWS, {"dataframe_records": [{"text": "a", **dict.fromkeys(map(str, range(30_000)), 0)}]}, "no such field"),
        (ROWS, {"inputs": "a", "params": dict.fromkeys(map(str, range(30_000)), 0)}, "no such field"),
        ("/invocations?model=writer", {"dataframe_records": [{}] * 128, "params": {"logit_bias": dict.fromkeys(
            map(str, range(4000)), "x")}}, "params.logit_bias"),
    ],
)  # fmt: skip
def test_of_many_wrong_values_the_first_are_told(client: TestClient, path: str, body: object, told: str) -> None:
    began = perf_counter()
    answer = client.post(path, json=body)
    assert perf_counter() - began < 1
    assert answer.status_code == (400 if path == WRITER else 422)
    assert told in answer.text
    assert len(answer.json().get("errors", [])) <= 20


def test_texts_full_of_commas_and_brackets_are_texts(client: TestClient) -> None:
    text = '[{",' * 10_000
    assert client.post(SENTIMENT, json={"inputs": [text] * 4}).status_code == 200
    csv = 'text\n"' + text.replace('"', '""') + '"\n'
    for body, kind in ((json.dumps({"inputs": [text] * 4}), "application/json"), (csv, "text/csv")):
        assert client.post(ROWS, content=body, headers={"Content-Type": kind}).status_code == 200


def test_elements_after_the_json_are_counted(client: TestClient) -> None:
    raw = b"\0" * (4 * 2_000_000)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    answer = client.post(V2, content=head + raw, headers={"Inference-Header-Content-Length": str(len(head))})
    assert "more than 128 texts" in answer.text
