"""Which runs stand side by side, what is shown of them, and which one the advice keeps."""

import itertools
import re
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
from pipelines.compare import Group, Quality, Row, advise, compare
from pipelines.outcomes import log_outcomes, write_outcomes
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
        console.print(pages.table(group))
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
    assert refused("letters").startswith("test.parquet: not the outcomes of a run")


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
    a_run("a|b", 0.8, 0.7, outcomes={"validation": right(80), "test": right(70)}, values=COSTS)
    a_run("<script>", 0.7, 0.65, outcomes={"validation": right(70), "test": right(65)}, network="gru")
    said = seqapp("compare", "letters", "--html", "out/page.html", "--markdown", "out/page.md")
    assert said.status == 0, said.err
    html, markdown = (Path(f"out/page.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    advice = groups()[0].advice
    assert advice in markdown
    assert "".join(advice.split()) in "".join(said.out.split())
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
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
) -> Row:
    outcomes = {split: found for split, found in (("validation", validation), ("test", test)) if found is not None}
    quality = {split: Quality(found.score(), found.score(), found.score()) for split, found in outcomes.items()}
    if validation is None:
        quality["validation"] = Quality(0.8, 0.8, 0.8)
    return Row(name=name, network=name if network is None else network, differs="", run_ids=(name,), seeds=1,
               quality=quality, outcomes=outcomes, parameters=parameters, latency=latency,
               switch="model.encoder.kind=gru")  # fmt: skip


def a_group(rows: Sequence[Row], direction: str = "max") -> Group:
    rows = sorted(rows, key=lambda row: row.quality["validation"].value, reverse=direction == "max")
    return Group("letters", ("v", "t"), ("accuracy", direction), "accuracy", "share of examples", list(rows))


def kept(*rows: Row, direction: str = "max") -> str:
    found = re.match(r"Keep (\S+) \(", advise(a_group(rows, direction)))
    assert found
    return found[1]


BIG = {"parameters": 300.0}


def test_the_cheaper_is_kept_where_the_quality_does_not_differ() -> None:
    lstm, gru = a_row("lstm", right(82), **BIG), a_row("gru", right(80), parameters=225)
    assert kept(lstm, gru) == "gru"
    said = advise(a_group([lstm, gru]))
    assert said.startswith(
        "Keep gru (gru): with 225 parameters, 25% fewer, its validation accuracy of 80.0% does not differ "
        "significantly from the 82.0% of lstm (lstm), the best (p = 0.5, 95 % interval of its lead "
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
    best = a_row("best", right(82), **BIG)
    assert kept(best, a_row("small", right(80), parameters=50), a_row("middle", right(81), parameters=99)) == "small"
    assert kept(best, a_row("slow", right(80), latency=2), a_row("fast", right(79), latency=1)) == "fast"
    # As many parameters as the best: another network that is faster, but not a repetition of the same.
    assert kept(best, a_row("fast", right(81), **BIG, latency=0.5)) == "fast"
    assert kept(best, a_row("again", right(81), **BIG, latency=0.5, network="best")) == "best"


def test_lower_is_better_where_it_is() -> None:
    wrong = a_row("lstm", right(10), **BIG), a_row("gru", right(60))
    assert kept(*wrong, direction="min") == "lstm"
    lead = re.search(r"lead ([-\d.]+) to ([-\d.]+) points", advise(a_group(wrong, "min")))
    assert lead
    assert 0 < float(lead[1]) < 50 < float(lead[2])


def test_many_comparisons_are_held_to_a_stricter_level() -> None:
    # 6 items of 6 speak against the cheap one: p = 2 / 64 alone, twice that beside another.
    best, cheap = right(90), right(84)
    rows = [a_row("best", best, **BIG), a_row("cheap", cheap)]
    assert kept(*rows) == "best"
    assert kept(*rows, a_row("other", right(84), parameters=200)) == "cheap"


def test_the_test_data_choose_nothing_and_may_contradict() -> None:
    said = set()
    for test_lstm, test_gru in itertools.product((50, 95), repeat=2):
        lstm = a_row("lstm", right(82), right(test_lstm), **BIG)
        gru = a_row("gru", right(80), right(test_gru))
        assert kept(lstm, gru) == "gru"
        said.add(("contradict" in advise(a_group([lstm, gru])), test_lstm > test_gru))
    assert said == {(True, True), (False, False)}
    contradicting = advise(a_group([a_row("lstm", right(82), right(95), **BIG), a_row("gru", right(80), right(50))]))
    assert "there lstm (lstm) with 95.0% (p < 0.001) is significantly better than its 50.0%." in contradicting


def test_a_baseline_is_never_kept_but_told() -> None:
    lstm = a_row("lstm", right(80))
    better, equal, worse = (a_row(f"svm-{count}", right(count), network="none (linear)", parameters=None)
                            for count in (99, 81, 30))  # fmt: skip
    assert kept(better, lstm, worse) == "lstm"
    assert "svm-99 (99.0%, better, p < 0.001); a network may not be worth its cost here" in advise(
        a_group([lstm, better])
    )
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
