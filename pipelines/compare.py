"""Runs side by side: only those measured on the same data stand in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from seqapp.errors import SeqappError
from seqapp.metrics import wilson_interval
from seqapp.references import connect, tracking_uri


@dataclass(frozen=True)
class Row:
    """One run as the comparison shows it."""

    name: str
    network: str
    run_id: str
    digest: tuple[str, str]
    """Of the validation and the test data."""
    dataset: str
    validation: float
    test: float | None
    test_examples: int
    parameters: int | None
    seconds: float
    tokens_per_second: float | None
    seed: str


def collect(task: str, *, runs: Sequence[str] = (), every: bool = False) -> list[Row]:
    """Finished runs of a task, the newest of each name unless ``every``.

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
        raise SeqappError(f"no runs of {task!r} at {tracking_uri()}; experiments there: {known}")
    found = client.search_runs(
        [experiment.experiment_id], "attributes.status = 'FINISHED'", order_by=["attributes.start_time DESC"]
    )
    rows: list[Row] = []
    for run in found:
        if runs and run.info.run_id not in runs:
            continue
        row = _row(run)
        if row is not None and (every or runs or not any((r.name, r.digest) == (row.name, row.digest) for r in rows)):
            rows.append(row)
    if not rows:
        raise SeqappError(f"no finished run of {task!r} with a validation accuracy at {tracking_uri()}")
    return rows


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table per data set, the best on validation first."""
    drawn = []
    for digest in dict.fromkeys(row.digest for row in rows):
        group = sorted((row for row in rows if row.digest == digest), key=lambda row: -row.validation)
        data = f"validation data {digest[0][:8]}, test data {digest[1][:8] or 'none'}"
        table = Table(title=f"{group[0].dataset} ({data})", title_justify="left")
        for column in ("run", "network", "validation", "test", "95 % interval", "parameters", "time", "tokens/s"):
            table.add_column(column, justify="left" if column in ("run", "network") else "right")
        for place, row in enumerate(group):
            interval = ""
            if row.test is not None and row.test_examples:
                low, high = wilson_interval(row.test * row.test_examples, row.test_examples)
                interval = f"{low:.1%} - {high:.1%}"
            table.add_row(
                row.name,
                row.network,
                f"{row.validation:.2%}",
                "" if row.test is None else f"{row.test:.2%}",
                interval,
                "" if row.parameters is None else f"{row.parameters:,}",
                f"{row.seconds:.0f} s",
                "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
                style="bold" if place == 0 else "",
            )
        drawn.append(table)
    return drawn


def _row(run: Any) -> Row | None:
    values, tags = run.data.metrics, run.data.tags
    if "best_validation/accuracy" not in values:
        return None
    return Row(
        name=run.info.run_name,
        network=tags.get("network", ""),
        run_id=run.info.run_id,
        digest=(tags.get("validation_digest", ""), tags.get("test_digest", "")),
        dataset=tags.get("dataset", ""),
        validation=values["best_validation/accuracy"],
        test=values.get("test/accuracy"),
        test_examples=int(values.get("test/examples", 0)),
        parameters=int(values["parameters"]) if "parameters" in values else None,
        seconds=values.get("seconds", 0.0),
        tokens_per_second=values.get("train/tokens_per_second"),
        seed=tags.get("seed", ""),
    )
