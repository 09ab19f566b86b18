"""Answers by a cluster: Ray Data moves the rows, actors that hold the bundle answer, and parts are written in order.

Ray's own readers would guess the types of cells, load a file of JSON whole, and begin at the first row; so a
:class:`pipelines.predict.Source` is given to Ray as a data source of its own. The columns, the answers and the output
are those of one machine, and a stopped run goes on, on either.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipelines.predict import CHUNK_BYTES, Chunk, Inputs, Source, answer
from pipelines.predict_file import Answered
from seqapp import bundle
from seqapp.bundle import Bundle
from seqapp.data.rows import Row
from seqapp.errors import SeqappError

_ROW, _ANSWER, _DONE = "\0row", "\0answer", "\0done"
"""Columns beside those of a chunk, under names that no file has."""


def on_ray(loaded: Bundle, source: Source, skip: int = 0, *, address: str | None = None) -> Answered:
    """``source.answered`` by the actors of a cluster, up to one for each of its cores.

    The file is read on this machine and the bundle goes from here to the actors, so that no folder need be shared; all
    machines have seqapp installed.

    Args:
        loaded: the bundle of the source.
        source: of the rows; a file.
        skip: rows at the beginning that are left out.
        address: of the cluster; None for one on this machine, which ends afterwards.

    Raises:
        SeqappError: if the cluster does not answer, or loses more than it can do again.
    """
    mine = not ray.is_initialized()
    try:
        if mine:
            ray.init(
                address=address or "local", log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False
            )
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.target_max_block_size = CHUNK_BYTES
        yield from _answered(loaded, source, skip)
    except (ConnectionError, ray.exceptions.RayError) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, SeqappError):
            raise cause from None
        raise SeqappError(f"Ray at {address or 'this machine'}: {str(error).strip().splitlines()[-1]}") from None
    finally:
        if mine:
            ray.shutdown()


def _answered(loaded: Bundle, source: Source, skip: int) -> Answered:
    cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    files = {file.name: file.read_bytes() for file in loaded.path.iterdir() if file.is_file()}
    # Reading asks for other resources than answering; else Ray would do both in one actor and leave the others idle.
    found = ray.data.read_datasource(_Rows(source, skip), num_cpus=0.5).map_batches(
        _Actor,
        batch_format="pyarrow",
        batch_size=source.rows,
        fn_constructor_args=(files, source.inputs.text, source.inputs.only_text, source.cells),
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, cores - 1)),
        num_cpus=1,
    )
    for block in found.iter_batches(batch_size=None, batch_format="pyarrow"):
        table = block.drop_columns([_ROW, _ANSWER, _DONE]) if source.format == "parquet" else None
        answers = [json.loads(text) for text in block[_ANSWER].to_pylist()]
        yield Chunk(_rows(block), block[_DONE][-1].as_py(), table), answers


class _Rows(Datasource):
    def __init__(self, source: Source, skip: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._source, self._skip = source, skip

    def get_name(self) -> str:
        return "Rows"

    @property
    def supports_distributed_reads(self) -> bool:
        return False  # the file is on this machine

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        source, skip = self._source, self._skip

        def read() -> Iterator[pyarrow.Table]:
            for chunk in source.chunks(skip):
                kept = (
                    {} if chunk.table is None else dict(zip(chunk.table.column_names, chunk.table.columns, strict=True))
                )
                rows = [json.dumps([row.line, row.values, row.problem], default=str) for row in chunk.rows]
                yield pyarrow.table({**kept, _ROW: rows, _DONE: [chunk.done] * len(rows)})

        metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(read, metadata)]


def _rows(block: pyarrow.Table) -> list[Row]:
    return [Row(*json.loads(text)) for text in block[_ROW].to_pylist()]


class _Actor:
    def __init__(self, files: Mapping[str, bytes], text: str | None, only_text: bool, cells: bool) -> None:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            self.loaded = bundle.load(folder)
        self.inputs, self.cells = Inputs(self.loaded, text=text, only_text=only_text), cells

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        answers = answer(self.loaded, self.inputs, _rows(block), cells=self.cells)
        return block.append_column(_ANSWER, [[json.dumps(one) for one in answers]])
