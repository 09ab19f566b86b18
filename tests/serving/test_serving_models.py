"""Which bundles go live, and which are refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from seqapp import bundle, references
from seqapp.data.steps import Steps
from seqapp.references import ReferenceNotFound, Target
from seqapp.tasks import TASKS
from seqapp.tasks.memory import Memory
from serving.app import ANSWERED, create_app
from serving.cache import Cache
from serving.models import Models, UnknownModel, go_live
from serving.settings import Settings

MakeBundle = Callable[..., Path]


def spoil_golden(path: Path) -> None:
    golden = json.loads((path / "golden.json").read_text())
    golden[0]["output"]["score"] += 0.1
    (path / "golden.json").write_text(json.dumps(golden))
    manifest = yaml.safe_load((path / "bundle.yaml").read_text())
    manifest["files"]["golden.json"] = hashlib.sha256((path / "golden.json").read_bytes()).hexdigest()
    (path / "bundle.yaml").write_text(yaml.safe_dump(manifest))


def copied(path: Path, folder: Path) -> Path:
    return Path(shutil.copytree(path, folder / "bundle"))


def test_a_model_that_fails_is_refused_and_the_others_go_live(make_bundle: MakeBundle, tmp_path: Path) -> None:
    good, changed, damaged = make_bundle("good"), make_bundle("changed"), make_bundle("damaged")
    spoil_golden(changed)
    (damaged / "weights.safetensors").write_bytes(b"")
    live = go_live([str(changed), str(tmp_path / "nowhere"), str(damaged), str(tmp_path), str(good)], threads=1)
    assert [model.id for model in live] == ["good"]
    reasons = {Path(one.reference).name: one.reason for one in live.refused}
    assert "golden input" in reasons["changed"]
    assert "no such directory" in reasons["nowhere"]
    assert "SHA-256" in reasons["damaged"]
    assert "not a bundle" in reasons[tmp_path.name]
    live.close()


def test_a_model_that_no_route_answers_is_refused(tiny: Path, tmp_path: Path) -> None:
    task = Memory()
    task.prepare([Steps(("a", "b"), (None, "a"))])
    spec = {"kind": "in_step", "encoder": {"kind": "lstm", "hidden_size": 2}}
    resolved = {"task": TASKS.check("memory"), "model": spec}
    path = bundle.save(
        tmp_path / "latch", task=task, model=task.build_model(spec), resolved=resolved, metrics={}, name="latch"
    )
    live = go_live([str(path), str(tiny)], threads=1, tasks=ANSWERED)
    assert [model.id for model in live] == ["tiny"]
    assert [(one.reference, one.reason) for one in live.refused] == [
        (
            str(path),
            "no HTTP route answers the task 'memory', only generation, sentiment, translation; `seqapp predict` does",
        )
    ]
    live.close()


def test_a_task_is_answered_where_a_route_asks_its_models(settings: Settings) -> None:
    app = create_app(settings, Models([]))
    asked = {tag for methods in app.openapi()["paths"].values() if "post" in methods for tag in methods["post"]["tags"]}
    assert asked & set(TASKS) == set(ANSWERED)
    assert set(TASKS) >= ANSWERED


def test_an_unforeseen_failure_is_a_refusal_too(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("seqapp.bundle.load", fail)
    live = go_live([str(make_bundle())], threads=1)
    assert len(live) == 0
    assert live.refused[0].reason == "ZeroDivisionError: oops"


def test_a_run_directory_gives_its_name(make_bundle: MakeBundle, tmp_path: Path) -> None:
    make_bundle("run-1/bundle")
    make_bundle("run-2/bundle")
    live = go_live([str(tmp_path / "run-2"), str(tmp_path / "run-1/bundle")], threads=1)
    assert [model.id for model in live] == ["run-2", "run-1"]
    live.close()


def test_the_same_name_twice(make_bundle: MakeBundle, tmp_path: Path) -> None:
    first, second = make_bundle("a/tiny"), make_bundle("b/tiny")
    live = go_live([str(first), str(second)], threads=1)
    assert [model.id for model in live] == ["tiny"]
    assert "'tiny' is live already" in live.refused[0].reason
    live.close()


def test_champions_are_the_default_in_the_order_of_the_registry(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make_bundle()
    known = {
        "newest@champion": Target("models:/newest/3", "a", "newest", "3", "champion"),
        "older@champion": Target("models:/older/1", "b", "older", "1", "champion"),
    }
    monkeypatch.setattr(references, "champions", lambda: list(known))
    monkeypatch.setattr(references, "locate", known.__getitem__)
    monkeypatch.setattr(references, "download", lambda target, folder: copied(path, folder))
    live = go_live(threads=1, cache=Cache(tmp_path / "cache"))
    assert [model.id for model in live] == ["newest", "older"]
    assert live.find("sentiment").id == "newest"
    assert live.find("sentiment", "older").reference.version == "1"
    live.close()


def test_two_versions_of_one_registered_model(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make_bundle()
    known = {
        "m@champion": Target("models:/m/3", "a", "m", "3", "champion"),
        "m@challenger": Target("models:/m/4", "a", "m", "4", "challenger"),
        "m/2": Target("models:/m/2", "a", "m", "2"),
    }
    monkeypatch.setattr(references, "locate", known.__getitem__)
    monkeypatch.setattr(references, "download", lambda target, folder: copied(path, folder))
    live = go_live(list(known), threads=1, cache=Cache(tmp_path / "cache"))
    assert [model.id for model in live] == ["m", "m@challenger", "m@v2"]
    names = ["m", "m/3", "m@champion", "m/4", "m@challenger", "m/2", "m@v2"]
    assert [live.get(name).version for name in names] == ["3", "3", "3", "4", "4", "2", "2"]
    live.close()


def test_an_empty_registry_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> list[str]:
        raise ReferenceNotFound("the registry holds no champion")

    monkeypatch.setattr(references, "champions", none)
    with pytest.raises(ReferenceNotFound, match="holds no champion"):
        go_live()


def test_a_model_of_another_task_does_not_answer(tiny: Path) -> None:
    live = go_live([str(tiny)], threads=1)
    with pytest.raises(UnknownModel, match="'tiny' is a sentiment model; translation models: none"):
        live.find("translation", "tiny")
    with pytest.raises(UnknownModel, match="no translation model is live"):
        live.find("translation")
    live.close()


@pytest.mark.parametrize(
    "metrics", [{}, [], {"scores": None}, {"scores": {"test": 3}}, {"scores": {"test": {"a": "b"}}}]
)
def test_odd_metrics_are_left_out(make_bundle: MakeBundle, metrics: object) -> None:
    live = go_live([str(make_bundle())], threads=1)
    model = live.get("tiny")
    model.bundle.metrics = metrics  # type: ignore[assignment]
    assert not any(model.scores.values())
    live.close()


def test_a_bundle_without_a_card_is_live(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    manifest = yaml.safe_load((path / "bundle.yaml").read_text())
    del manifest["files"]["README.md"]
    (path / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    (path / "README.md").unlink()
    live = go_live([str(path)], threads=1)
    assert live.get("tiny").card == ""
    live.close()
    shutil.rmtree(path)
