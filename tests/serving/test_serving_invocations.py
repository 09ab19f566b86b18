"""``POST /invocations``: what ``mlflow models serve`` answers from the same bundle, to MLflow's own client."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from seqapp import bundle
from serving.app import create_app
from serving.models import go_live
from serving.settings import Settings
from tests.serving.conftest import answering

with warnings.catch_warnings():  # MLflow warns of its own type hints
    warnings.simplefilter("ignore")
    import mlflow.pyfunc.scoring_server
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    from pipelines import tracking

PATH = "/invocations"
TEXTS = ["good soup", "a bad room", "it broke, né 😀"]
LIMITS = Settings(max_items=4, max_characters=500, max_tokens=250)


@pytest.fixture(scope="module")
def twins(
    tiny: Path, writers: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[TestClient, TestClient]]]:
    """By task this server and MLflow's, with the same bundle."""
    found: dict[str, tuple[TestClient, TestClient]] = {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
        for path in (tiny, Path(writers[0])):
            loaded = bundle.load(path)
            saved = tmp_path_factory.mktemp("pyfunc") / "model"
            mlflow.pyfunc.save_model(
                saved,
                python_model=str(Path(tracking.__file__).with_name("pyfunc.py")),
                artifacts={"bundle": str(path)},
                pip_requirements=["torch"],
                signature=tracking.signature(loaded.task),
            )
            theirs = TestClient(mlflow.pyfunc.scoring_server.init(mlflow.pyfunc.load_model(str(saved))))
            ours = TestClient(create_app(LIMITS, go_live([str(path)], threads=1)))
            found[loaded.manifest.task] = ours, theirs
        for ours, _ in found.values():
            ours.__enter__()
        yield found
        for ours, _ in found.values():
            ours.__exit__(None, None, None)


@pytest.fixture(scope="module")
def several(tiny: Path, writers: list[str]) -> Iterator[TestClient]:
    with TestClient(create_app(LIMITS, go_live([str(tiny), *writers], threads=1))) as client:
        yield client


SHAPES: dict[str, dict[str, Any]] = {
    "split": {"dataframe_split": {"columns": ["text"], "index": [7, 8, 9], "data": [[text] for text in TEXTS]}},
    "records": {"dataframe_records": [{"text": text} for text in TEXTS]},
    "instances, objects": {"instances": [{"text": text} for text in TEXTS]},
    "instances, texts": {"instances": TEXTS},
    "inputs, columns": {"inputs": {"text": TEXTS}},
    "inputs, objects": {"inputs": [{"text": text} for text in TEXTS]},
    "inputs, texts": {"inputs": TEXTS},
    "params": {"dataframe_records": [{"text": text} for text in TEXTS], "params": {"explain": True}},
    "one": {"inputs": {"text": "good soup"}},
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_answer_is_that_of_mlflow(twins: dict[str, tuple[TestClient, TestClient]], name: str) -> None:
    ours, theirs = twins["sentiment"]
    same(ours.post(PATH, json=SHAPES[name]), theirs.post(PATH, json=SHAPES[name]))


def test_a_text_is_gone_on_from_as_mlflow_does(twins: dict[str, tuple[TestClient, TestClient]]) -> None:
    ours, theirs = twins["generation"]
    for asked in (
        {"dataframe_records": [{"prompt": "the "}, {"prompt": "a"}], "params": {"max_tokens": 5, "temperature": 0.0}},
        {"dataframe_records": [{"prompt": "the ", "seed": 3, "stop": ["e"]}, {"prompt": "a", "seed": 4, "stop": ["o"]}],
         "params": {"max_tokens": 8}},
    ):  # fmt: skip
        same(ours.post(PATH, json=asked), theirs.post(PATH, json=asked))


def test_csv_is_read_as_mlflow_reads_it(twins: dict[str, tuple[TestClient, TestClient]]) -> None:
    ours, theirs = twins["sentiment"]
    lines = pandas.DataFrame({"text": [*TEXTS, 'a "quoted"\nroom, ok']}).to_csv(index=False)
    csv = {"Content-Type": "text/csv; charset=utf-8"}
    same(ours.post(PATH, content=lines, headers=csv), theirs.post(PATH, content=lines, headers=csv))


def same(ours: Response, theirs: Response) -> None:
    assert theirs.status_code == 200, theirs.text
    assert ours.status_code == 200, ours.text
    assert ours.headers["Content-Type"] == theirs.headers["Content-Type"]
    assert alike(ours.json(), json.loads(theirs.text)), (ours.text, theirs.text)


def alike(one: Any, other: Any) -> bool:
    """Equal up to the rounding of a float, and null for pandas' NaN."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float | int) and isinstance(other, float | int):
        return one == pytest.approx(other, abs=1e-5)
    return bool(one == other or (one is None and other != other))


def test_mlflows_client(tiny: Path) -> None:
    with answering(create_app(LIMITS, go_live([str(tiny)], threads=1)), LIMITS) as port:
        client = ScoringServerClient("127.0.0.1", port)
        client.wait_server_ready(timeout=10)
        assert client.get_version()
        answered = client.invoke(pandas.DataFrame({"text": TEXTS})).get_predictions()
        assert list(answered.columns) == ["label", "score", "scores"]
        assert len(answered) == 3
        explained = client.invoke(pandas.DataFrame({"text": TEXTS}), params={"explain": True, "model": "tiny"})
        assert explained.get_predictions()["label"].tolist() == answered["label"].tolist()
        assert "tokens" in explained.get_predictions()
        with pytest.raises(Exception, match=r"error code 422.*dataframe_split\.data\[0\]\.text"):
            client.invoke(pandas.DataFrame({"text": [""]}))


def test_no_rows_have_no_answers(twins: dict[str, tuple[TestClient, TestClient]]) -> None:
    ours, _ = twins["sentiment"]
    assert ours.post(PATH, json={"dataframe_split": {"columns": ["text"], "data": []}}).json() == {"predictions": []}
    assert ours.post(PATH, content="text\n", headers={"Content-Type": "text/csv"}).json() == {"predictions": []}


def test_cells_that_are_absent_have_their_default(twins: dict[str, tuple[TestClient, TestClient]]) -> None:
    ours, _ = twins["generation"]
    greedy = {"max_tokens": 5, "temperature": 0}
    (plain,) = ours.post(PATH, json={"inputs": ["the "], "params": greedy}).json()["predictions"]
    filled = ours.post(PATH, content=json.dumps({"dataframe_split": {
        "columns": ["prompt", "seed", "stop", "n"], "data": [["the ", None, None, float("nan")]]}, "params": greedy}),
        headers={"Content-Type": "application/json"}).json()["predictions"]  # fmt: skip
    assert filled == [plain]
    lines = "prompt,max_tokens,temperature,top_k\nthe ,5,0,\n"
    assert ours.post(PATH, content=lines, headers={"Content-Type": "text/csv"}).json()["predictions"] == [plain]


def test_of_several_models_a_request_names_one(several: TestClient) -> None:
    asked = {"inputs": ["the garden"]}
    answer = wrong(several.post(PATH, json=asked), 422)
    assert answer["detail"].startswith("params.model: models of several tasks are live, so a request names one: tiny,")
    (label,) = several.post(PATH, json={**asked, "params": {"model": "tiny"}}).json()["predictions"]
    assert "label" in label
    greedy = {"max_tokens": 3, "temperature": 0}
    text = several.post(PATH, json={**asked, "params": {"model": "writer", **greedy}}).json()["predictions"]
    assert "completions" in text[0]
    assert several.post(f"{PATH}?model=writer", json={**asked, "params": greedy}).json()["predictions"] == text
    found = wrong(several.post(f"{PATH}?model=nobody", json=asked), 404)
    assert [one["field"] for one in found["errors"]] == ["params.model"]
    wrong(several.post(PATH, json={**asked, "params": {"model": 3}}), 422)


CASES: list[tuple[dict[str, Any], str]] = [
    ({}, "exactly one fits"),
    ({"inputs": ["a"], "instances": ["a"]}, "has instances and inputs"),
    ({"text": "a"}, "text: no such field"),
    ({"inputs": ["a"], "params": {"explan": True}}, "params.explan: no such field"),
    ({"inputs": ["a"], "params": {"explain": "perhaps"}}, "params.explain: Input should be a valid boolean"),
    ({"dataframe_records": [{"text": "a"}, {"test": "a"}]}, "dataframe_records[1].text: is required"),
    ({"dataframe_records": [{"text": "a", "colour": 1}]}, "dataframe_records[0].colour: no such field"),
    ({"dataframe_records": ["a"]}, "dataframe_records[0]: "),
    (
        {"dataframe_split": {"columns": ["text"], "data": [["a"], ["a", "b"]]}},
        "dataframe_split.data[1]: 2 values; 1 fit",
    ),
    ({"dataframe_split": {"columns": ["text", "text"], "data": [["a", "a"]]}}, "dataframe_split.columns: a column"),
    ({"dataframe_split": {"data": [["a"]]}}, "dataframe_split.columns: is required"),
    ({"inputs": {"text": ["a", "b"], "explain": [True]}}, "inputs.explain: 1 values; 2 fit"),
    ({"inputs": {"text": ["a", 3]}}, "inputs.text[1]: Input should be a valid string"),
    ({"inputs": 3}, "inputs: an object, a list or a text fits, not a number"),
    ({"inputs": [None]}, "inputs[0].text: Input should be a valid string"),
    ({"inputs": ["a"] * 5}, "5 rows are too many; at most 4 fit"),
    ({"inputs": ["a", "b" * 501]}, "inputs[1].text: 501 characters; at most 500 fit"),
    ({"inputs": ["a", "", " "]}, "inputs[1].text"),
]


@pytest.mark.parametrize(("asked", "told"), CASES, ids=[told[:40] for _, told in CASES])
def test_what_does_not_fit_is_told_with_its_place(
    twins: dict[str, tuple[TestClient, TestClient]], asked: dict[str, Any], told: str
) -> None:
    found = wrong(twins["sentiment"][0].post(PATH, json=asked), 422)
    assert told in found["detail"]


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"text\n\xff\n", "text/csv", 400),
        (b'text\n"a', "text/csv", 400),
        (b"text\na,b\n", "text/csv", 422),
        (b"text\na\n", "text/csv; charset=latin-1", 415),
        (b"PAR1", "application/vnd.apache.parquet", 415),
        (b"{}", "", 415),
        (b"{", "application/json", 400),
        (b"[" * 90_000, "application/json", 400),
    ],
)
def test_a_body_that_cannot_be_read(
    twins: dict[str, tuple[TestClient, TestClient]], content: bytes, content_type: str, status: int
) -> None:
    wrong(twins["sentiment"][0].post(PATH, content=content, headers={"Content-Type": content_type}), status)


@pytest.mark.parametrize(
    ("content_type", "told"), [("application/json", "a JSON object fits"), ("text/csv", "CSV with")]
)
def test_an_empty_body_is_told_what_fits(
    twins: dict[str, tuple[TestClient, TestClient]], content_type: str, told: str
) -> None:
    answer = twins["sentiment"][0].post(PATH, content=b"", headers={"Content-Type": content_type})
    assert told in wrong(answer, 400)["detail"]


def wrong(answer: Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    return found


def test_probes(twins: dict[str, tuple[TestClient, TestClient]]) -> None:
    ours, theirs = twins["sentiment"]
    assert ours.get("/ping").text == theirs.get("/ping").text == "\n"
    assert ours.get("/version").status_code == theirs.get("/version").status_code == 200
