"""Outcomes of a run in MLflow: ``outcomes/<split>.parquet``, a row an item, for any program that reads Parquet."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy
import pyarrow
from pyarrow import parquet

from pipelines import patience
from seqapp.errors import DataError
from seqapp.metrics import Metric
from seqapp.outcomes import FORMULAS, Outcomes
from seqapp.references import connect

FOLDER = "outcomes"
"""Of the artifacts of a run."""
SCORES = b"scores"
"""The key of the file's metadata that says how columns become scores."""


def log_outcomes(run_id: str, totals: Mapping[str, Mapping[str, Metric]]) -> None:
    """Log what came of each item.

    Args:
        run_id: of the MLflow run.
        totals: split -> its metrics; those without outcomes are passed over.
    """
    with tempfile.TemporaryDirectory() as folder:
        for split, metrics in totals.items():
            found = metrics.get("outcomes")
            if isinstance(found, Outcomes) and len(found):
                write_outcomes(Path(folder, f"{split}.parquet"), found)
        if any(Path(folder).iterdir()):
            patience.client().log_artifacts(run_id, folder, FOLDER)


def fetch_outcomes(run_id: str) -> dict[str, Outcomes]:
    """Split -> what a run has logged; nothing for a run that is older than outcomes are.

    Raises:
        DataError: if a file is damaged.
    """
    client = connect()
    if not client.list_artifacts(run_id, FOLDER):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(run_id, FOLDER, folder))
        return {file.stem: read_outcomes(file) for file in sorted(path.glob("*.parquet"))}


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """Write a Parquet file."""
    columns = dict(zip(outcomes.columns, outcomes.values.T, strict=True))
    table = pyarrow.table(columns).replace_schema_metadata({SCORES: json.dumps(outcomes.scores_of).encode()})
    parquet.write_table(table, path, compression="zstd")


def read_outcomes(path: Path) -> Outcomes:
    """Read what :func:`write_outcomes` wrote.

    Raises:
        DataError: if it is not that.
    """
    try:
        table = parquet.read_table(path)
        scores = {score: tuple(spec) for score, spec in json.loads(table.schema.metadata[SCORES]).items()}
        if not scores or not all(formula in FORMULAS and columns for formula, *columns in scores.values()):
            raise ValueError("it names no score")
        values = numpy.stack([table.column(name).to_numpy() for name in table.column_names], 1).astype(numpy.float64)
        found = Outcomes(tuple(table.column_names), scores, values)
        for score in scores:
            found.part(score)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{path.name}: not the outcomes of a run: {error!r:.120}") from None
    return found
