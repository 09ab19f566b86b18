"""The model registry: the champion that is served, the challenger that may replace it, and the way back.

Whoever asks for ``NAME`` gets ``NAME@champion``. All of it stands in aliases, tags and descriptions, which the plain
MLflow pages show; docs/registry.md tells what may happen when several write at once.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlflow.exceptions import MlflowException
from rich.markup import escape
from rich.table import Table

from pipelines import patience, tracking
from pipelines.figures import figure
from pipelines.outcomes import fetch_outcomes
from seqapp import bundle
from seqapp.errors import BundleError, SeqappError
from seqapp.outcomes import SIGNIFICANT, difference
from seqapp.references import connect, masked, resolve, tracking_uri

CHAMPION, CHALLENGER = "champion", "challenger"
HISTORY = "champions"
"""Tag of a registered model: its champions, the present one last, as JSON."""
KEPT = 20
"""Champions that the history holds."""
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What a registry answers where there is no such name, version or alias."""


@dataclass(frozen=True)
class Registered:
    """A new version in the registry, what it is now, and why."""

    name: str
    version: str
    champion: bool
    reason: str
    challenger: bool = False

    @property
    def rank(self) -> str:
        """For people."""
        return "now champion" if self.champion else "now challenger" if self.challenger else "not champion"


@dataclass(frozen=True)
class Crowned:
    """A version that is the champion now, and the one that was."""

    name: str
    version: str
    score: str
    before: str = ""
    """Empty where there was none."""
    before_score: str = ""

    def __str__(self) -> str:
        now = f"{self.name}: version {self.version} ({self.score}) is the champion now"
        return f"{now}, version {self.before} ({self.before_score}) the challenger" if self.before else now


@dataclass(frozen=True)
class Reign:
    """One entry of the history of champions."""

    version: str
    at: str
    by: str
    why: str


@dataclass(frozen=True)
class Score:
    """What a version is chosen by, and what it was measured on; a version without a figure has the value nan."""

    metric: str = ""
    value: float = math.nan
    direction: str = "max"
    digest: str = ""
    definition: str = ""

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> Score:
        """As :meth:`tags` wrote it; other tags are passed over."""
        try:
            value = float(tags.get("score", "nan"))
        except ValueError:
            value = math.nan
        return cls(tags.get("metric", ""), value, tags.get("direction", "max"), tags.get("validation_digest", ""),
                   tags.get("metric_definition", ""))  # fmt: skip

    def tags(self) -> dict[str, str]:
        """Of a version."""
        told = {"metric": self.metric, "direction": self.direction, "score": repr(self.value),
                "validation_digest": self.digest, "metric_definition": self.definition}  # fmt: skip
        return {name: value for name, value in told.items() if value}

    def __str__(self) -> str:
        return f"validation {self.metric} {figure(self.value)}" if self.metric else "without a score"

    def against(self, other: Score, version: str) -> tuple[bool | None, str]:
        """Whether this one is better than the champion's, and why; None if the two cannot be compared.

        Args:
            other: of the champion.
            version: of the champion.
        """
        champion, apart = f"the champion, version {version},", "so the two cannot be compared"
        if not other.metric:
            return None, f"{champion} has no score, {apart}"
        if self.digest != other.digest:
            return None, f"{champion} was measured on other validation data, {apart}"
        if self.metric != other.metric:
            return None, f"{champion} was chosen by {other.metric} and this one by {self.metric}, {apart}"
        if self.definition and other.definition and self.definition != other.definition:
            return None, f"{champion} has {other.definition} and this one {self.definition}, {apart}"
        sign = 1 if self.direction == "max" else -1
        mine, its = (sign * score.value if math.isfinite(score.value) else -math.inf for score in (self, other))
        if mine > its:
            return True, f"{self} beats {figure(other.value)} of version {version}"
        return False, f"{self} is not better than {figure(other.value)} of the champion, version {version}"


def registered_name(task: str, run: str, wanted: str | None = None) -> str:
    """The registered model that a run belongs to: ``train.model_name``, or the task and the run's name up to a dash."""
    return wanted or f"{task}-{run.partition('-')[0]}"


def register(
    run_id: str, model_uri: str, name: str, *, score: tuple[str, float, str], validation_digest: str
) -> Registered:
    """Make a new version of ``name``, and the champion or the challenger if it is good enough.

    It becomes champion if it is the first, or better on the same validation set; the champion before is then the
    challenger. Else it becomes challenger if there is none, it beats that one, or that one compares neither with it nor
    with the champion. The same run, model and score twice are one version.

    Args:
        run_id: the run that owns the model.
        model_uri: what :func:`pipelines.tracking.log_bundle` returned.
        name: the registered model.
        score: metric name, value, and "max" or "min", whichever is better.
        validation_digest: of the data the score was measured on.
    """
    client = patience.client()
    metric, value, direction = score
    run = client.get_run(run_id)
    mine = Score(metric, value, direction, validation_digest, run.data.tags.get("metric_definition", ""))
    version = _enter(client, run, model_uri, name, mine)
    model = client.get_registered_model(name)
    champion, challenger = _alias(model, CHAMPION), _alias(model, CHALLENGER)
    if champion is None:
        _crown(client, model, version, why="the first version")
        return Registered(name, version, True, "the first version")
    if champion == version:
        crowned = client.get_model_version(name, version).tags.get("became_champion", "")
        return Registered(name, version, True, crowned.partition(": ")[2] or "it is the champion already")
    best = _score(client, name, champion)
    better, why = mine.against(best, champion)
    if better:
        _crown(client, model, version, why=why)
        return Registered(name, version, True, why)
    stronger = challenger in (None, version) or _displaces(mine, _score(client, name, challenger), best)
    if stronger:
        _set_alias(client, name, CHALLENGER, version)
    return Registered(name, version, False, why, stronger)


def _displaces(mine: Score, challenger: Score, champion: Score) -> bool:
    """Whether a new version is the better challenger; one that is of other data than the champion gives way."""
    better, _ = mine.against(challenger, "")
    return better or (better is None and challenger.against(champion, "")[0] is None)


def promote(reference: str, *, force: bool = False, name: str | None = None) -> Crowned:
    """Make a version champion and the one before challenger, after checking that its bundle answers as it did.

    One with a lower score may replace the champion if it is not significantly worse on the same validation items, as
    the cheaper network that :mod:`pipelines.compare` advises to keep.

    Args:
        reference: ``NAME`` for its challenger, ``NAME/VERSION``, ``NAME@ALIAS`` or a run id, which is registered first
            if it is not yet; the first eight characters of a run id or more do as well.
        force: also a version that is significantly worse, cannot be tested, or was measured on other validation data.
        name: of the registered model for a run that is not registered; without it, the one that training would take.

    Raises:
        SeqappError: if there is no such version, its bundle does not load or answers differently, or it is worse.
    """
    client = connect(create=False)
    name, version = _find(client, reference, name)
    model = client.get_registered_model(name)
    champion = _alias(model, CHAMPION)
    mine = _score(client, name, version)
    if champion == version:
        return Crowned(name, version, str(mine))
    why = "the first champion"
    old = None
    if champion is not None:
        old = _score(client, name, champion)
        better, why = mine.against(old, champion)
        equal = better is False and mine.value == old.value
        if better is False and not equal and (level := _level(client, name, version, champion)):
            equal, why = True, level
        if not (better or equal or force):
            raise SeqappError(f"{name} version {version} stays what it is: {why}; --force makes it champion "
                              "all the same")  # fmt: skip
    _check(name, version)
    _crown(client, model, version, why=f"promoted{' by force' if force else ''}: {why}")
    return Crowned(name, version, str(mine), champion or "", str(old) if old else "")


def _level(client: Any, name: str, version: str, champion: str) -> str:
    """That a version does not differ significantly from the champion on the items of validation; empty if it does.

    Empty, too, where their runs logged no outcomes of the same items, or too few items differ to tell.
    """
    runs = [client.get_model_version(name, each).run_id for each in (version, champion)]
    try:
        mine, its = (fetch_outcomes(run_id)["validation"] for run_id in runs)
        apart = difference(mine, its)
    except (KeyError, ValueError, OSError, SeqappError, MlflowException):
        return ""
    if not math.isfinite(apart.value) or apart.least > SIGNIFICANT or apart.p <= SIGNIFICANT:
        return ""
    return (f"on validation it does not differ significantly from version {champion} (p = {apart.p:.2g}, paired test "
            f"over {len(mine):,} items)")  # fmt: skip


def rollback(name: str) -> Crowned:
    """Make the champion before the present one champion again, and the present one challenger.

    Args:
        name: the registered model. Once more goes back once more.

    Raises:
        SeqappError: if there is no such model or nothing to go back to, or the old bundle does not answer as it did.
    """
    client = connect(create=False)
    model = _known(client, name)
    history = _history(model)
    present = _alias(model, CHAMPION)
    there = {str(found.version) for found in _all(client.search_model_versions, f"name = '{_quoted(name)}'")}
    while history and (history[-1].version == present or history[-1].version not in there):
        history.pop()
    if not history:
        known = f"no champion before version {present} is known" if present else "it has never had a champion"
        raise SeqappError(f"{name}: {known}; `seqapp promote {name}/VERSION` chooses one of the versions "
                          f"{', '.join(sorted(there, key=int)) or '(there is none)'}")  # fmt: skip
    version = history[-1].version
    _check(name, version)
    # In this order: after a cut between the two, the champion in place is one made by other means than the history
    # tells, and rolling back again leads here.
    client.set_registered_model_tag(name, HISTORY, _dump(history))
    _set_alias(client, name, CHAMPION, version)
    before = _score(client, name, present) if present else None
    if present:
        _set_alias(client, name, CHALLENGER, present)
        client.set_model_version_tag(
            name, present, "rolled_back", f"{_now()} by {tracking.user()}, to version {version}"
        )
    elif _alias(model, CHALLENGER) == version:
        client.delete_registered_model_alias(name, CHALLENGER)
    return Crowned(name, version, str(_score(client, name, version)), present or "", str(before) if before else "")


def overview() -> Table:
    """Every registered model: its champion and challenger with their scores, and how many versions it has.

    Raises:
        SeqappError: if there is none.
    """
    client = connect(create=False)
    models = _all(client.search_registered_models)
    if not models:
        raise SeqappError(f"the registry at {masked(tracking_uri())} is empty; `make train` fills it")
    table = _table("name", "champion", "challenger", "versions", "data")
    for model in sorted(models, key=lambda model: model.name):
        count = len(_all(client.search_model_versions, f"name = '{_quoted(model.name)}'"))
        cells, data = [], ""
        for alias in (CHAMPION, CHALLENGER):
            version = _alias(model, alias)
            score = _score(client, model.name, version) if version else None
            cells.append(f"{version}: {score}" if score else "–")
            data = data or (score.digest[:8] if score else "")
        table.add_row(*map(escape, (model.name, *cells)), str(count), data or "–")
    return table


def versions(name: str) -> Table:
    """Every version of a registered model, the newest first: what it is, its score, data and run.

    Raises:
        SeqappError: if there is no such model.
    """
    client = connect(create=False)
    model = _known(client, name)
    aliases: dict[str, list[str]] = {}
    for alias, number in (model.aliases or {}).items():
        aliases.setdefault(str(number), []).append(alias)
    table = _table("version", "is", "score", "data", "run", "made", "became champion")
    found = _all(client.search_model_versions, f"name = '{_quoted(name)}'")
    for version in sorted(found, key=lambda version: int(version.version), reverse=True):
        score, number = Score.of(version.tags), str(version.version)
        made = datetime.datetime.fromtimestamp(version.creation_timestamp / 1000)
        crowned = version.tags.get("became_champion", "–").partition(": ")[0]
        cells = (number, ", ".join(sorted(aliases.get(number, []))) or "–", str(score), score.digest[:8] or "–",
                 (version.run_id or "–")[:8], f"{made:%Y-%m-%d %H:%M}", crowned)  # fmt: skip
        table.add_row(*map(escape, cells))
    return table


def find_run(client: Any, reference: str) -> Any:
    """The run whose id is or begins with ``reference``.

    Raises:
        SeqappError: if there is none, or more than one.
    """
    if re.fullmatch(r"[0-9a-f]{1,32}", reference):
        experiments = [found.experiment_id for found in _all(client.search_experiments)]
        found = client.search_runs(experiments, f"attributes.run_id LIKE '{reference}%'", max_results=2)
        if len(found) == 1:
            return found[0]
        if found:
            raise SeqappError(f"run {reference}: several runs begin like this, such as {found[0].info.run_id} and "
                              f"{found[1].info.run_id}; more of the id fits")  # fmt: skip
    raise SeqappError(f"run {reference}: there is none at {masked(tracking_uri())}; the MLflow page of a run shows its "
                      "id, and `seqapp compare` lists runs")  # fmt: skip


def _find(client: Any, reference: str, wanted: str | None) -> tuple[str, str]:
    """Name and version that ``reference`` stands for; a run is registered if need be."""
    names = {model.name for model in _all(client.search_registered_models)}
    if re.fullmatch(r"[0-9a-f]{8,32}", reference) and reference not in names:
        return _of_run(client, find_run(client, reference), wanted)
    if wanted:
        raise SeqappError(f"--name {wanted}: is for a run that is not registered, and {reference} is no run id")
    name, at, alias = reference.partition("@")
    name, slash, version = name.partition("/")
    model = _known(client, name)
    if slash:
        try:
            return name, str(client.get_model_version(name, version).version)
        except MlflowException as error:
            if error.error_code not in ABSENT:
                raise
            there = _all(client.search_model_versions, f"name = '{_quoted(name)}'")
            listed = ", ".join(sorted((str(found.version) for found in there), key=int)) or "none"
            raise SeqappError(f"{reference}: no such version; there are: {listed}") from None
    found = _alias(model, alias if at else CHALLENGER)
    if found is None:
        listed = ", ".join(f"{other} (version {number})" for other, number in (model.aliases or {}).items()) or "none"
        missing = f"no version is called {alias!r}" if at else "it has no challenger"
        raise SeqappError(f"{name}: {missing}; {name}/VERSION fits, or one of its aliases: {listed}")
    return name, found


def _of_run(client: Any, run: Any, wanted: str | None) -> tuple[str, str]:
    run_id, tags = run.info.run_id, run.data.tags
    configured = run.data.params.get("train.model_name", "None")
    usual = registered_name(tags.get("task", ""), run.info.run_name, configured if configured != "None" else None)
    found = {version.name: str(version.version)
             for version in _all(client.search_model_versions, f"run_id = '{run_id}'")}  # fmt: skip
    name = next(iter(found)) if len(found) == 1 and not wanted else wanted or usual
    if name in found:
        return name, found[name]
    outputs = run.outputs.model_outputs if run.outputs else []
    if not outputs:
        raise SeqappError(f"run {run_id} ({run.info.status.lower()}) has logged no model")
    metric = tags.get("metric", "")
    if f"best_validation/{metric}" not in run.data.metrics:
        raise SeqappError(f"run {run_id}: has no validation score, so it was not trained by seqapp or did not finish")
    if not re.fullmatch(r"[\w.-]+", name):
        raise SeqappError(f"run {run_id}: {name!r} makes no good name of a model; --name NAME gives another")
    mine = Score(metric, run.data.metrics[f"best_validation/{metric}"], tags["direction"], tags["validation_digest"],
                 tags.get("metric_definition", ""))  # fmt: skip
    return name, _enter(client, run, f"models:/{outputs[-1].model_id}", name, mine)


def _enter(client: Any, run: Any, uri: str, name: str, score: Score) -> str:
    """The version of ``name`` for this model and score, made if it is not there."""

    def find() -> str | None:
        for version in _all(client.search_model_versions, f"run_id = '{run.info.run_id}'"):
            if (version.name, version.source, version.tags.get("score")) == (name, uri, repr(score.value)):
                return str(version.version)
        return None

    def make() -> str:
        # A server believes a source only beside the id of its model.
        made = client.create_model_version(name, uri, run.info.run_id, tags=score.tags(),
                                           description=_details(run, score), model_id=uri.rpartition("/")[2]
                                           )  # fmt: skip
        return str(made.version)

    about = {"tags": {"task": run.data.tags.get("task", "unknown")}, "description": _about(name, score, run)}
    try:
        patience.patiently(lambda: client.create_registered_model(name, **about))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return find() or patience.once(make, find)


def _set_alias(client: Any, name: str, alias: str, version: str) -> None:
    try:
        client.set_registered_model_alias(name, alias, version)
    except MlflowException:
        # Another writer has made the alias between MLflow's look and its own entry; now it is there to be moved.
        client.set_registered_model_alias(name, alias, version)


def _crown(client: Any, model: Any, version: str, *, why: str) -> None:
    """Set both aliases, then write down what has happened: a cut between leaves a registry that is right."""
    old = _alias(model, CHAMPION)
    _set_alias(client, model.name, CHAMPION, version)
    if old is not None and old != version:
        _set_alias(client, model.name, CHALLENGER, old)
    elif _alias(model, CHALLENGER) == version:
        client.delete_registered_model_alias(model.name, CHALLENGER)
    reign = Reign(version, _now(), tracking.user(), why)
    client.set_registered_model_tag(model.name, HISTORY, _dump([*_history(model), reign]))
    client.set_model_version_tag(model.name, version, "became_champion", f"{reign.at} by {reign.by}: {why}"[:5000])


def _history(model: Any) -> list[Reign]:
    """The champions so far, the present one last, also where somebody has moved the alias by other means."""
    try:
        reigns = [Reign(**entry) for entry in json.loads((model.tags or {}).get(HISTORY, "[]"))]
    except (ValueError, TypeError):  # edited by hand
        reigns = []
    present = _alias(model, CHAMPION)
    if present is not None and (not reigns or reigns[-1].version != present):
        reigns.append(Reign(present, "", "", "made champion by other means than seqapp"))
    return reigns


def _dump(history: Sequence[Reign]) -> str:
    return json.dumps([{**asdict(reign), "why": reign.why[:300]} for reign in history[-KEPT:]], ensure_ascii=False)


def _check(name: str, version: str) -> None:
    """Refuse a version that would not serve."""
    try:
        bundle.load(resolve(f"{name}/{version}").path).check_golden()
    except BundleError as error:
        raise SeqappError(f"{name} version {version} does not become champion: {error}") from None


def _score(client: Any, name: str, version: str) -> Score:
    return Score.of(client.get_model_version(name, version).tags or {})


def _known(client: Any, name: str) -> Any:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
    known = ", ".join(sorted(model.name for model in _all(client.search_registered_models))) or "none"
    raise SeqappError(f"{name}: no such model in the registry at {masked(tracking_uri())}; registered: {known}")


def _alias(model: Any, alias: str) -> str | None:
    version = (model.aliases or {}).get(alias)
    return None if version is None else str(version)


def _all(search: Callable[..., Any], *conditions: str) -> list[Any]:
    """Every answer of a search of MLflow, which gives pages."""
    found, token = [], None
    while True:
        page = search(filter_string=" and ".join(conditions) or None, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _quoted(name: str) -> str:
    return name.replace("'", "''")


def _about(name: str, score: Score, run: Any) -> str:
    higher = "higher" if score.direction == "max" else "lower"
    return (f"Models for the task {run.data.tags.get('task', 'unknown')}. `seqapp serve {name}` answers with the "
            f"version called champion. A new version becomes champion if its validation {score.metric} is better "
            f"({higher} is better) on the same validation data; the challenger is the best of the others. "
            f"`seqapp promote {name}` makes the challenger champion, `seqapp rollback {name}` goes back.")  # fmt: skip


def _details(run: Any, score: Score) -> str:
    """One sentence on a version, for people."""
    tags, test = run.data.tags, run.data.metrics.get(f"test/{score.metric}")
    told = str(score) + ("" if test is None else f", test {score.metric} {figure(test)}")
    network, data = tags.get("network"), tags.get("dataset")
    about = (f"; {network}" if network else "") + (f" trained on {data}" if data else "")
    return f"{told}{about}; run {run.info.run_name}."


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        # Names are what other commands are given, so they are never cut.
        table.add_column(column, justify="right" if column in ("version", "versions") else "left", overflow="fold",
                         no_wrap=column in ("name", "run"))  # fmt: skip
    return table


def _now() -> str:
    return datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
