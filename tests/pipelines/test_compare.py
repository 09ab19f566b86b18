"""Which runs stand side by side, what is shown of them, and which one the advice keeps."""

import itertools
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from rich.console import Console

from pipelines import compare as comparing
from pipelines import compare_pages as pages
from pipelines import tracking
from pipelines.card import network_of
from pipelines.compare import Group, Quality, Row, compare
from pipelines.options import SECTIONS
from pipelines.outcomes import log_outcomes, write_outcomes
from seqapp import config
from seqapp.errors import SeqappError
from seqapp.outcomes import Outcomes
from tests.pipelines.worlds import Said, World

Seqapp = Callable[..., Said]
TAGS = {"network": "lstm", "dataset": "letters", "seed": "1", "metric": "accuracy", "direction": "max",
        "scale": "share of examples", "metric_definition": "accuracy", "validation_digest": "v" * 64,
        "test_digest": "t" * 64}  # fmt: skip
COSTS = {"parameters": 123_456, "seconds": 75, "train/tokens_per_second": 45_678, "peak_memory_bytes": 812e6,
         "latency_ms": 1.25, "bundle_bytes": 2.6e6}  # fmt: skip


def right(count: int, of: int = 100, seed: int = 0) -> Outcomes:
    """Some of the items right, the same for equal arguments."""
    order = numpy.random.default_rng(seed).permutation(of)
    return Outcomes.of({"accuracy": ("ratio", "right", "texts")}, right=order < count, texts=numpy.ones(of))


def a_run(
    name: str,
    score: float | None = 0.5,
    test: float | None = None,
    *,
    params: Mapping[str, Any] = {},
    outcomes: Mapping[str, Outcomes] = {},
    values: Mapping[str, float] = {},
    finished: bool = True,
    **tags: str,
) -> str:
    tags = {**TAGS, **tags}
    run_id = tracking.create_run("letters", name, tags)
    logged = dict(values)
    if score is not None:
        logged[f"best_validation/{tags['metric']}"] = score
    if test is not None:
        logged |= {f"test/{tags['metric']}": test, "test/examples": 100}
    tracking.log_metrics(run_id, logged)
    if params:
        comparing.connect().log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    log_outcomes(run_id, {split: {"outcomes": found} for split, found in outcomes.items()})
    if finished:
        tracking.finish(run_id)
    return run_id


def groups(**options: Any) -> list[Group]:
    (found,) = compare("letters", **options)
    return found.groups


def names(group: Group) -> list[str]:
    return [row.name for row in group.rows]


def lines_of(group: Group, width: int = 100) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(pages.table(group, width))
    return [line.rstrip() for line in capture.get().splitlines()]


# Which runs compare


def test_only_runs_on_the_same_data_by_the_same_definition_stand_together(world: World, seqapp: Seqapp) -> None:
    a_run("weak", 0.7)
    a_run("elsewhere", 0.9, validation_digest="w" * 64)
    a_run("other-test", 0.95, test_digest="u" * 64)
    a_run("otherwise", 0.99, metric_definition="accuracy of the first guess")
    a_run("unfinished", 0.99, finished=False)
    a_run("scoreless", None)
    a_run("diverged", float("nan"))
    a_run("strong", 0.8)
    found = {tuple(names(group)): group.apart for group in groups()}
    assert found == {
        ("strong", "weak"): "",
        ("elsewhere",): "other validation data",
        ("other-test",): "other test data",
        ("otherwise",): "another metric (accuracy of the first guess, not accuracy)",
    }
    said = seqapp("compare", "letters")
    assert said.status == 0, said.err
    assert said.out.index("strong") < said.out.index("Not comparable with the first table: other")


def test_the_best_is_first_whichever_way_is_better(world: World) -> None:
    for name, score in (("worst", 2.0), ("best", 0.00123), ("middle", 0.5)):
        a_run(name, score, metric="mse", direction="min", scale="number", metric_definition="mse")
        a_run(name, score / 4)
    assert sorted(map(names, groups())) == [["best", "middle", "worst"], ["worst", "middle", "best"]]


def test_every_page_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in range(7):
        a_run(f"run {place}", 0.5 + place / 100)
    for page in (2, 3, 7, 100):
        monkeypatch.setattr(comparing, "PAGE", page)
        assert names(groups()[0]) == [f"run {place}" for place in reversed(range(7))]


def test_runs_that_differ_in_their_seed_alone_are_one_row(world: World) -> None:
    params = {"model.hidden_size": 8, "train.epochs": 3}
    ids = {}
    for seed, score in ((1, 0.2), (1, 0.80), (2, 0.90), (3, 0.85)):
        outcomes = {"validation": right(round(100 * score), seed=seed)}
        ids[seed] = a_run("same", score, score - 0.1, params={**params, "train.seed": seed}, seed=str(seed),
                          outcomes=outcomes, values={"seconds": seed})  # fmt: skip
    a_run("same", 0.99, params={**params, "train.seed": 1, "train.epochs": 5})
    ((longer, row),) = (group.rows for group in groups())
    assert longer.differs == "epochs=5"
    assert row.differs == "epochs=3"
    assert row.seeds == 3
    assert set(row.run_ids) == set(ids.values()), "of one seed the newest counts"
    assert row.seconds == 2
    quality = row.quality["validation"]
    assert (quality.value, quality.lowest, quality.highest) == pytest.approx((0.85, 0.8, 0.9))
    assert row.outcomes["validation"].score() == pytest.approx(0.85)
    assert row.outcomes["validation"].values[:, 0].max() <= 1
    ((shown,),) = ([line for line in lines_of(group) if "80.0–90.0" in line] for group in groups())
    assert shown
    every = groups(every=True)[0]
    assert len(every.rows) == 5
    assert every.advice == groups()[0].advice


def test_of_the_trials_of_a_sweep_the_best_of_each_network_is_shown(world: World) -> None:
    for number, (network, score) in enumerate([("lstm", 0.7), ("lstm", 0.8), ("gru", 0.6), ("gru", 0.5)]):
        a_run(f"{number}: {network}", score, network=network, params={"rate": number}, **{"mlflow.parentRunId": "p"})
    a_run("alone", 0.1)
    (group,) = groups()
    assert (names(group), group.left_out) == (["1: lstm", "2: gru", "alone"], 2)
    assert "2 more" in pages.left_out(group)
    assert len(groups(every=True)[0].rows) == 5


def test_the_rows_of_a_long_table_are_limited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "SHOWN", 2)
    for place in range(4):
        a_run(f"run {place}", place / 10)
    (group,) = groups()
    assert (names(group), group.left_out, len(group.run_ids)) == (["run 3", "run 2"], 2, 4)


def test_a_reproduction_is_no_run_of_its_own(world: World) -> None:
    first = a_run("same", 0.5)
    a_run("same", 0.5, reproduces=first)
    assert groups()[0].rows[0].run_ids == (first,)


def test_chosen_runs(world: World, seqapp: Seqapp) -> None:
    ids = [a_run(name, 0.5) for name in ("a", "b", "c")]
    assert names(groups(runs=[ids[1]])[0]) == ["b"]
    assert sorted(names(groups(runs=[ids[0][:31], ids[2]])[0])) == ["a", "c"]
    said = seqapp("compare", "--runs", f"{ids[0]},{ids[1]}", "--runs", ids[2])
    assert said.status == 0, said.err
    for wrong, problem in (("zz", "no finished run with a score has an id that begins with 'zz' (letters); there is "),
                           ("", "no finished run with a score has an id that begins with ''")):  # fmt: skip
        said = seqapp("compare", "letters", "--runs", wrong)
        assert (said.status, said.out, len(said.err.splitlines())) == (1, "", 1)
        assert said.err.startswith(f"error: {problem}")
    shared = next(prefix for prefix in "0123456789abcdef" if sum(run_id.startswith(prefix) for run_id in ids) != 1)
    assert seqapp("compare", "letters", "--runs", shared).status == 1


def test_what_is_wrong_is_one_sentence(world: World, seqapp: Seqapp) -> None:
    def refused(*arguments: str) -> str:
        said = seqapp("compare", *arguments)
        assert (said.status, said.out, len(said.err.splitlines())) == (1, "", 1)
        return said.err.removeprefix("error: ")

    assert refused("letters").startswith("no runs of 'letters' at sqlite:///")
    assert refused().startswith("no finished run with a validation score at sqlite:///")
    a_run("unfinished", finished=False)
    a_run("scoreless", None)
    assert refused("letters").startswith("no finished run of 'letters' with a validation score at sqlite:///")
    assert "experiments there: " in refused("tagging")
    a_run("one", outcomes={"test": right(3)})
    (path,) = world.path.glob("mlruns/*/*/artifacts/outcomes/test.parquet")
    path.write_bytes(b"PAR1")
    run_id = groups()[0].rows[0].run_ids[0]
    said = seqapp("compare", "letters")
    assert said.status == 0
    assert f"one, run {run_id}: its outcomes cannot be read, so it is not tested: test.parquet: not the" in said.err
    assert groups()[0].rows[0].outcomes == {}


@pytest.mark.parametrize("scores", [b"{}", b'{"a": ["cube", "right"]}', b'{"a": ["ratio", "wrong", "texts"]}', b"[]"])
def test_a_file_that_another_program_wrote_is_refused(world: World, tmp_path: Path, scores: bytes) -> None:
    import pyarrow
    from pyarrow import parquet

    from pipelines.outcomes import read_outcomes

    table = pyarrow.table({"right": [1.0], "texts": [1.0]})
    parquet.write_table(table.replace_schema_metadata({b"scores": scores}), tmp_path / "x.parquet")
    with pytest.raises(SeqappError, match=r"x\.parquet: not the outcomes"):
        read_outcomes(tmp_path / "x.parquet")


def test_outcomes_come_back_as_they_were(world: World, tmp_path: Path) -> None:
    from pipelines.outcomes import read_outcomes

    given = right(37)
    write_outcomes(tmp_path / "a.parquet", given)
    found = read_outcomes(tmp_path / "a.parquet")
    assert found.alike(given)
    assert (found.values == given.values).all()


# What is shown


def test_runs_from_before_an_option_join_those_that_have_its_default(world: World) -> None:
    new = tracking.flatten(config.load("tiny.yaml", sections=SECTIONS))
    later = ("train.clip_norm", "train.calibrate", "model.head.kind", "model.head.label_smoothing", "task.crop",
             "model.encoder.forget_bias")  # fmt: skip
    old = {key: value for key, value in new.items() if key not in later}
    a_run("same", 0.8, params=new, seed="2")
    a_run("same", 0.7, params=old)
    a_run("same", 0.65, params={**new, "train.calibrate": False}, seed="4")
    a_run("same", 0.6, params={**old, "train.clip_norm": 0.5}, seed="3")
    (group,) = groups()
    assert [(row.seeds, row.differs) for row in group.rows] == [(3, "clip_norm=1.0"), (1, "clip_norm=0.5")]
    # Of a kind that is gone the defaults are not known.
    a_run("same", 0.5, params={**old, "model.kind": "gone"}, seed="5")
    assert [row.seeds for row in groups()[0].rows] == [3, 1, 1]


@pytest.mark.parametrize("name", ["a [/red] b", "[bold]x", "x\\", "[link=x]y"])
def test_names_are_no_markup(world: World, seqapp: Seqapp, name: str) -> None:
    a_run(name, 0.5, network=name, dataset=name)
    a_run(name, 0.4, network=name, dataset=name, params={"data.text": name})
    said = seqapp("compare", "letters")
    assert said.status == 0, said.err
    assert said.out.startswith(f"{name} (validation data")
    assert name in "".join(lines_of(groups()[0], 200)[1:])


def test_what_a_heading_holds_is_no_html(world: World) -> None:
    a_run("one", 0.5, dataset="<b>bold</b>", metric_definition="<i>")
    page = pages.html(compare("letters")[0])
    assert "<h2>&lt;b&gt;bold&lt;/b&gt; (validation data vvvvvvvv, test data tttttttt; &lt;i&gt;)</h2>" in page
    assert "<b>" not in page
    assert "<i>" not in page


def test_an_experiment_called_like_a_path_stays_in_the_folder(world: World, seqapp: Seqapp) -> None:
    for name in ("x/../../escaped", "a b"):
        run_id = tracking.create_run(name, "one", TAGS)
        tracking.log_metrics(run_id, {"best_validation/accuracy": 0.5})
        tracking.finish(run_id)
        assert seqapp("compare", name).status == 0
    assert sorted(path.name for path in Path("runs").glob("comparison-*.md")) == [
        "comparison-a b.md",
        "comparison-x%2F..%2F..%2Fescaped.md",
    ]
    assert not list(world.path.parent.glob("**/escaped*"))


def test_a_page_that_cannot_be_written_is_one_sentence(world: World, seqapp: Seqapp) -> None:
    a_run("one", 0.5, outcomes={"validation": right(50)})
    for wrong in ("data.csv/page.html", "."):
        said = seqapp("compare", "letters", "--html", wrong)
        assert (said.status, len(said.err.splitlines())) == (1, 1)
        assert said.err.startswith(f"error: {wrong}: the page cannot be written there: ")


def test_rows_of_several_machines_are_told_below_the_table(world: World) -> None:
    a_run("quick", 0.9, machine="X, cores: 2")
    a_run("slow", 0.8, machine="X, cores: 2")
    assert pages.machines(groups()[0]) == ""
    a_run("other", 0.7, machine="<Y>")
    a_run("old", 0.6)
    (found,) = compare("letters")
    said = ("Times and memory compare only between rows of one machine, and these are of several. on <Y>: other; "
            "on X, cores: 2: quick and slow; unknown: old.")  # fmt: skip
    assert pages.machines(found.groups[0]) == said
    assert said in pages.lines(found.groups[0], 100)
    assert said in pages.markdown(found)
    assert said.replace("<Y>", "&lt;Y&gt;") in pages.html(found)


def test_the_description_of_a_long_comparison_ends_with_a_whole_line(world: World, seqapp: Seqapp) -> None:
    for place in range(40):
        a_run(f"run-{place}-" + "x" * 250, place / 100)
    assert seqapp("compare", "letters", "--all").status == 0
    experiment = world.client.get_experiment_by_name("letters")
    (run,) = world.client.search_runs([experiment.experiment_id], "tags.kind = 'comparison'")
    note, page = run.data.tags["mlflow.note.content"], Path("runs/comparison-letters.md").read_text()
    shown, rest = note.split("\n\nThe rest stands in ")
    assert rest == "the artifact `comparison.md`.\n"
    assert 7000 < len(note) <= 8000
    assert page.startswith(shown + "\n")


def test_a_table_of_a_hundred_columns(world: World) -> None:
    outcomes = {"validation": right(80), "test": right(70)}
    a_run("bundled-lstm", 0.8, 0.7, outcomes=outcomes, values=COSTS)
    a_run("old", 0.6, 0.7)
    a_run("nb-svm", 0.5, network="none (linear)", values={"seconds": 0.1})
    (group,) = groups()
    drawn = lines_of(group)
    assert max(map(len, drawn)) <= 100
    (new,) = (line for line in drawn if line.startswith("bundled-lstm"))
    assert new.split() == ["bundled-lstm", "lstm", "80.0%", "70.0%", "123k", "75", "s", "45.7k", "812M", "1.2", "2.6M",
                           "1"]  # fmt: skip
    (old,) = (line for line in drawn if line.startswith("old"))
    assert old.split() == ["old", "lstm", "60.0%", "70.0%", "–", "–", "–", "–", "–", "–", "1"]
    # Wilson's, since that run logged no outcomes.
    assert any("(60.4–78.1)" in line for line in drawn)
    (baseline,) = (line for line in drawn if line.startswith("nb-svm"))
    assert baseline.split()[4:] == ["–", "–", "0.1", "s", "–", "–", "–", "–", "1"]


def test_a_share_of_everything_has_the_interval_of_wilson(world: World) -> None:
    a_run("perfect", 1.0, 1.0, outcomes={"validation": right(100), "test": right(100)})
    assert groups()[0].rows[0].quality["test"].interval == pytest.approx((0.963, 1), abs=1e-3)


def test_an_odd_score_has_a_better_known_one_beside_it(world: World) -> None:
    scores = {"nll": ("ratio", "cost", "answers"), "accuracy": ("ratio", "right", "answers")}
    chance = numpy.random.default_rng(0)
    outcomes = Outcomes.of(scores, cost=chance.random(50), right=chance.random(50) < 0.5, answers=numpy.ones(50))
    a_run("odd", 0.4, outcomes.score(), metric="nll", direction="min", scale="number", metric_definition="nll",
          outcomes={"test": outcomes})  # fmt: skip
    (group,) = groups()
    further = group.rows[0].further
    assert further is not None
    assert further[0] == "accuracy"
    assert further[1].value == pytest.approx(outcomes.score("accuracy"))
    assert [column.head for column in pages.columns(group)][3:5] == ["test nll (95\xa0%)", "test accuracy (95\xa0%)"]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_whole_columns_are_left_out_and_names_are_never_cut(world: World, width: int) -> None:
    outcomes = {"validation": right(80), "test": right(70)}
    long = "bundled-bidirectional-gru-with-attention"
    ids = [
        a_run(long, 0.8, 0.7, outcomes=outcomes, values=COSTS, network="gru_reset_after"),
        a_run("12: layer.kind=lstm dropout=0.3", 0.7, 0.6, values=COSTS, network="lstm, additive attention"),
    ]
    (group,) = groups()
    drawn = lines_of(group, width)
    assert max(map(len, drawn)) <= width
    made, gone = pages.fitting(group, width)
    assert sorted([column.head for column in made] + gone) == sorted(c.head for c in pages.columns(group, narrow=True))
    below = [line for line in pages.lines(group, width) if line.startswith("Left out for lack of width: ")]
    assert below == ([f"Left out for lack of width: {', '.join(gone)}; the pages have them."] if gone else [])
    assert bool(gone) == (width < 100)
    assert gone == [] or "seeds" in gone
    text = "\n".join(drawn)
    for whole in (*re.findall(r"[^-]+-?", long), "layer.kind=lstm", "dropout=0.3", "gru_reset_after", "additive"):
        assert whole in text
    assert "…" not in text
    first = [line.split()[0] for line in drawn if line and not line.startswith(" ")]
    assert "".join(first).count(long) == 1, "the pieces of a name stand below each other"
    assert {run_id[:8] for run_id in ids} <= set(first)


def test_the_newest_run_of_a_row_is_named_everywhere(world: World, seqapp: Seqapp) -> None:
    old, new = (a_run("same", 0.8, 0.7, seed=seed) for seed in "12")
    said = seqapp("compare", "letters")
    for page in (said.out, *(Path(f"runs/comparison-letters.{kind}").read_text() for kind in ("md", "html"))):
        assert new[:8] in page
        assert old[:8] not in page
    assert seqapp("compare", "letters", "--runs", new[:8]).status == 0


def test_a_pipe_has_the_width_it_is_told_and_no_blanks_at_the_end(
    world: World, seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a-name-of-middling-length", "b"):
        a_run(name, 0.8, 0.7, outcomes={"validation": right(80), "test": right(70)}, values=COSTS)
    longest = []
    for columns in ("80", "100", ""):
        monkeypatch.setenv("COLUMNS", columns)
        drawn = seqapp("compare", "letters").out.splitlines()
        assert all(line == line.rstrip() for line in drawn)
        longest.append(max(map(len, drawn)))
    assert longest[0] <= 80 < longest[1] <= 100 < longest[2] <= 120


def test_a_part_replaces_no_comparison_of_all(world: World, seqapp: Seqapp) -> None:
    ids = [a_run(name, 0.5) for name in "abc"]
    assert seqapp("compare", "letters").status == 0
    files = [*Path("runs").glob("comparison-*"), *world.path.glob("mlruns/*/*/artifacts/comparison.*")]
    assert len(files) == 4
    before = [file.read_bytes() for file in files]
    said = seqapp("compare", "letters", "--runs", ids[0], "--html", "part.html")
    assert "pages: part.html" in said.out.splitlines()
    assert "pages: " not in seqapp("compare", "letters", "--runs", ids[0]).out
    assert [file.read_bytes() for file in files] == before
    assert ids[0][:8] in Path("part.html").read_text()
    assert not Path("part.md").exists()


def test_the_advice_stands_before_the_table(world: World) -> None:
    a_run("one", 0.5)
    (found,) = compare("letters")
    page = pages.markdown(found)
    assert page.index(found.groups[0].advice) < page.index(found.groups[0].step) < page.index("| run |")


def test_what_comes_next_is_told(world: World, seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, other = a_run("kept", 0.8), a_run("other", 0.7)
    assert groups()[0].step.startswith(f"Next: `seqapp promote {kept[:8]}` makes it the champion")
    client = world.client
    client.create_registered_model("letters-kept", tags={"task": "letters"})
    for run_id in (kept, other):
        client.create_model_version("letters-kept", str(world.path), run_id)
    client.set_registered_model_alias("letters-kept", "champion", "2")
    assert groups()[0].step.startswith(f"Next: `seqapp promote {kept[:8]}`")
    client.set_registered_model_alias("letters-kept", "champion", "1")
    assert groups()[0].step.startswith("It is the champion of letters-kept already")
    (found,) = compare("letters")
    assert re.findall("<tr class=kept>.*?</tr>", pages.html(found))[0].count(kept[:8]) == 1

    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("no registry")

    monkeypatch.setattr("mlflow.MlflowClient.search_registered_models", refuse)
    assert groups()[0].step == ""


def test_the_line_of_the_intervals_has_a_scale(world: World) -> None:
    a_run("one", 0.8, 0.7, outcomes={"test": right(70)})
    (found,) = compare("letters")
    interval = found.groups[0].rows[0].quality["test"].interval
    assert interval
    ends = "".join(f"<span>{end:.1%}</span>" for end in interval)
    assert f"<th>test interval<small class=scale>{ends}</small></th>" in pages.html(found)


def test_seeds_whose_outcomes_are_gone_are_told(world: World, seqapp: Seqapp, caplog: pytest.LogCaptureFixture) -> None:
    lost = [
        a_run("lstm", 0.8, seed=seed, outcomes={"validation": right(80)}, values={"parameters": 9}) for seed in "12"
    ]
    a_run("gru", 0.5, network="gru", outcomes={"validation": right(50)}, values={"parameters": 5})
    said = []
    for run_id in lost:
        shutil.rmtree(next(world.path.glob(f"mlruns/*/{run_id}/artifacts")))
        caplog.clear()
        said.append(groups()[0].advice)
        assert caplog.text.count(f"lstm, run {run_id}: its outcomes are missing") == 1
    assert "with 50.0% (p < 0.001" in said[0]
    assert "Of lstm 1 of 2 seeds are tested; the outcomes of the rest are missing." in said[0]
    assert "gru is cheaper and cannot be tested against it: the outcomes of lstm are missing" in said[1]


def test_a_task_that_is_not_there_is_told_with_what_may_be_meant(world: World, seqapp: Seqapp) -> None:
    a_run("one", 0.5)
    said = seqapp("compare", "sentimet")
    assert said.status == 1
    assert "; did you mean 'sentiment'? tasks: " in said.err
    assert said.err.rstrip().endswith("experiments there: letters")
    assert "did you mean 'letters'?" in seqapp("compare", "leters").err


def test_without_a_database_there_are_no_runs_yet(
    world: World, seqapp: Seqapp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    said = seqapp("compare", "foo")
    assert (said.status, len(said.err.splitlines())) == (1, 1)
    assert said.err.startswith(f"error: no runs yet at sqlite:///{tmp_path}/none.db; ")
    assert not Path(tmp_path, "none.db").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.55, "0.55"),
        (9.96, "10"),
        (999, "999"),
        (999.7, "1k"),
        (1234, "1.23k"),
        (2.5e9, "2.5G"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert pages._number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.28, "0.28 s"), (59.6, "60 s"), (150, "2.5 min"), (9000, "2.5 h")])
def test_times_are_short(seconds: float, text: str) -> None:
    assert pages._time(seconds) == text


def test_the_pages_say_the_same_and_need_nothing_else(world: World, seqapp: Seqapp) -> None:
    data = "<b>letters</b>"
    a_run("a|b", 0.8, 0.7, outcomes={"validation": right(80), "test": right(70)}, values=COSTS, dataset=data)
    a_run("<script>", 0.7, 0.65, outcomes={"validation": right(70), "test": right(65)}, network="gru", dataset=data)
    said = seqapp("compare", "letters", "--html", "out/page.html", "--markdown", "out/page.md")
    assert said.status == 0, said.err
    html, markdown = (Path(f"out/page.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    advice = groups()[0].advice
    assert advice in markdown
    assert "".join(advice.split()) in "".join(said.out.split())
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<h2>&lt;b&gt;letters&lt;/b&gt; (" in html
    assert not re.search(r"https?://|src=|@import|url\(", html)
    assert html.count("<svg") == 2
    assert r"a\|b" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert len(rows) == 4


def test_the_comparison_is_one_run_and_no_candidate(world: World, seqapp: Seqapp) -> None:
    a_run("first", 0.5)
    for _ in range(2):
        assert seqapp("compare").status == 0
    a_run("second", 0.6)
    said = seqapp("compare")
    assert "pages: runs/comparison-letters.html, runs/comparison-letters.md" in said.out
    experiment = world.client.get_experiment_by_name("letters")
    found = [run for run in world.client.search_runs([experiment.experiment_id]) if run.info.run_name == "comparison"]
    (run,) = found
    assert run.info.status == "FINISHED"
    assert {file.path for file in world.client.list_artifacts(run.info.run_id)} == {"comparison.html", "comparison.md"}
    (path,) = world.path.glob("mlruns/*/*/artifacts/comparison.md")
    assert path.read_text() == Path("runs/comparison-letters.md").read_text()
    assert "second" in path.read_text()
    assert names(groups()[0]) == ["second", "first"]


def test_a_server_that_takes_no_artifacts_stops_nothing(
    world: World, seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("read only")

    a_run("one", 0.5)
    monkeypatch.setattr(pages, "_publish", refuse)
    said = seqapp("compare")
    assert said.status == 0
    assert "the comparison is not in MLflow: read only" in said.err


# Advice


def a_row(
    name: str,
    validation: Outcomes | None,
    test: Outcomes | None = None,
    *,
    parameters: float | None = 100,
    latency: float = 1.0,
    network: str | None = None,
    machine: str = "this",
) -> Row:
    outcomes = {split: found for split, found in (("validation", validation), ("test", test)) if found is not None}
    quality = {split: Quality(found.score(), found.score(), found.score()) for split, found in outcomes.items()}
    if validation is None:
        quality["validation"] = Quality(0.8, 0.8, 0.8)
    return Row(name=name, network=name if network is None else network, differs="", run_ids=(name,), seeds=1,
               quality=quality, outcomes=outcomes, parameters=parameters, latency=latency,
               switch="model.encoder.kind=gru", machines=frozenset({machine}))  # fmt: skip


def a_group(rows: Sequence[Row], direction: str = "max") -> Group:
    rows = sorted(rows, key=lambda row: row.quality["validation"].value, reverse=direction == "max")
    return Group("letters", ("v", "t"), ("accuracy", direction), "accuracy", "share of examples", list(rows))


def advise(group: Group) -> str:
    return comparing.advise(group)[1]


def kept(*rows: Row, direction: str = "max") -> str:
    found = re.match(r"Keep (\S+) \(", advise(a_group(rows, direction)))
    assert found
    return found[1]


BIG = {"parameters": 300.0}


def test_the_cheaper_is_kept_where_the_quality_does_not_differ() -> None:
    lstm, gru = a_row("lstm", right(82), **BIG), a_row("gru", right(80, seed=1), parameters=225)
    assert kept(lstm, gru) == "gru"
    said = advise(a_group([lstm, gru]))
    assert said.startswith(
        "Keep gru (gru): with 225 parameters, 25% fewer, its validation accuracy of 80.0% does not differ "
        "significantly from the 82.0% of lstm (lstm), the best (p = 0.86, 95 % interval of its lead "
    )
    assert "paired randomisation test over 100 items, 5 % level)." in said


def test_the_best_is_kept_where_the_cheaper_is_significantly_worse_or_there_is_none() -> None:
    lstm, gru = a_row("lstm", right(90), **BIG), a_row("gru", right(60))
    assert kept(lstm, gru) == "lstm"
    said = advise(a_group([lstm, gru]))
    assert "every cheaper network is significantly worse; the nearest is gru (gru) with 60.0% (p < 0.001, " in said
    assert kept(a_row("lstm", right(90), **BIG), a_row("gru", right(95))) == "gru"
    assert "no other network here is cheaper" in advise(
        a_group([a_row("lstm", right(90), **BIG), a_row("gru", right(95))])
    )


def test_of_several_cheaper_ones_the_cheapest_and_of_equals_the_fastest() -> None:
    best, good, fair = a_row("best", right(82), **BIG), right(81, seed=1), right(79, seed=2)
    assert kept(best, a_row("small", fair, parameters=50), a_row("middle", good, parameters=99)) == "small"
    slow = a_row("slow", good, latency=2)
    assert kept(best, slow, a_row("fast", fair, latency=1)) == "fast"
    # As many parameters as the best: another network that is faster, but not a repetition of the same.
    assert kept(best, a_row("fast", good, **BIG, latency=0.5)) == "fast"
    assert kept(best, a_row("again", good, **BIG, latency=0.5, network="best")) == "best"
    # Times of another machine, or of one that is not told, choose nothing.
    for machine in ("that", ""):
        assert kept(best, slow, a_row("fast", fair, latency=1, machine=machine)) == "slow"
        assert kept(best, a_row("fast", good, **BIG, latency=0.5, machine=machine)) == "best"


def test_the_two_best_are_always_tested() -> None:
    best, small = a_row("gru", right(95)), a_row("elman", right(50), parameters=10)
    for second, how in ((a_row("lstm", right(93, seed=1), **BIG), "not significantly different (p = "),
                        (a_row("lstm", right(80), **BIG), "significantly worse (p < 0.001, ")):  # fmt: skip
        for rows in ([best, second], [best, second, small]):
            said = advise(a_group(rows))
            assert said.startswith("Keep gru (gru): it has the best validation accuracy, 95.0%, and ")
            assert (
                f"Second on validation is lstm (lstm) with {second.outcomes['validation'].score():.1%}, {how}" in said
            )
            assert "95 % interval of the lead of gru " in said
    # What the first sentence tells of the second is told once.
    for other in (a_row("lstm", right(60), parameters=50), a_row("lstm", right(94, seed=1), parameters=50)):
        said = advise(a_group([best, other]))
        assert "Second on" not in said
        assert "p = " in said or "p < " in said
    assert "with 93.0%; too few items differ" in advise(a_group([best, a_row("lstm", right(93), **BIG)]))
    said = advise(a_group([best, a_row("old", None, **BIG)]))
    assert "Second on validation is old (old) with 80.0%, not tested: the outcomes of old are missing." in said


def test_lower_is_better_where_it_is() -> None:
    wrong = a_row("lstm", right(10), **BIG), a_row("gru", right(60))
    assert kept(*wrong, direction="min") == "lstm"
    lead = re.search(r"lead ([-\d.]+) to ([-\d.]+) points", advise(a_group(wrong, "min")))
    assert lead
    assert 0 < float(lead[1]) < 50 < float(lead[2])


def test_further_rows_do_not_make_a_cheap_one_look_as_good() -> None:
    # 6 items of 6 speak against the cheap one: p = 2 / 64, however many others there are.
    rows = [a_row("best", right(90), **BIG), a_row("cheap", right(84))]
    for count in range(3):
        others = [a_row(f"junk-{place}", right(84), parameters=200) for place in range(count)]
        assert kept(*rows, *others) == "best"


def test_many_claims_of_a_difference_are_held_to_a_stricter_level() -> None:
    # 6 items of 6 on the test data: p = 2 / 64 for one, and more than 5 % for one of two.
    one, *others = (a_row(f"lstm-{place}", right(90 - place), right(96), **BIG) for place in range(2))
    best = a_row("best", right(91), right(90), **BIG)
    assert "contradict: there lstm-0 (lstm-0) with 96.0% (p = 0.031) is" in advise(a_group([best, one]))
    assert "no other network is significantly better" in advise(a_group([best, one, *others]))


def test_with_too_few_items_the_cheap_one_is_not_kept() -> None:
    lstm, gru = a_row("lstm", right(10, of=10), right(10, of=10), **BIG), a_row("gru", right(5, of=10), right(9, of=10))
    assert kept(lstm, gru) == "lstm"
    said = advise(a_group([lstm, gru]))
    assert "gru is cheaper, but too few items differ to tell whether as good" in said
    assert "significantly" not in said
    enough = a_row("elman", right(4, of=10))
    assert "every cheaper network that could be tested is significantly worse" in advise(a_group([lstm, gru, enough]))
    # Of the best by validation the cheapest.
    same = a_row("gru", right(10, of=10))
    assert kept(lstm, same) == kept(same, lstm) == "gru"
    assert "validation accuracy of 100.0% is that of lstm (lstm)." in advise(a_group([lstm, same]))
    svm = a_row("svm", right(9, of=10), network="none (linear)", parameters=None)
    assert "svm (90.0%, too few items differ to tell)" in advise(a_group([lstm, svm]))


def test_the_test_data_choose_nothing_and_may_contradict() -> None:
    said = set()
    for test_lstm, test_gru in itertools.product((50, 95), repeat=2):
        lstm = a_row("lstm", right(82), right(test_lstm), **BIG)
        gru = a_row("gru", right(80, seed=1), right(test_gru))
        assert kept(lstm, gru) == "gru"
        said.add(("contradict" in advise(a_group([lstm, gru])), test_lstm > test_gru))
    assert said == {(True, True), (False, False)}
    contradicting = advise(
        a_group([a_row("lstm", right(82), right(95), **BIG), a_row("gru", right(80, seed=1), right(50))])
    )
    assert "there lstm (lstm) with 95.0% (p < 0.001) is significantly better than its 50.0%." in contradicting


def test_a_baseline_is_never_kept_but_told() -> None:
    lstm = a_row("lstm", right(80))
    better, equal, worse = (a_row(f"svm-{count}", right(count), network="none (linear)", parameters=None)
                            for count in (99, 86, 30))  # fmt: skip
    assert kept(better, lstm, worse) == "lstm"
    assert "svm-99 (99.0%, better, p < 0.001); a network may not be worth its cost here" in advise(
        a_group([lstm, better])
    )
    equal = a_row("svm-81", right(81, seed=1), network="none (linear)", parameters=None)
    assert "svm-81 (81.0%, not significantly different, p = 1)" in advise(a_group([lstm, equal]))
    assert "baseline" not in advise(a_group([lstm, worse]))
    assert advise(a_group([better])).startswith("There are baselines only; ")


def test_one_network_asks_for_a_second() -> None:
    said = advise(a_group([a_row("lstm", right(80))]))
    assert "It is the only network here" in said
    assert "such as its config with model.encoder.kind=gru" in said


def test_runs_without_outcomes_cannot_be_tested_and_that_is_said() -> None:
    lstm = a_row("lstm", right(82), **BIG)
    for cheap in (a_row("old", None), a_row("old", right(8, of=10))):
        assert kept(lstm, cheap) == "lstm"
        assert "old is cheaper and cannot be tested against it" in advise(a_group([lstm, cheap]))
    assert kept(lstm, a_row("unknown", right(81), parameters=None)) == "lstm"


def test_the_other_network_is_named_by_the_choice_that_makes_it() -> None:
    params = {
        "model.kind": "classifier",
        "model.encoder.kind": "birnn",
        "model.encoder.layer.kind": "lstm",
        "a": "lstm",
    }
    assert comparing._switch(params) == "model.encoder.layer.kind=gru"
    assert comparing._switch({"model.decoder.kind": "gru", "model.encoder.kind": "gru"}) == (
        "model.decoder.kind=lstm model.encoder.kind=lstm"
    )
    assert comparing._switch({"model.encoder.kind": "elman"}) == ""


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ("additive", "lstm, additive attention"),
        ("multi_head", "lstm, multi-head attention"),
        ("none", "lstm, no attention"),
    ],
)
def test_a_translator_is_called_by_its_attention_too(attention: str, said: str) -> None:
    spec = {
        "kind": "translator",
        "encoder": {"kind": "lstm"},
        "decoder": {"kind": "gru"},
        "attention": {"kind": attention},
    }
    assert network_of(spec) == said
