"""Finished runs side by side: which of them compare, how certain each is, and which one to keep.

Only runs measured on the same data by the same definition of the score stand in one table. Runs that differ in their
seed alone are one row. docs/comparing.md tells people what the figures mean.
"""

from __future__ import annotations

import difflib
import functools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from mlflow.exceptions import MlflowException

from pipelines.options import SECTIONS
from pipelines.outcomes import fetch_outcomes
from pipelines.tracking import flatten
from seqapp import config
from seqapp.errors import SeqappError
from seqapp.metrics import wilson_interval
from seqapp.outcomes import SIGNIFICANT, Difference, Outcomes, difference, holm, intervals, mean
from seqapp.references import connect, masked, reason, tracking_uri
from seqapp.tasks import TASKS

log = logging.getLogger(__name__)

PAGE = 1000
"""Runs in one answer of the tracking server; it allows no more than 50,000."""
SHOWN = 30
"""Most rows of a table, unless all are asked for: the outcomes of each are fetched."""
FETCHERS = 4
"""Runs whose outcomes are fetched at a time."""
LISTED = 3
"""Most rows that a sentence names."""
KIND, COMPARISON = "kind", "comparison"
"""The tag of the run that holds the comparison itself."""
PARENT, REPRODUCES = "mlflow.parentRunId", "reproduces"
NOT_LEARNED = ("train.seed", "train.devices", "train.nodes", "train.test", "train.calibrate", "train.model_name")
"""Params that make no other configuration."""
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Quality:
    """A score of one or several runs.

    Args:
        value: the mean over the runs.
        lowest: of them.
        highest: of them.
        interval: of 95 %, over the choice of items; None where nothing tells.
    """

    value: float
    lowest: float
    highest: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """One configuration of a network, or a baseline, with all of its seeds.

    Args:
        name: of the newest run.
        network: such as "lstm", or "none (linear)" of a baseline.
        differs: what sets it apart from rows of the same name, such as "hidden_size=64".
        run_ids: the newest first.
        seeds: how many runs with other seeds are in it.
        quality: split -> the score that chose between epochs.
        further: a better-known score on the test split and its name, where the one that chooses is odd.
        outcomes: split -> the mean summands of each item.
        switch: the choice that would train another network, such as "model.encoder.kind=gru".
        parameters: trained numbers.
        seconds: of training.
        tokens_per_second: of training, in its last epoch.
        memory: bytes at most, in training.
        latency: milliseconds of one answer.
        size: bytes of the bundle.
        machines: what its runs were made on; "" for one that does not tell.
        lacking: how many of its runs have no outcomes on validation.
    """

    name: str
    network: str
    differs: str
    run_ids: tuple[str, ...]
    seeds: int
    quality: Mapping[str, Quality]
    further: tuple[str, Quality] | None = None
    outcomes: Mapping[str, Outcomes] = field(default_factory=dict, repr=False)
    switch: str = ""
    parameters: float | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    memory: float | None = None
    latency: float | None = None
    size: float | None = None
    machines: frozenset[str] = frozenset({""})
    lacking: int = 0

    @property
    def baseline(self) -> bool:
        """Whether it is a simple method, which no server answers with."""
        return self.network.startswith("none (")


@dataclass(frozen=True)
class Group:
    """Rows that compare.

    Args:
        dataset: its name.
        digests: of the validation and the test data.
        metric: the score, and whether "max" or "min" is better.
        definition: of the score.
        scale: "share of examples" or "share" is shown in percent, "number" as it is.
        rows: the best on validation first.
        left_out: rows that are not shown.
        run_ids: of all runs that compare, shown or not.
        apart: why they do not compare with the first group; empty for that.
        advice: which one to keep, and why.
        kept: ids of the runs of that one.
        step: what comes next; empty if the registry cannot say.
    """

    dataset: str
    digests: tuple[str, str]
    metric: tuple[str, str]
    definition: str
    scale: str
    rows: list[Row]
    left_out: int = 0
    run_ids: frozenset[str] = frozenset()
    apart: str = ""
    advice: str = ""
    kept: tuple[str, ...] = ()
    step: str = ""

    @property
    def share(self) -> bool:
        """Whether the score is shown in percent."""
        return self.scale != "number"


@dataclass(frozen=True)
class Comparison:
    """All groups of one task, the one with the newest run first."""

    task: str
    experiment_id: str
    groups: list[Group]


Told = Callable[[int, int], None]
"""How many runs of how many have been read."""


def compare(
    task: str | None = None, *, runs: Sequence[str] = (), every: bool = False, told: Told = lambda done, total: None
) -> list[Comparison]:
    """Compare the finished runs of a task, or of each task that has any.

    Args:
        task: the experiment, such as "sentiment"; None: all.
        runs: only these: ids, or beginnings of ids that fit one run.
        every: each run a row, also older ones of the same configuration and all trials of a sweep.
        told: called as outcomes are fetched.

    Raises:
        SeqappError: if there is no such experiment, no finished run, or no run of such an id.
    """
    found = _candidates(task)
    if runs:
        found = _selected(found, runs)
    kept = {name: _grouped(group, every=every, chosen=bool(runs)) for name, (_, group) in found.items()}
    outcomes = _fetched([run for groups in kept.values() for _, rows, _ in groups for row in rows for run in row], told)
    comparisons = []
    for name, groups in kept.items():
        drawn = [_group(*group, outcomes) for group in groups]
        # Runs that differ in their seed alone are no choice, even where each is shown.
        advised = [_group(*group, outcomes) for group in _grouped(found[name][1], chosen=True)] if every else drawn
        champions = _champions(name)
        told_groups = []
        for group, judged in zip(drawn, advised, strict=True):
            best, advice = advise(judged)
            kept_ids = best.run_ids if best else ()
            told_groups.append(replace(group, apart=_apart(drawn[0], group), advice=advice, kept=kept_ids,
                                       step=_step(kept_ids, champions)))  # fmt: skip
        comparisons.append(Comparison(name, found[name][0], told_groups))
    return comparisons


def _champions(task: str) -> dict[str, str] | None:
    """Run id -> the registered model of this task whose champion it made; None if the registry cannot say."""
    client = connect()
    try:
        known = client.search_registered_models(max_results=PAGE)
        crowned = [(model.name, model.aliases["champion"]) for model in known
                   if model.tags.get("task") == task and "champion" in (model.aliases or {})]  # fmt: skip
        return {client.get_model_version(name, str(version)).run_id: name for name, version in crowned}
    except (MlflowException, OSError):
        return None


def _step(kept: Sequence[str], champions: Mapping[str, str] | None) -> str:
    if champions is None or not kept:
        return ""
    if names := [champions[run_id] for run_id in kept if run_id in champions]:
        return f"It is the champion of {names[0]} already: `seqapp serve {names[0]}` answers with it."
    return f"Next: `seqapp promote {kept[0][:8]}` makes it the champion, which `seqapp serve` answers with."


# Which runs


def _candidates(task: str | None) -> dict[str, tuple[str, list[Any]]]:
    """Task -> the id of its experiment and its finished runs with a validation score, the newest first."""
    where, file = masked(tracking_uri()), tracking_uri().removeprefix("sqlite:///")
    if file != tracking_uri() and not Path(file).exists():
        raise SeqappError(f"no runs yet at {where}; `seqapp train CONFIG` makes one")
    client = connect(create=False)
    if task is None:
        experiments = client.search_experiments()
    else:
        experiments = [client.get_experiment_by_name(task)]
        if experiments == [None]:
            there = [found.name for found in client.search_experiments() if found.name != "Default"]
            close = difflib.get_close_matches(task, {*TASKS, *there}, n=1)
            meant = f"did you mean {close[0]!r}? " if close and close[0] != task else ""
            raise SeqappError(f"no runs of {task!r} at {where}; {meant}tasks: {', '.join(TASKS)}; experiments there: "
                              f"{', '.join(there) or 'none'}")  # fmt: skip
    found = {}
    for experiment in experiments:
        runs = [run for run in _finished(client, experiment.experiment_id) if _measured(run)]
        if runs:
            found[experiment.name] = experiment.experiment_id, runs
    if not found:
        of = "" if task is None else f" of {task!r}"
        raise SeqappError(f"no finished run{of} with a validation score at {where}; `seqapp train CONFIG` makes one")
    return found


def _finished(client: Any, experiment_id: str) -> Iterator[Any]:
    """Every finished run, the newest first."""
    token = None
    while True:
        found = client.search_runs(
            [experiment_id],
            "attributes.status = 'FINISHED'",
            max_results=PAGE,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        yield from found
        token = found.token
        if not token:
            return


def _metric(run: Any) -> str:
    # Runs without these tags are older than they are; all of those are of sentiment.
    return str(run.data.tags.get("metric", "accuracy"))


def _score(run: Any) -> float:
    return float(run.data.metrics[f"best_validation/{_metric(run)}"])


def _measured(run: Any) -> bool:
    if run.data.tags.get(KIND) == COMPARISON or f"best_validation/{_metric(run)}" not in run.data.metrics:
        return False
    return math.isfinite(_score(run))


def _selected(found: Mapping[str, tuple[str, list[Any]]], wanted: Sequence[str]) -> dict[str, tuple[str, list[Any]]]:
    """Those runs alone whose ids begin so.

    Raises:
        SeqappError: for one that fits no run, or several.
    """
    ids = [run.info.run_id for _, runs in found.values() for run in runs]
    chosen = set()
    for begin in wanted:
        fitting = [run_id for run_id in ids if begin and run_id.startswith(begin)]
        if len(fitting) != 1:
            what = f"{len(fitting)} finished runs have ids" if fitting else "no finished run with a score has an id"
            fits = "more of it fits" if fitting else f"there is {ids[0]}, the newest of {len(ids)}"
            raise SeqappError(f"{what} that begin{'' if fitting else 's'} with {begin!r} ({', '.join(found)}); {fits}")
        chosen.add(fitting[0])
    kept = {name: (experiment_id, [run for run in runs if run.info.run_id in chosen])
            for name, (experiment_id, runs) in found.items()}  # fmt: skip
    return {name: (experiment_id, runs) for name, (experiment_id, runs) in kept.items() if runs}


Key = tuple[str, str, str]
"""Of what compares: digest of the validation data, of the test data, definition of the score."""


def _key(run: Any) -> Key:
    tags = run.data.tags
    return tags.get("validation_digest", ""), tags.get("test_digest", ""), tags.get("metric_definition", _metric(run))


def _grouped(
    runs: Sequence[Any], *, every: bool = False, chosen: bool = False
) -> list[tuple[list[Any], list[list[Any]], int]]:
    """For each group of runs that compare: all of its runs, the runs of each row to show, and how many rows are not.

    Args:
        runs: the newest first.
        every: each run is a row.
        chosen: somebody has chosen the runs, so that none is left out.
    """
    groups: dict[Key, list[Any]] = defaultdict(list)
    for run in runs:
        if every or chosen or REPRODUCES not in run.data.tags:
            groups[_key(run)].append(run)
    found = []
    for group in groups.values():
        rows = [[run] for run in group] if every else _configurations(group)
        total = len(rows)
        if not every and not chosen:
            rows = _without_trials(rows)
        rows.sort(key=_mean_score, reverse=_better(group[0]) == "max")
        shown = rows if every or chosen else rows[:SHOWN]
        found.append((group, shown, total - len(shown)))
    return found


def _better(run: Any) -> str:
    return str(run.data.tags.get("direction", "max"))


def _mean_score(row: Sequence[Any]) -> float:
    return fmean(map(_score, row))


def _configurations(runs: Sequence[Any]) -> list[list[Any]]:
    """Runs of one configuration together, of each seed the newest."""
    rows: dict[Any, dict[str, Any]] = defaultdict(dict)
    for run in runs:
        params = {key: value for key, value in _params(run).items() if key not in NOT_LEARNED}
        name = "" if run.data.tags.get(PARENT) else run.info.run_name  # trials are called by their number
        network = run.data.tags.get("network", "")
        rows[name, network, tuple(sorted(params.items()))].setdefault(run.data.tags.get("seed", ""), run)
    return [list(seeds.values()) for seeds in rows.values()]


def _params(run: Any) -> Mapping[str, str]:
    """The config of a run, also the options that are newer than it, by the defaults that they have now."""
    return _completed(frozenset(run.data.params.items()))


@functools.lru_cache(maxsize=10_000)
def _completed(params: frozenset[tuple[str, str]]) -> Mapping[str, str]:
    found = dict(params)
    for name, section in SECTIONS.items():
        own = {tuple(key.split(".")): _parsed(value) for key, value in params if key.startswith(f"{name}.")}
        try:
            checked = flatten(config.check(_nested(own), sections={name: section})) if own else {}
        except SeqappError:
            continue  # of options or kinds that are there no more
        found = {key: str(value)[:500] for key, value in checked.items()} | found
    return found


def _nested(flat: Mapping[tuple[str, ...], Any]) -> Any:
    """The opposite of :func:`pipelines.tracking.flatten`."""
    if () in flat:
        return flat[()]
    inner: dict[str, dict[tuple[str, ...], Any]] = defaultdict(dict)
    for (first, *rest), value in flat.items():
        inner[first][tuple(rest)] = value
    if all(key.isdecimal() for key in inner):
        return [_nested(inner[key]) for key in sorted(inner, key=int)]
    return {key: _nested(part) for key, part in inner.items()}


def _parsed(text: str) -> Any:
    """What Python wrote as ``text``."""
    for read in ({"None": None, "True": True, "False": False}.__getitem__, int, float):
        try:
            return read(text)
        except (KeyError, ValueError):
            continue
    return text


def _without_trials(rows: Sequence[list[Any]]) -> list[list[Any]]:
    """Of the trials of one sweep, of each network the best on validation alone."""
    kept, trials = [], defaultdict(list)
    for row in rows:
        parents = {run.data.tags.get(PARENT) for run in row}
        if None in parents:
            kept.append(row)
        else:
            trials[min(parents, key=str), row[0].data.tags.get("network", "")].append(row)
    for group in trials.values():
        choose = max if _better(group[0][0]) == "max" else min
        kept.append(choose(group, key=_mean_score))
    return kept


def _fetched(runs: Sequence[Any], told: Told) -> dict[str, dict[str, Outcomes]]:
    """Run id -> split -> outcomes; a run whose file cannot be read stands there as one that logged none."""

    def fetch(run: Any) -> dict[str, Outcomes]:
        try:
            outcomes = fetch_outcomes(run.info.run_id)
            # Runs without that tag are older than outcomes are.
            if not outcomes and "metric_definition" in run.data.tags:
                log.warning("%s, run %s: its outcomes are missing, so it is not tested", run.info.run_name,
                            run.info.run_id)  # fmt: skip
            return outcomes
        except (SeqappError, MlflowException, OSError) as error:
            log.warning("%s, run %s: its outcomes cannot be read, so it is not tested: %s", run.info.run_name,
                        run.info.run_id, reason(error))  # fmt: skip
            return {}

    with ThreadPoolExecutor(FETCHERS) as pool:
        found = {}
        for place, (run, outcomes) in enumerate(zip(runs, pool.map(fetch, runs), strict=True)):
            found[run.info.run_id] = outcomes
            told(place + 1, len(runs))
        return found


# Rows


def _group(
    runs: Sequence[Any],
    rows: Sequence[list[Any]],
    left_out: int,
    outcomes: Mapping[str, Mapping[str, Outcomes]],
) -> Group:
    newest, tags = runs[0], runs[0].data.tags
    validation, test, definition = _key(newest)
    # What a share is of decides between an interval of Wilson's and none; a baseline may not know.
    scales = [run.data.tags.get("scale", "share of examples" if "metric" not in run.data.tags else "number")
              for run in runs]  # fmt: skip
    scale = min(scales, key=("share of examples", "share", "number").index)
    made = [_row(row, outcomes) for row in rows]
    made = [replace(row, differs=differs) for row, differs in zip(made, _differences(rows), strict=True)]
    return Group(
        dataset=tags.get("dataset", ""),
        digests=(validation, test),
        metric=(_metric(newest), _better(newest)),
        definition=definition,
        scale=scale,
        rows=_certain(made, [row[0] for row in rows], scale),
        left_out=left_out,
        run_ids=frozenset(run.info.run_id for run in runs),
    )


def _row(runs: Sequence[Any], outcomes: Mapping[str, Mapping[str, Outcomes]]) -> Row:
    newest, metric = runs[0], _metric(runs[0])

    def figure(name: str) -> float | None:
        values = [run.data.metrics[name] for run in runs if name in run.data.metrics]
        return fmean(values) if values else None

    quality = {}
    for split, name in (("validation", f"best_validation/{metric}"), ("test", f"test/{metric}")):
        values = [run.data.metrics[name] for run in runs if name in run.data.metrics]
        if values:
            quality[split] = Quality(fmean(values), min(values), max(values))
    return Row(
        name=newest.info.run_name or newest.info.run_id[:8],
        network=newest.data.tags.get("network", ""),
        differs="",
        run_ids=tuple(run.info.run_id for run in runs),
        seeds=len(runs),
        quality=quality,
        outcomes=_mean_outcomes([outcomes[run.info.run_id] for run in runs]),
        switch=_switch(newest.data.params),
        parameters=figure("parameters"),
        seconds=figure("seconds"),
        tokens_per_second=figure("train/tokens_per_second"),
        memory=figure("peak_memory_bytes"),
        latency=figure("latency_ms"),
        size=figure("bundle_bytes"),
        machines=frozenset(run.data.tags.get("machine", "") for run in runs),
        lacking=sum("validation" not in outcomes[run.info.run_id] for run in runs),
    )


def _mean_outcomes(runs: Sequence[Mapping[str, Outcomes]]) -> dict[str, Outcomes]:
    found = {}
    for split in SPLITS:
        try:
            if known := [run[split] for run in runs if split in run]:
                found[split] = mean(known)
        except ValueError:
            continue  # of other items
    return found


def _switch(params: Mapping[str, str]) -> str:
    """The choice that makes an LSTM a GRU, or another network an LSTM."""
    kinds = {key: value for key, value in sorted(params.items()) if key.startswith("model.") and key.endswith(".kind")}
    for one, other in (("lstm", "gru"), ("gru", "lstm")):
        if fitting := [key for key, value in kinds.items() if value == one]:
            return " ".join(f"{key}={other}" for key in fitting)
    return ""


def _differences(rows: Sequence[Sequence[Any]]) -> list[str]:
    """What sets each row apart from those of the same name and network: a few params, by the end of their names."""
    alike = defaultdict(list)
    for row in rows:
        alike[row[0].info.run_name, row[0].data.tags.get("network")].append(row[0])
    told = []
    for run in (row[0] for row in rows):
        group = alike[run.info.run_name, run.data.tags.get("network")]
        params = {other.info.run_id: _params(other) for other in group}
        keys = sorted({key for other in params.values() for key in other}.difference(NOT_LEARNED))
        apart = [key for key in keys if len({other.get(key) for other in params.values()}) > 1]
        values = [params[run.info.run_id].get(key) for key in apart]
        shown = [f"{key.rpartition('.')[2]}={value}" for key, value in zip(apart[:2], values, strict=False)]
        shown += ["..."] if len(apart) > len(shown) else []
        if (
            run.data.tags.get("seed")
            and sum([other.get(key) for key in apart] == values for other in params.values()) > 1
        ):
            shown.append(f"seed={run.data.tags['seed']}")
        told.append(", ".join(shown))
    return told


def _certain(rows: Sequence[Row], runs: Sequence[Any], scale: str) -> list[Row]:
    """The rows with their intervals."""
    made = list(rows)
    for split in SPLITS:
        for places in _paired(made, split).values():
            models = [made[place].outcomes[split] for place in places]
            _, *others = models[0].scores_of
            bounds = intervals(models)
            more = intervals(models, others[0]) if others and split == "test" else [None] * len(models)
            for place, model, ends, further_ends in zip(places, models, bounds, more, strict=True):
                row = made[place]
                if split in row.quality:
                    row = replace(row, quality={**row.quality, split: replace(row.quality[split], interval=ends)})
                if others and split == "test":
                    value = model.score(others[0])
                    row = replace(row, further=(others[0], Quality(value, value, value, further_ends)))
                made[place] = row
    if scale != "share of examples":
        return made
    # Without outcomes, or where all items are right, so that every sample of them is the same.
    for place, (row, run) in enumerate(zip(made, runs, strict=True)):
        for split, quality in row.quality.items():
            trials = int(run.data.metrics.get(f"{split}/examples", 0))
            if quality.interval is None and trials and 0 <= quality.value <= 1:
                bound = replace(quality, interval=wilson_interval(quality.value * trials, trials))
                made[place] = replace(made[place], quality={**made[place].quality, split: bound})
    return made


def _paired(rows: Sequence[Row], split: str) -> dict[Any, list[int]]:
    """Rows whose outcomes of a split are of equally many items and mean the same."""
    found = defaultdict(list)
    for place, row in enumerate(rows):
        if split in row.outcomes:
            one = row.outcomes[split]
            found[len(one), one.columns, str(dict(one.scores_of))].append(place)
    return found


def _apart(first: Group, group: Group) -> str:
    """Why a group does not compare with the first."""
    if group is first:
        return ""
    reasons = [f"other {split} data" for split, mine, its in zip(SPLITS, group.digests, first.digests, strict=True)
               if mine != its]  # fmt: skip
    if group.definition != first.definition:
        reasons.append(f"another metric ({group.definition}, not {first.definition})")
    return " and ".join(reasons)


# Advice


def advise(group: Group) -> tuple[Row | None, str]:
    """Which row to keep and why, from validation outcomes alone; what the test data say stands beside it.

    The best on validation is the candidate. A cheaper network, one with fewer parameters or as many and a shorter
    latency on the same machine, is kept instead if its validation score does not differ significantly: paired test at
    5 %. That test is not adjusted for how many there are, since it is kept for what is *not* found: further rows must
    not make it look as good. Where so few items differ that no test could reject at 5 %, it is kept only with an equal
    score. Of several the cheapest is kept. A baseline is never kept, since it cannot be served.

    Returns:
        The row, None where there are baselines only, and the words.
    """
    networks = [row for row in group.rows if not row.baseline]
    baselines = [row for row in group.rows if row.baseline]
    if not networks:
        return None, "There are baselines only; `seqapp train CONFIG` on the same data trains a network beside them."
    best, *others = networks
    cheaper = [row for row in others if _cheaper(row, best)]
    paired = _differences_of(best, cheaper, "validation")
    tested = {row: apart for row, apart in paired.items() if apart.least <= SIGNIFICANT}
    level = [row for row in paired if row not in tested and _equal(row, best)]
    kept = _cheapest([row for row in cheaper if row in level or (row in tested and tested[row].p > SIGNIFICANT)], best)
    sentences = [_reason(group, best, kept, paired[kept] if kept is not best else None, tested)]
    if others and others[0] in (paired.keys() & tested.keys() - {kept if kept is not best else _nearest(tested)}):
        sentences.append(_second_says(group, best, others[0], paired[others[0]]))
    elif others and others[0] not in cheaper:
        apart = _differences_of(best, others[:1], "validation").get(others[0])
        sentences.append(_second_says(group, best, others[0], apart))
    if few := [row.name for row in paired if row not in tested and row not in level]:
        sentences.append(f"{listed(few)} {'is' if len(few) == 1 else 'are'} cheaper, but too few items differ to tell "
                         "whether as good; more validation data would tell.")  # fmt: skip
    cheaper_untested = [row for row in cheaper if row not in paired]
    if untested := [row.name for row in cheaper_untested]:
        sentences.append(f"{listed(untested)} {'is' if len(untested) == 1 else 'are'} cheaper and cannot be tested "
                         f"against it: {_untold(best, cheaper_untested)}; train again.")  # fmt: skip
    if others:
        sentences.append(_test_says(group, kept, [row for row in networks if row is not kept]))
    else:
        switch = f" {best.switch}" if best.switch else ""
        sentences.append(f"It is the only network here; a second one on the same data, such as its config with"
                         f"{switch or ' another encoder'}, would show whether a cheaper one does.")  # fmt: skip
    sentences.append(_baselines_say(group, kept, baselines))
    sentences += [f"Of {row.name} {row.seeds - row.lacking} of {row.seeds} seeds are tested; the outcomes of the rest "
                  "are missing." for row in networks if 0 < row.lacking < row.seeds]  # fmt: skip
    return kept, " ".join(sentence for sentence in sentences if sentence)


def _nearest(tested: Mapping[Row, Difference]) -> Row | None:
    return min(tested, key=lambda row: abs(tested[row].value), default=None)


def _second_says(group: Group, best: Row, second: Row, apart: Difference | None) -> str:
    """How the best on validation stands to the next one."""
    told = f"Second on validation is {_called(second)} with {_shown(group, second.quality['validation'].value)}"
    if apart is None:
        return f"{told}, not tested: {_untold(best, [second])}."
    if apart.least > SIGNIFICANT:
        return f"{told}; too few items differ to tell whether {best.name} is better."
    how = "significantly worse" if apart.p <= SIGNIFICANT else "not significantly different"
    return f"{told}, {how} ({_p(apart.p)}{_span(group, apart, f'the lead of {best.name}')}; {_over(best)})."


def _untold(best: Row, others: Sequence[Row]) -> str:
    """Why rows cannot be tested."""
    missing = [row.name for row in (best, *others) if "validation" not in row.outcomes]
    return f"the outcomes of {listed(missing)} are missing" if missing else "they were not asked the same items"


def _cheaper(row: Row, than: Row) -> bool:
    """Whether it has fewer parameters, or is another network with as many and faster on the same machine."""
    mine, its = _size(row), _size(than)
    if mine != its or row.network == than.network or not same_machine([row, than]):
        return mine < its
    return _latency(row) < _latency(than)


def _cheapest(rows: Sequence[Row], best: Row) -> Row:
    """That with the fewest parameters, of equals the fastest or, where their times do not compare, the best one."""
    if not rows:
        return best
    fewest = [row for row in rows if _size(row) == min(map(_size, rows))]
    return min(fewest, key=_latency) if same_machine(fewest) else fewest[0]


def _size(row: Row) -> float:
    return math.inf if row.parameters is None else row.parameters


def _latency(row: Row) -> float:
    return math.inf if row.latency is None else row.latency


def same_machine(rows: Iterable[Row]) -> bool:
    """Whether all runs of the rows were made on one machine, and tell so."""
    machines = frozenset[str]().union(*(row.machines for row in rows))
    return len(machines) == 1 and "" not in machines


def _equal(row: Row, other: Row) -> bool:
    """Whether their validation scores are the same but for rounding."""
    return math.isclose(row.quality["validation"].value, other.quality["validation"].value, rel_tol=1e-9)


def _differences_of(one: Row, others: Iterable[Row], split: str) -> dict[Row, Difference]:
    """How far ``one`` is from those of the others that logged outcomes of the same items and a finite score."""
    found = {}
    for row in others:
        try:
            apart = difference(one.outcomes[split], row.outcomes[split])
        except (KeyError, ValueError):
            continue
        if math.isfinite(apart.value):
            found[row] = apart
    return found


def _claimed(one: Row, others: Iterable[Row], split: str) -> dict[Row, tuple[Difference, float]]:
    """For saying that rows differ from ``one``: how far, and the p-value adjusted for all that could be found."""
    found = _differences_of(one, others, split)
    able = [row for row, apart in found.items() if apart.least <= SIGNIFICANT]
    adjusted = dict(zip(able, holm([found[row].p for row in able]), strict=True))
    return {row: (apart, adjusted.get(row, apart.p)) for row, apart in found.items()}


def _reason(group: Group, best: Row, kept: Row, apart: Difference | None, tested: Mapping[Row, Difference]) -> str:
    score, over = group.metric[0].replace("_", " "), _over(best)
    values = {id(row): _shown(group, row.quality["validation"].value) for row in (best, kept)}
    if apart is not None:
        if kept.parameters != best.parameters:
            assert kept.parameters is not None
            more = "" if best.parameters is None else f", {1 - kept.parameters / best.parameters:.0%} fewer"
            cheap = f"with {kept.parameters:,.0f} parameters{more}"
        else:
            cheap = "with as many parameters and shorter answers"
        if kept not in tested:
            return (f"Keep {_called(kept)}: {cheap}, its validation {score} of {values[id(kept)]} is that of "
                    f"{_called(best)}.")  # fmt: skip
        return (f"Keep {_called(kept)}: {cheap}, its validation {score} of {values[id(kept)]} does not differ "
                f"significantly from the {values[id(best)]} of {_called(best)}, the best "
                f"({_p(apart.p)}{_span(group, apart)}; {over}).")  # fmt: skip
    because = f"Keep {_called(best)}: it has the best validation {score}, {values[id(best)]}"
    networks = [row for row in group.rows if not row.baseline]
    untold = any(_cheaper(row, best) and row not in tested for row in networks)
    if not tested:
        return f"{because}." if untold or len(networks) == 1 else f"{because}, and no other network here is cheaper."
    nearest = _nearest(tested)
    assert nearest is not None
    other = _shown(group, nearest.quality["validation"].value)
    every = "every cheaper network that could be tested" if untold else "every cheaper network"
    return (f"{because}, and {every} is significantly worse; the nearest is {_called(nearest)} with {other} "
            f"({_p(tested[nearest].p)}{_span(group, tested[nearest])}; {over}).")  # fmt: skip


def _test_says(group: Group, kept: Row, others: Sequence[Row]) -> str:
    tested = {row: found for row, found in _claimed(kept, others, "test").items() if found[0].least <= SIGNIFICANT}
    if not tested or "test" not in kept.quality:
        return ""
    value = _shown(group, kept.quality["test"].value)
    better = {row: p for row, (apart, p) in tested.items() if p <= SIGNIFICANT and _ahead(group, apart.value) < 0}
    if not better:
        return f"On the test data, which choose nothing, no other network is significantly better than its {value}."
    told = ", ".join(f"{_called(row)} with {_shown(group, row.quality['test'].value)} ({_p(p)})"
                     for row, p in better.items() if "test" in row.quality)  # fmt: skip
    return f"The test data, which choose nothing, contradict: there {told} is significantly better than its {value}."


def _baselines_say(group: Group, kept: Row, baselines: Sequence[Row]) -> str:
    told = []
    for row, (apart, p) in _claimed(kept, baselines, "validation").items():
        if apart.least > SIGNIFICANT:
            told.append(f"{row.name} ({_shown(group, row.quality['validation'].value)}, too few items differ to tell)")
        elif p > SIGNIFICANT or _ahead(group, apart.value) < 0:
            how = "not significantly different" if p > SIGNIFICANT else "better"
            told.append(f"{row.name} ({_shown(group, row.quality['validation'].value)}, {how}, {_p(p)})")
    if not told:
        return ""
    return (f"It is not significantly better on validation than a baseline, which cannot be served: {listed(told)}; a "
            "network may not be worth its cost here.")  # fmt: skip


def _ahead(group: Group, value: float) -> float:
    """A difference, positive where the first is better."""
    return value if group.metric[1] == "max" else -value


def _called(row: Row) -> str:
    about = ", ".join(part for part in (row.network, row.differs) if part)
    return f"{row.name} ({about})" if about else row.name


def _over(best: Row) -> str:
    items = len(best.outcomes["validation"]) if "validation" in best.outcomes else 0
    return f"paired randomisation test over {items:,} items, 5 % level"


def _p(p: float) -> str:
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def _span(group: Group, apart: Difference, lead: str = "its lead") -> str:
    """How far the candidate is ahead."""
    if apart.interval is None:
        return ""
    low, high = sorted(_ahead(group, end) for end in apart.interval)
    unit, factor = (" points", 100) if group.share else ("", 1)
    return f", 95 % interval of {lead} {factor * low:.3g} to {factor * high:.3g}{unit}"


def _shown(group: Group, value: float) -> str:
    return shown(value, share=group.share)


def shown(value: float, *, share: bool) -> str:
    """A score in a table: a share in percent, anything else to four digits.

    Args:
        value: the score.
        share: it counts something, and lies in [0, 1].
    """
    return f"{value:.1%}" if share else f"{value:.4g}"


def listed(names: Sequence[str]) -> str:
    """A few names, and how many more there are, in words."""
    if len(names) > LISTED:
        names = [*names[:LISTED], f"{len(names) - LISTED} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
