"""One LightningDataModule for every task: encode once, then length buckets."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset

from seqapp.data import streams
from seqapp.data.batching import Idle, LengthBuckets
from seqapp.data.splits import Splits
from seqapp.errors import DataError, SeqappError
from seqapp.tasks import InputError, Task

log = logging.getLogger(__name__)


class Batches(Dataset[Any]):
    """Encoded items, fetched a batch at a time: indexed with the list of rows that a sampler chose.

    Args:
        task: collates, and varies training items.
        items: encoded examples.
        buckets: chooses the rows; its epoch also seeds the variation of each item.
        augment: vary items, as in training.
    """

    def __init__(self, task: Task[Any, Any], items: Sequence[Any], buckets: LengthBuckets, *, augment: bool) -> None:
        self.task, self.items, self.buckets, self.augment = task, items, buckets, augment

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: list[int]) -> Any:
        if not rows:
            return Idle()
        items = [self.items[row] for row in rows]
        if self.augment:
            seed, epoch = self.buckets.seed, self.buckets.epoch
            items = [
                self.task.augment(item, random.Random(f"{seed}:{epoch}:{row}"))
                for row, item in zip(rows, items, strict=True)
            ]
        return self.task.collate(items)


class Pieces(Iterable[Any]):
    """The pieces of each batch, one batch after the other, for truncated back-propagation through time.

    Of several processes one whose rows have all ended gets an :class:`Idle` for each piece that is left to the others.

    Args:
        task: cuts a batch.
        loader: of the batches.
        batches: the longest row of each batch that ``loader`` gives, 0 without rows, and of what all processes get of
            it, in its order.
        steps: most positions in one piece.
    """

    def __init__(
        self, task: Task[Any, Any], loader: DataLoader[Any], batches: Sequence[tuple[int, int]], steps: int
    ) -> None:
        self.task, self.loader, self.steps = task, loader, steps
        self.owned = [-(-own // steps) for own, _ in batches]
        self.counts = [-(-longest // steps) for _, longest in batches]

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[Any]:
        for batch, own, count in zip(self.loader, self.owned, self.counts, strict=True):
            cut, idle = 0, Idle()
            for piece in self.task.chunks(batch, self.steps) if own else ():
                yield piece
                idle = Idle(self.task.weight(piece)) if self.task.weighs_whole else idle
                cut += 1
            if cut != own:
                # Lightning would end the epoch at the announced length and say nothing.
                raise SeqappError(
                    f"{type(self.task).__name__}.chunks makes {cut} piece(s) of a batch whose lengths announce {own}"
                )
            yield from [idle] * (count - own)


class Data(pl.LightningDataModule):
    """The three splits of one data set, encoded by a prepared task.

    Args:
        task: prepared on the training split.
        splits: the examples.
        batch_tokens: padded tokens in one batch.
        batch_rows: most rows in one batch.
        seed: of the order of batches.
        truncate: most positions of a training row that are learned from at once, the rest following in pieces; 0 takes
            whole rows, which a stream has not.
        rank: of this process, from 0; it trains and validates on its share of each batch.
        world: number of processes.

    Raises:
        DataError: naming data set, split and example, if one cannot be encoded.
        InputError: the same where there is no training split: a file to measure, which the caller names.
    """

    def __init__(
        self,
        task: Task[Any, Any],
        splits: Splits[Any],
        *,
        batch_tokens: int,
        batch_rows: int,
        seed: int,
        truncate: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__()
        self.rank, self.world = rank, world
        self.task, self.splits = task, splits
        self.batch_tokens, self.batch_rows, self.seed, self.truncate = batch_tokens, batch_rows, seed, truncate
        self.train_items: Any = self.encode("train") if splits.train else []
        self.validation_items = self.encode("validation")

    def encode(self, split: str) -> Any:
        """The items of a split, such as "test", or the stream.

        Raises:
            DataError, InputError: as the class.
        """
        try:
            return self.task.encode(self.splits.all()[split])
        except (InputError, DataError) as error:
            if not self.splits.train:
                raise
            what = f"example {error.index + 1}: {error.problem}" if isinstance(error, InputError) else str(error)
            raise DataError(f"{self.splits.name}: {split} split: {what}") from None

    def train_dataloader(self) -> DataLoader[Any] | Pieces | streams.Pieces:
        epoch = self.trainer.current_epoch if self.trainer else 0
        if self.task.streams:
            return streams.training_pieces(
                self.train_items,
                rows=self.batch_rows,
                steps=self.truncate,
                seed=self.seed,
                epoch=epoch,
                rank=self.rank,
                world=self.world,
            )
        lengths = [self.task.augmented_length(item) for item in self.train_items]
        buckets = LengthBuckets(
            lengths,
            max_tokens=self.batch_tokens,
            max_rows=self.batch_rows,
            seed=self.seed,
            shuffle=True,
            rank=self.rank,
            world=self.world,
        )
        # Epochs differ in their number of batches; Lightning asks for each epoch anew and counts what it gets.
        buckets.set_epoch(epoch)
        loader = self._loader(self.train_items, buckets, augment=True)
        if not self.truncate:
            return loader
        # A task that can be cut along time has rows of one side.
        sizes = [[cast(int, lengths[row]) for row in rows] for rows in buckets.batches()]
        longest = [(max(rows[self.rank :: self.world], default=0), max(rows)) for rows in sizes]
        return Pieces(self.task, loader, longest, self.truncate)

    def val_dataloader(self) -> DataLoader[Any] | streams.Pieces:
        return self.evaluation_dataloader(self.validation_items, rank=self.rank, world=self.world)

    def evaluation_dataloader(self, items: Any, *, rank: int = 0, world: int = 1) -> DataLoader[Any] | streams.Pieces:
        """Batches of ``items`` as they are, sorted by length; or the pieces of a stream.

        Args:
            items: what :meth:`encode` returned.
            rank: of this process, from 0; only its share is read.
            world: number of processes that share; one reads all.
        """
        if self.task.streams:
            return streams.evaluation_pieces(items, rank=rank, world=world)
        lengths = [self.task.length(item) for item in items]
        buckets = LengthBuckets(
            lengths, max_tokens=4 * self.batch_tokens, max_rows=256, shuffle=False, rank=rank, world=world
        )
        return self._loader(items, buckets, augment=False)

    def _loader(self, items: Sequence[Any], buckets: LengthBuckets, *, augment: bool) -> DataLoader[Any]:
        # The buckets stand as sampler, not as batch_sampler: there Lightning finds them and sets the epoch.
        return DataLoader(Batches(self.task, items, buckets, augment=augment), sampler=buckets, batch_size=None)
