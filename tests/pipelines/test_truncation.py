"""Training in pieces of time: what is handed on, where the gradient stops, and that nothing else changes."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipelines.data import Data
from pipelines.module import Learner, Reader
from seqapp.errors import ConfigError, SeqappError
from seqapp.tasks import TASKS
from tests.pipelines import toys
from tests.pipelines.toys import Series, Toy
from tests.pipelines.worlds import World, steady

ROWS = [Series(tuple(float(i + j) / 7 for j in range(size))) for i, size in enumerate((3, 9, 5, 1))]


def learner(truncated: bool = True, layer: str = "elman") -> tuple[Learner, Toy]:
    task = Toy()
    model = toys.build_model(layer={"kind": layer, "hidden_size": 4})
    made = Learner(
        task, model, learning_rate=0.1, schedule="constant", warmup=0.0, weight_decay=0.0, seed=1, truncated=truncated
    )
    return made, task


def test_a_piece_goes_on_from_the_piece_before() -> None:
    made, task = learner()
    read = Reader(task, made.model, carried=True)
    pieces = list(task.chunks(task.collate(ROWS), 3))
    assert [piece.lengths.tolist() for piece in pieces] == [[3, 3, 3, 1], [3, 2], [3]]
    wanted = toys.losses(made.model, task, pieces)
    got = [read(piece)[0] for piece in pieces]
    torch.testing.assert_close(torch.stack(got), torch.stack(wanted))
    # Another first piece, another loss of the second; and a fresh piece forgets what was before.
    read(pieces[0]._replace(values=pieces[0].values + 1))
    assert read(pieces[1])[0] != got[1]
    assert read(pieces[0])[0] == got[0]


def test_the_gradient_stops_at_the_border_of_a_piece() -> None:
    made, task = learner()
    read = Reader(task, made.model, carried=True)
    pieces = list(task.chunks(task.collate(ROWS), 3))
    read(pieces[0])
    before = read.carry
    assert before.grad_fn is None
    read(pieces[1])[0].backward()
    cut = [parameter.grad.clone() for parameter in made.model.parameters()]
    made.model.zero_grad()
    task.loss_carried(made.model, pieces[1], before[:2])[0].backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(cut, made.model.parameters(), strict=True))
    made.model.zero_grad()
    toys.losses(made.model, task, pieces)[1].backward()
    assert not all(torch.allclose(a, b.grad) for a, b in zip(cut, made.model.parameters(), strict=True))


@pytest.mark.parametrize("layer", ["elman", "lstm", "gru"])
def test_every_leaf_of_a_carry_is_cut_and_trimmed(layer: str) -> None:
    made, task = learner(layer=layer)
    read = Reader(task, made.model, carried=True)
    for piece in task.chunks(task.collate(ROWS), 2):
        loss, _ = read(piece)
        assert loss.isfinite()
        leaves = read.carry if isinstance(read.carry, tuple) else (read.carry,)
        assert all(len(leaf) == len(piece.lengths) and not leaf.requires_grad for leaf in leaves)


def test_the_loader_gives_every_piece_of_every_batch_in_order_and_says_how_many() -> None:
    rows = toys.source(count=60)
    for steps in (1, 4, 11, 50):
        data = Data(Toy(), rows, batch_tokens=64, batch_rows=8, seed=3, truncate=steps)
        whole = Data(Toy(), rows, batch_tokens=64, batch_rows=8, seed=3)
        loader = data.train_dataloader()
        pieces = list(loader)
        assert (
            len(pieces) == len(loader) == sum(-(-batch.values.shape[1] // steps) for batch in whole.train_dataloader())
        )
        assert [piece.fresh for piece in pieces].count(True) == len(whole.train_dataloader())
        assert sum(int(piece.lengths.sum()) for piece in pieces) == sum(len(row.values) for row in rows.train)
        for before, piece in pairwise(pieces):
            assert piece.fresh or len(piece.lengths) <= len(before.lengths)
        # Evaluation reads whole rows.
        assert len(data.val_dataloader()) == len(whole.val_dataloader())


class Spy:
    """Notes each call of ``loss_carried``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_after: int | None = None) -> None:
        self.calls: list[tuple[bool, Tensor | None, Tensor]] = []
        self.progress: list[float] = []
        plain = Toy.loss_carried

        def loss_carried(task: Toy, model: Any, batch: Any, carry: Any) -> Any:
            if not model.training:
                return plain(task, model, batch, carry)
            if fail_after is not None and len(self.calls) == fail_after:
                self.cut = batch
                raise ZeroDivisionError
            self.progress.append(model.progress)
            answer = plain(task, model, batch, carry)
            self.calls.append((batch.fresh, carry, answer[2]))
            return answer

        monkeypatch.setattr(Toy, "loss_carried", loss_carried)


def test_training_hands_the_carry_on_within_a_batch(toy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    trained = toy.train("train.truncate=4", config="toy.yaml", register=False)
    assert {fresh for fresh, _, _ in spy.calls} == {True, False}
    before = None
    for fresh, carry, after in spy.calls:
        if fresh:
            assert carry is None
        else:
            assert not carry.requires_grad
            assert torch.equal(carry, before[: len(carry)])
        assert after.requires_grad
        before = after
    # Each piece is a step of the optimiser, and the schedule knows how many there are.
    saved = torch.load(trained.bundle.parent / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == len(spy.calls)
    assert spy.progress[0] == 0
    assert spy.progress == sorted(spy.progress)
    assert 0.9 < spy.progress[-1] <= 1


def test_progress_is_the_share_of_steps_done(toy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    toy.train("train.batch_rows=1", "train.epochs=3", config="toy.yaml", register=False)
    assert spy.progress == pytest.approx([step / 150 for step in range(150)])


def test_pieces_longer_than_every_row_change_nothing(toy: World) -> None:
    found = []
    for steps in (0, 20):
        trained = toy.train(f"train.truncate={steps}", config="toy.yaml", register=False)
        found.append((toy.history(trained.run_id), load_file(trained.bundle / "weights.safetensors")))
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name])
    for name in ("train/mse", "validation/mse", "train/gradient_norm"):
        assert [v for _, v in found[0][0][name]] == pytest.approx([v for _, v in found[1][0][name]], rel=1e-5)


@pytest.mark.parametrize("average", ["0", "0.9"])
def test_an_epoch_cut_off_between_two_pieces_is_run_again_as_it_was(
    toy: World, monkeypatch: pytest.MonkeyPatch, average: str
) -> None:
    choices = ("train.truncate=3", "train.epochs=3", "train.test=false", f"train.average={average}")
    with monkeypatch.context() as patch:
        undisturbed = Spy(patch)
        whole = toy.train(*choices, config="toy.yaml", register=False)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.tracking.finish", lambda *_: None)
        spy = Spy(patch, fail_after=40)
        with pytest.raises(ZeroDivisionError):
            toy.train(*choices, config="toy.yaml", register=False)
    assert not spy.cut.fresh, "the cut is not between two pieces"
    with monkeypatch.context() as patch:
        again = Spy(patch)
        resumed = toy.train(*choices, config="toy.yaml", register=False, resume=True)
    assert again.progress[0] > 0
    assert again.progress == undisturbed.progress[-len(again.progress) :]
    assert steady(toy.history(resumed.run_id)) == steady(toy.history(whole.run_id))
    weights = [load_file(trained.bundle / "weights.safetensors") for trained in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_task_that_carries_nothing_names_the_option(world: World) -> None:
    with pytest.raises(ConfigError, match=r"train\.truncate: the task 'sentiment' .* 0 would fit, not 4"):
        world.train("train.truncate=4")
    assert not list(world.path.glob("runs/*"))
    task = TASKS.build({"kind": "sentiment"})
    with pytest.raises(ConfigError, match=r"train\.truncate: Sentiment reads each row as a whole"):
        task.chunks(None, 3)
    with pytest.raises(ConfigError, match=r"train\.truncate: Sentiment"):
        task.loss_carried(torch.nn.Identity(), None, None)


def test_pieces_that_are_not_as_announced_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Toy.chunks

    def short(task: Toy, batch: Any, steps: int) -> Iterator[Any]:
        yield from list(plain(task, batch, steps))[:-1]

    monkeypatch.setattr(Toy, "chunks", short)
    data = Data(Toy(), toys.source(), batch_tokens=64, batch_rows=8, seed=3, truncate=2)
    with pytest.raises(SeqappError, match=r"Toy\.chunks makes \d+ piece\(s\) of a batch whose lengths announce \d+"):
        list(data.train_dataloader())
