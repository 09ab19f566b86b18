"""Runs side by side: only those measured on the same data, by the same score, stand in one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipelines.figures import figure
from seqapp.errors import SeqappError
from seqapp.metrics import wilson_interval
from seqapp.references import connect, masked, tracking_uri

PAGE = 1000
"""Runs in one answer of the tracking server; it allows no more than 50,000."""


@dataclass(frozen=True)
class Row:
    """One run as the comparison shows it."""

    name: str
    network: str
    run_id: str
    digest: tuple[str, str]
    """Of the validation and the test data."""
    dataset: str
    metric: tuple[str, str]
    """The score that chose between epochs, and whether "max" or "min" is better."""
    scale: str
    """What the score is: "share of examples" has an interval, "share" is shown in percent, "number" as it is."""
    validation: float
    test: float | None
    test_examples: int
    parameters: int | None
    seconds: float
    tokens_per_second: float | None
    seed: str


def collect(task: str, *, runs: Sequence[str] = (), every: bool = False) -> list[Row]:
    """Finished runs of a task, the newest of each name and network unless ``every``.

    Args:
        task: the experiment, such as "sentiment".
        runs: only these run ids.
        every: also older runs of the same name.

    Raises:
        SeqappError: if there is no such experiment or no finished run.
    """
    client = connect(create=False)
    experiment = client.get_experiment_by_name(task)
    if experiment is None:
        known = ", ".join(found.name for found in client.search_experiments()) or "none"
        raise SeqappError(f"no runs of {task!r} at {masked(tracking_uri())}; experiments there: {known}")
    rows: list[Row] = []
    seen = set()
    for run in _finished(client, experiment.experiment_id):
        if runs and run.info.run_id not in runs:
            continue
        row = _row(run)
        if row is None:
            continue
        key = (row.name, row.network, row.digest, row.metric)
        if every or runs or key not in seen:
            rows.append(row)
        seen.add(key)
    if not rows:
        raise SeqappError(f"no finished run of {task!r} with a validation score at {masked(tracking_uri())}")
    return rows


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table per data set and score, the best on validation first."""
    drawn = []
    for digest, metric in dict.fromkeys((row.digest, row.metric) for row in rows):
        name, direction = metric
        group = [row for row in rows if (row.digest, row.metric) == (digest, metric)]
        group.sort(key=lambda row: row.validation, reverse=direction == "max")
        data = f"validation data {digest[0][:8]}, test data {digest[1][:8] or 'none'}"
        table = Table(title=f"{group[0].dataset} ({data})", title_justify="left")
        heads = ["run", "network", f"validation {name}", f"test {name}"]
        if any(row.scale == "share of examples" for row in group):
            heads.append("95 % interval")
        for column in (*heads, "parameters", "time", "tokens/s"):
            table.add_column(column, justify="left" if column in ("run", "network") else "right")
        for place, row in enumerate(group):
            share = row.scale != "number"
            cells = [row.name, row.network, figure(row.validation, share=share)]
            cells.append("" if row.test is None else figure(row.test, share=share))
            if len(heads) > 4:
                cells.append(_interval(row))
            table.add_row(
                *cells,
                "" if row.parameters is None else f"{row.parameters:,}",
                f"{row.seconds:.0f} s",
                "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
                style="bold" if place == 0 else "",
            )
        drawn.append(table)
    return drawn


def _interval(row: Row) -> str:
    if row.scale != "share of examples" or row.test is None or not row.test_examples:
        return ""
    low, high = wilson_interval(row.test * row.test_examples, row.test_examples)
    return f"{low:.1%} - {high:.1%}"


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


def _row(run: Any) -> Row | None:
    values, tags = run.data.metrics, run.data.tags
    # Runs without these tags are older than they are; all of those are of sentiment.
    name = tags.get("metric", "accuracy")
    if f"best_validation/{name}" not in values:
        return None
    return Row(
        name=run.info.run_name,
        network=tags.get("network", ""),
        run_id=run.info.run_id,
        digest=(tags.get("validation_digest", ""), tags.get("test_digest", "")),
        dataset=tags.get("dataset", ""),
        metric=(name, tags.get("direction", "max")),
        scale=tags.get("scale", "share of examples" if "metric" not in tags else "number"),
        validation=values[f"best_validation/{name}"],
        test=values.get(f"test/{name}"),
        test_examples=int(values.get("test/examples", 0)),
        parameters=int(values["parameters"]) if "parameters" in values else None,
        seconds=values.get("seconds", 0.0),
        tokens_per_second=values.get("train/tokens_per_second"),
        seed=tags.get("seed", ""),
    )
