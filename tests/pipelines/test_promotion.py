"""Who is champion and challenger, how a person changes that, and the way back."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from pipelines import promotion
from pipelines.promotion import CHALLENGER, CHAMPION, HISTORY, KEPT, Score, promote, register, rollback
from seqapp.errors import SeqappError
from seqapp.outcomes import Outcomes
from seqapp.references import resolve
from tests.pipelines.worlds import Done, Said, World

Seqapp = Callable[..., Said]
Enter = Callable[..., str]


@pytest.fixture
def enter(done: Done) -> Iterator[Enter]:
    """Registers the trained model again as a version of "m" with another score; gone after the test."""
    run_id = done.trained.run_id
    model = done.client.get_run(run_id).outputs.model_outputs[-1].model_id

    def make(value: float, digest: str = "d", metric: str = "accuracy", name: str = "m") -> str:
        score = (metric, value, "max")
        return register(run_id, f"models:/{model}", name, score=score, validation_digest=digest).version

    yield make
    for found in done.client.search_registered_models():
        if found.name != "sentiment-tiny":
            done.client.delete_registered_model(found.name)


def aliases(world: World, name: str = "m") -> dict[str, str]:
    return {alias: str(version) for alias, version in world.client.get_registered_model(name).aliases.items()}


def reigns(world: World, name: str = "m") -> list[str]:
    return [entry["version"] for entry in json.loads(world.client.get_registered_model(name).tags[HISTORY])]


# What training does


@pytest.mark.parametrize(
    ("scores", "champion", "challenger"),
    [
        ([0.5], "1", None),
        ([0.5, 0.6], "2", "1"),
        ([0.5, 0.4], "1", "2"),
        ([0.5, 0.4, 0.3], "1", "2"),
        ([0.5, 0.4, 0.45], "1", "3"),
        ([0.5, 0.5001, 0.45], "2", "1"),
        ([0.5, 0.6, 0.55, 0.7], "4", "2"),
        ([float("nan"), 0.1], "2", "1"),
        ([0.1, float("nan")], "1", "2"),
        ([0.1, float("nan"), 0.05], "1", "3"),
    ],
)
def test_new_versions_find_their_place(
    done: Done, enter: Enter, scores: list[float], champion: str, challenger: str | None
) -> None:
    for value in scores:
        enter(value)
    wanted = {CHAMPION: champion} | ({CHALLENGER: challenger} if challenger else {})
    assert aliases(done) == wanted


def test_on_other_data_a_version_waits_only_where_none_that_compares_waits(done: Done, enter: Enter) -> None:
    enter(0.5)
    for value, challenger in ((0.9, "2"), (0.8, "2"), (0.95, "4")):
        enter(value, digest="other")
        assert aliases(done) == {CHAMPION: "1", CHALLENGER: challenger}
    enter(0.4)  # compares with the champion
    assert aliases(done) == {CHAMPION: "1", CHALLENGER: "5"}
    enter(0.99, digest="other")
    assert aliases(done) == {CHAMPION: "1", CHALLENGER: "5"}


def test_after_a_change_of_data_the_old_champion_does_not_stay_challenger(done: Done, enter: Enter) -> None:
    enter(0.9, digest="old")
    enter(0.5, digest="new")
    promote("m/2", force=True)
    assert aliases(done) == {CHAMPION: "2", CHALLENGER: "1"}
    for value, challenger in ((0.3, "3"), (0.4, "4"), (0.35, "4")):
        enter(value, digest="new")
        assert aliases(done) == {CHAMPION: "2", CHALLENGER: challenger}


def test_a_version_sent_again_says_why_it_is_champion(
    done: Done, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    plain = register

    def listening(*arguments: Any, **options: Any) -> Any:
        said.append((found := plain(*arguments, **options)).reason)
        return found

    monkeypatch.setattr("tests.pipelines.test_promotion.register", listening)
    for value in (0.5, 0.5, 0.6, 0.6):
        enter(value)
    better = "validation accuracy 0.6000 beats 0.5000 of version 1"
    assert said == ["the first version", "the first version", better, better]
    done.client.delete_model_version_tag("m", "2", "became_champion")
    enter(0.6)
    assert said[-1] == "it is the champion already"


def test_scores_compare_only_by_one_definition() -> None:
    one, other = (Score("bleu", value, "max", "d", told) for value, told in ((10.0, "13a"), (20.0, "intl")))
    assert other.against(one, "1")[0] is None
    assert other.against(Score("bleu", 10.0, "max", "d"), "1")[0] is True
    assert Score.of(one.tags()) == one
    assert Score.of({"score": "high"}).metric == ""


def test_the_same_model_twice_is_one_version(done: Done, enter: Enter) -> None:
    assert [enter(0.5), enter(0.5), enter(0.6), enter(0.5)] == ["1", "1", "2", "1"]
    assert aliases(done) == {CHAMPION: "2", CHALLENGER: "1"}


def test_the_pages_tell_scores_run_and_data(done: Done, enter: Enter) -> None:
    enter(0.5)
    enter(0.6)
    version = done.client.get_model_version("m", "2")
    assert version.tags["score"] == "0.6"
    assert version.tags["validation_digest"] == "d"
    assert version.tags["became_champion"].endswith("validation accuracy 0.6000 beats 0.5000 of version 1")
    for wanted in ("validation accuracy 0.6000", "test accuracy", "lstm", "data.csv", "run tiny"):
        assert wanted in version.description
    model = done.client.get_registered_model("m")
    assert "seqapp promote m" in model.description
    assert "higher is better" in model.description


def test_trainers_at_once_leave_a_registry_that_stands(done: Done, enter: Enter) -> None:
    enter(0.5)
    failed: list[BaseException] = []

    def work(value: float) -> None:
        try:
            enter(value)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(value,)) for value in (0.7, 0.4, 0.6, 0.3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    found = aliases(done)
    score = {str(v.version): float(v.tags["score"]) for v in done.client.search_model_versions("name = 'm'")}
    assert sorted(score.values()) == [0.3, 0.4, 0.5, 0.6, 0.7]
    assert score[found[CHAMPION]] in (0.6, 0.7)  # the better of two that come at once may lose, never to a worse one
    assert found[CHALLENGER] != found[CHAMPION]
    rollback("m")


# Promotion


def test_promotion_takes_the_challenger_and_says_both_scores(done: Done, enter: Enter, seqapp: Seqapp) -> None:
    enter(0.5)
    enter(0.4)
    refused = seqapp("promote", "m")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err == (
        "error: m version 2 stays what it is: validation accuracy 0.4000 is not better than 0.5000 of the champion, "
        "version 1; --force makes it champion all the same\n"
    )
    assert aliases(done) == {CHAMPION: "1", CHALLENGER: "2"}
    said = seqapp("promote", "m", "--force")
    assert said.out == (
        "m: version 2 (validation accuracy 0.4000) is the champion now, "
        "version 1 (validation accuracy 0.5000) the challenger\n"
    )
    assert aliases(done) == {CHAMPION: "2", CHALLENGER: "1"}
    assert resolve("m").version == "2"
    assert seqapp("promote", "m").status == 0  # back, and this time it is better
    assert aliases(done) == {CHAMPION: "1", CHALLENGER: "2"}
    assert reigns(done) == ["1", "2", "1"]


def test_equal_is_not_worse(done: Done, enter: Enter) -> None:
    enter(0.5)
    enter(0.4)
    done.client.set_model_version_tag("m", "2", "score", "0.5")
    assert str(promote("m/2")).startswith("m: version 2 ")


@pytest.mark.parametrize(("right", "level"), [(60, True), (40, False)])
def test_a_lower_score_may_be_promoted_if_the_items_do_not_tell_it_apart(
    done: Done, enter: Enter, monkeypatch: pytest.MonkeyPatch, right: int, level: bool
) -> None:
    enter(0.62)
    enter(right / 100)
    places = numpy.random.default_rng(1).permutation(100)
    answers = iter([places < right, numpy.arange(100) < 62])  # of the version, then of the champion

    def fetch(run_id: str) -> dict[str, Outcomes]:
        scores = {"accuracy": ("ratio", "right", "texts")}
        return {"validation": Outcomes.of(scores, right=next(answers), texts=numpy.ones(100))}

    monkeypatch.setattr(promotion, "fetch_outcomes", fetch)
    if level:
        assert promote("m/2").version == "2"
        assert (
            "does not differ significantly from version 1 (p = " in done.client.get_registered_model("m").tags[HISTORY]
        )
    else:
        with pytest.raises(SeqappError, match=r"0\.4000 is not better than 0\.6200.*--force"):
            promote("m/2")


def test_other_data_or_another_score_need_force(done: Done, enter: Enter) -> None:
    enter(0.5)
    enter(0.9, digest="other")
    enter(0.8, metric="macro_f1")
    with pytest.raises(SeqappError, match=r"version 1, was measured on other validation data.*--force"):
        promote("m/2")
    with pytest.raises(SeqappError, match=r"version 1, was chosen by accuracy and this one by macro_f1.*--force"):
        promote("m/3")
    assert promote("m/3", force=True).version == "3"
    assert promote("m@challenger", force=True).version == "1"


def test_the_champion_may_be_named_too(done: Done, enter: Enter) -> None:
    enter(0.5)
    assert str(promote("m@champion")) == "m: version 1 (validation accuracy 0.5000) is the champion now"
    assert reigns(done) == ["1"]


def test_without_a_champion_anything_that_answers_may_become_one(done: Done, enter: Enter) -> None:
    enter(0.5)
    enter(0.4)
    done.client.delete_registered_model_alias("m", CHAMPION)
    assert promote("m").before == ""
    assert aliases(done) == {CHAMPION: "2"}


@pytest.mark.parametrize("damage", ["weights", "golden"])
def test_a_version_that_does_not_answer_as_it_did_is_refused(
    done: Done, enter: Enter, damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from seqapp import bundle
    from seqapp.errors import BundleError

    enter(0.5)
    enter(0.4)

    def damaged(*_: Any) -> None:
        raise BundleError(f"the {damage} are damaged")

    if damage == "weights":
        monkeypatch.setattr(bundle, "load", damaged)
    else:
        monkeypatch.setattr(bundle.Bundle, "check_golden", damaged)
    with pytest.raises(SeqappError, match=f"m version 2 does not become champion: the {damage} are damaged"):
        promote("m", force=True)
    assert aliases(done) == {CHAMPION: "1", CHALLENGER: "2"}


def test_a_run_is_registered_when_it_is_promoted(world: World) -> None:
    first = world.train("train.epochs=1", "train.test=false", "train.learning_rate=1e-6")
    second = world.train("train.epochs=4", "train.test=false", "train.learning_rate=3e-2", register=False)
    crowned = promote(second.run_id[:12])
    assert (crowned.name, crowned.version, crowned.before) == ("sentiment-tiny", "2", "1")
    assert world.client.get_model_version("sentiment-tiny", "2").run_id == second.run_id
    assert promote(first.run_id, force=True).version == "1"
    other = promote(second.run_id, name="mine")
    assert (other.name, other.version) == ("mine", "1")
    assert promote(second.run_id).version == "2"


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("nobody", "nobody: no such model in the registry at .*; registered: m, sentiment-tiny"),
        ("m", "m: it has no challenger; m/VERSION fits, or one of its aliases: champion"),
        ("m/7", "m/7: no such version; there are: 1"),
        ("m/one", "m/one: no such version; there are: 1"),
        ("m@best", "m: no version is called 'best'; m/VERSION fits"),
        ("0" * 32, "run 0{32}: there is none at "),
    ],
)
def test_a_reference_that_leads_nowhere(done: Done, enter: Enter, reference: str, said: str) -> None:
    enter(0.5)
    with pytest.raises(SeqappError, match=said):
        promote(reference)


def test_a_run_without_a_model_or_by_too_short_an_id(world: World) -> None:
    from pipelines import tracking

    ids = sorted(tracking.create_run("sentiment", "bare", {}) for _ in range(17))  # two of 17 begin alike
    with pytest.raises(SeqappError, match=rf"run {ids[0]} \(running\) has logged no model"):
        promote(ids[0])
    twice = next(a[0] for a, b in itertools.pairwise(ids) if a[0] == b[0])
    with pytest.raises(SeqappError, match=f"run {twice}: several runs begin like this"):
        promotion.find_run(world.client, twice)


# The way back


def test_rollback_twice_goes_two_back_and_then_says_so(done: Done, enter: Enter, seqapp: Seqapp) -> None:
    for value in (0.5, 0.6, 0.7):
        enter(value)
    said = seqapp("rollback", "m")
    assert said.out == (
        "m: version 2 (validation accuracy 0.6000) is the champion now, "
        "version 3 (validation accuracy 0.7000) the challenger\n"
    )
    assert aliases(done) == {CHAMPION: "2", CHALLENGER: "3"}
    assert done.client.get_model_version("m", "3").tags["rolled_back"].endswith("to version 2")
    assert rollback("m").version == "1"
    assert aliases(done) == {CHAMPION: "1", CHALLENGER: "2"}
    with pytest.raises(SeqappError, match=r"m: no champion before version 1 is known; .* the versions 1, 2, 3"):
        rollback("m")
    assert aliases(done) == {CHAMPION: "1", CHALLENGER: "2"}
    assert promote("m").version == "2"  # a rollback is undone by promoting the challenger


def test_a_rollback_that_is_cut_off_never_leads_forward(
    done: Done, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(Exception):
        pass

    class Client:
        """MLflow's, until so many entries are made."""

        def __init__(self, entries: int) -> None:
            self.left = entries

        def __getattr__(self, name: str) -> Any:
            if name.startswith(("set_", "delete_")):
                self.left -= 1
                if self.left < 0:
                    raise Cut
            return getattr(done.client, name)

    for entries in range(4):
        for value in (0.5, 0.6, 0.7):
            enter(value, name=f"m{entries}")
        with monkeypatch.context() as patch:
            patch.setattr(promotion, "connect", lambda create=True, entries=entries: Client(entries))
            with pytest.raises(Cut):
                rollback(f"m{entries}")
        present = aliases(done, f"m{entries}")[CHAMPION]
        assert rollback(f"m{entries}").version == {"3": "2", "2": "1"}[present]


def test_rollback_passes_over_versions_that_are_gone(done: Done, enter: Enter) -> None:
    for value in (0.5, 0.6, 0.7):
        enter(value)
    done.client.delete_model_version("m", "2")
    assert rollback("m").version == "1"


def test_rollback_goes_back_from_what_somebody_set_by_hand(done: Done, enter: Enter) -> None:
    for value in (0.5, 0.6, 0.4):
        enter(value)
    done.client.set_registered_model_alias("m", CHAMPION, "3")
    assert rollback("m").version == "2"
    done.client.delete_registered_model_alias("m", CHAMPION)
    assert rollback("m").version == "2"


@pytest.mark.parametrize("kept", ["not json", '{"version": "1"}', '[{"release": 1}]', "[1]"])
def test_a_history_edited_by_hand_is_begun_anew(done: Done, enter: Enter, kept: str) -> None:
    enter(0.5)
    done.client.set_registered_model_tag("m", HISTORY, kept)
    enter(0.6)
    assert reigns(done) == ["1", "2"]


def test_the_history_is_bounded(done: Done, enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion, "KEPT", 3)
    for value in (0.1, 0.2, 0.3, 0.4, 0.5):
        enter(value)
    assert reigns(done) == ["3", "4", "5"]
    assert KEPT * 500 < 100_000  # what a tag of a registered model holds


# The listing


@pytest.mark.parametrize("columns", ["60", "80"])
def test_names_of_models_are_never_cut(
    done: Done, enter: Enter, seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    name = "sentiment-bundled-bidirectional-gru"
    enter(0.5, name=name)
    monkeypatch.setenv("COLUMNS", columns)
    for arguments in (("models",), ("models", name)):
        said = seqapp(*arguments)
        assert said.status == 0, said.err
        assert "…" not in said.out
        assert max(map(len, said.out.splitlines())) <= int(columns)
    assert name in seqapp("models").out


def test_models_lists_champions_and_versions(done: Done, enter: Enter, seqapp: Seqapp) -> None:
    enter(0.5)
    enter(0.4)
    listed = seqapp("models").out
    assert next(row for row in listed.splitlines() if "│ m " in row).split("│")[2:5] == [
        " 1: validation accuracy 0.5000 ", " 2: validation accuracy 0.4000 ", "        2 ",
    ]  # fmt: skip
    assert "sentiment-tiny" in listed
    one = seqapp("models", "m").out
    assert "challenger" in one
    assert done.trained.run_id[:8] in one
    assert "no such model" in seqapp("models", "nobody").err


def test_names_in_brackets_are_shown_as_they_are(done: Done, enter: Enter, seqapp: Seqapp, tmp_path: Path) -> None:
    enter(0.5, name="[b]m")
    enter(0.4, name="[b]m")
    assert " [b]m " in seqapp("models").out
    assert seqapp("promote", "[b]m", "--force").out.startswith("[b]m: version 2 ")
    assert seqapp("rollback", "[b]m").out.startswith("[b]m: version 1 ")
    done.client.set_model_version_tag("[b]m", "2", "became_champion", "today by [/i]: why not")
    assert "today by [/i]" in seqapp("models", "[b]m").out
    said = seqapp("export", done.trained.bundle, tmp_path / "[b]:smile:")
    assert said.out.replace("\n", "").startswith(f"{tmp_path}/[b]:smile:: README.md")


def test_an_empty_registry_says_so(world: World) -> None:
    with pytest.raises(SeqappError, match="is empty; `make train` fills it"):
        promotion.overview()
