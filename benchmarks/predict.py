"""Rows a second and peak memory of `seqapp predict FILE OUT` over the size of the file, beside one call in memory.

python benchmarks/predict.py [--rows 10000 100000 1000000] [--jobs 1 2] [--quick]

The model is a GRU with the sizes of configs/sentiment/bundled-gru.yaml, untrained, since time does not depend on what
the weights are; the rows are bundled reviews, again and again, each with its number. Each run is a process of its own.
"In memory" reads the whole table, calls `Bundle.predict` once, and writes the whole table. Peak memory is the largest
resident set of the process that reads and writes; what it had before, with the bundle loaded, is given beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import record
from pyarrow import parquet
from rich.console import Console
from rich.table import Table

from pipelines.options import SECTIONS
from pipelines.predict import Source
from pipelines.predict_file import in_processes, predict_to
from seqapp import bundle, config
from seqapp.data.splits import SOURCES
from seqapp.tasks import TASKS

CONFIG = Path(__file__).parents[1] / "configs" / "sentiment" / "bundled-gru.yaml"
IN_MEMORY = "in memory"


def make(folder: Path) -> list[str]:
    """Save the bundle as folder/bundle; the texts of the reviews."""
    resolved = config.load(CONFIG, [], sections=SECTIONS)
    examples = SOURCES.build(resolved["data"]).train
    task = TASKS.build(resolved["task"])
    task.prepare(examples)
    bundle.save(folder / "bundle", task=task, model=task.build_model(resolved["model"]), resolved=resolved, metrics={},
                name="untrained")  # fmt: skip
    return [example.text for example in examples]


def write(texts: list[str], rows: int, file: Path) -> None:
    """``rows`` rows as a Parquet file, a group at a time."""
    stream = enumerate(islice(cycle(texts), rows))
    schema = pa.schema({"id": pa.int64(), "text": pa.string()})
    with parquet.ParquetWriter(file, schema) as writer:
        while part := [{"id": number, "text": f"{text} {number}"} for number, text in islice(stream, 1 << 16)]:
            writer.write_table(pa.Table.from_pylist(part, schema))


def peak() -> int:
    """Bytes of the largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def child(folder: Path, way: str) -> None:
    """Answer folder/in.parquet and print what it took."""
    loaded = bundle.load(folder / "bundle")
    loaded.predict([loaded.task.Input(text="to warm up")])
    before, start = peak(), time.perf_counter()
    out = folder / "out.parquet"
    if way == IN_MEMORY:
        table = parquet.read_table(folder / "in.parquet")
        answers = loaded.predict([loaded.task.Input(text=text) for text in table["text"].to_pylist()])
        rows = [{**row, **one.model_dump()} for row, one in zip(table.to_pylist(), answers, strict=True)]
        parquet.write_table(pa.Table.from_pylist(rows), out)
    else:
        source, jobs = Source(str(folder / "in.parquet"), loaded), int(way)
        predict_to(loaded, source, out, answered=in_processes(loaded, source, jobs) if jobs > 1 else None)
    print(json.dumps({"seconds": time.perf_counter() - start, "before_bytes": before, "peak_bytes": peak()}))


def measure(folder: Path, rows: int, way: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(folder), way]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    (folder / "out.parquet").unlink()
    size = (folder / "in.parquet").stat().st_size
    return {"rows": rows, "file_bytes": size, "way": way, "rows_per_second": rows / found["seconds"], **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="a short run that records nothing")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(Path(arguments.child[0]), arguments.child[1])
        return
    table = Table(title="seqapp predict")
    for column in ("rows", "way", "rows/s", "MiB before", "MiB at most"):
        table.add_column(column, justify="right")
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = make(folder)
        for rows in [500, 2000] if arguments.quick else arguments.rows:
            write(texts, rows, folder / "in.parquet")
            for way in [IN_MEMORY, *map(str, arguments.jobs)]:
                found = measure(folder, rows, way)
                results.append(found)
                table.add_row(f"{rows:,}", way if way == IN_MEMORY else f"{way} process(es)",
                              f"{found['rows_per_second']:,.0f}", f"{found['before_bytes'] / 2**20:,.0f}",
                              f"{found['peak_bytes'] / 2**20:,.0f}")  # fmt: skip
    Console(width=100).print(table)
    if not arguments.quick:
        print(record.write("predict", {"config": f"configs/sentiment/{CONFIG.name}", "results": results}))


if __name__ == "__main__":
    main()
