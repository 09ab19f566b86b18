"""Two processes learn what one learns, log it once, and end and go on together."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipelines.data import Data
from pipelines.distributed import Processes
from pipelines.options import SECTIONS, Training
from pipelines.stopping import HOW_ON, NOT_YET
from seqapp import config
from seqapp.data.batching import Idle
from seqapp.data.splits import SOURCES, Splits
from seqapp.errors import ConfigError, SeqappError
from seqapp.tasks import TASKS
from tests.pipelines.toys import Series, Toy
from tests.pipelines.worlds import CONFIG, Said, World, steady, texts, write_csv

Seqapp = Callable[..., Said]

# Without dropout, whose noise is another one in each process. The last batch has one row, so a process has none.
SENTIMENT = CONFIG.replace("dropout: 0.2", "dropout: 0.0").replace(
    "epochs: 3, batch_tokens: 128, batch_rows: 16",
    "epochs: 3, batch_tokens: 999, batch_rows: 15, average: 0.9, patience: 2",
)
TRANSLATION = """
task: {kind: translation, tokenizer: {kind: word}, shared: false, beam_size: 2}
model:
  kind: translator
  embedding_size: 8
  encoder: {kind: birnn, layer: {kind: lstm, hidden_size: 8}}
  decoder: {kind: lstm, hidden_size: 8}
  attention: {kind: general}
data: {kind: pairs, train: [mine.en, mine.de], source: en, target: de, test_share: 0.1}
train: {epochs: 2, batch_tokens: 999, batch_rows: 31, learning_rate: 2e-2, clip_norm: 0.1}
"""
# Nine rows of a stream for two processes, one of which reads one more than the other.
STREAM = """
task: {kind: generation}
model: {kind: language_model, embedding_size: 8, encoder: {kind: gru, hidden_size: 16}}
data: {kind: text, train: cycle.txt, validation_share: 0.1, test_share: 0.1}
train: {epochs: 2, batch_rows: 9, truncate: 16, learning_rate: 3e-2, weight_decay: 0.1}
"""
# Rows that end after different numbers of pieces, and pieces that ask for nothing.
IN_STEP = """
task: {kind: memory}
model: {kind: in_step, reads: numbers, answers: numbers, encoder: {kind: elman, hidden_size: 6}}
data: {kind: sequences, train: steps.jsonl, validation_share: 0.2}
train: {epochs: 2, batch_tokens: 999, batch_rows: 3, truncate: 3, learning_rate: 1e-2}
"""
# More than ten thousand words: the gradient of their table is sparse.
WORDS = """
task: {kind: generation, reads: lines, tokenizer: {kind: word, max_vocabulary: 20000}}
model:
  kind: language_model
  embedding_size: 4
  encoder: {kind: elman, hidden_size: 4}
  head: {kind: adaptive, narrowest: 4}
data: {kind: text, train: words.txt, validation_share: 0.1, test_share: 0}
train: {epochs: 2, batch_tokens: 4000, batch_rows: 17, learning_rate: 1e-2}
"""
CONFIGS = {"sentiment": SENTIMENT, "translation": TRANSLATION, "stream": STREAM, "words": WORDS, "memory": IN_STEP}
NUMBERS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs"}


def write_data(folder: Path) -> None:
    chance = random.Random(0)
    write_csv(folder / "data.csv", texts(150))
    pairs = [[chance.choice(list(NUMBERS)) for _ in range(chance.randint(2, 6))] for _ in range(110)]
    (folder / "mine.en").write_text("".join(" ".join(row) + "\n" for row in pairs))
    (folder / "mine.de").write_text("".join(" ".join(NUMBERS[word] for word in row[::-1]) + "\n" for row in pairs))
    (folder / "cycle.txt").write_text("".join(chance.choice("abcd") + "efgh" for _ in range(400)))
    (folder / "words.txt").write_text(
        "".join(" ".join(f"w{i}" for i in range(n, n + 150)) + "\n" for n in range(0, 11000, 99))
    )
    with (folder / "steps.jsonl").open("w") as file:
        for _ in range(60):
            values = [round(chance.uniform(-1, 1), 3) for _ in range(chance.randint(2, 30))]
            asked = [value if place % 6 == 1 else None for place, value in enumerate(values)]
            file.write(json.dumps({"inputs": values, "targets": asked}) + "\n")


@pytest.fixture(scope="module")
def both(
    make_world: Callable[[Path], World], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[int, World], Said]:
    """A world in which one process has trained every config, and one in which two have, by one command."""
    worlds = {count: make_world(tmp_path_factory.mktemp(f"processes-{count}")) for count in (1, 2)}
    for world in worlds.values():
        write_data(world.path)
        for name, text in CONFIGS.items():
            world.config(f"{name}.yaml", text)
    files = [f"{name}.yaml" for name in CONFIGS]
    command = worlds[2].command("train", *files, "train.devices=2", "train.accelerator=cpu", "--no-register")
    done = subprocess.Popen(
        command,
        cwd=worlds[2].path,
        env=worlds[2].environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            worlds[1].enter(patch)
            for file in files:
                worlds[1].train(config=file, register=False)
        out, err = done.communicate(timeout=200)
    finally:
        done.kill()
        done.communicate()
    return worlds, Said(done.returncode, out, err)


def run_of(world: World, name: str) -> Any:
    """The only run of that name."""
    client = world.client
    (found,) = client.search_runs([one.experiment_id for one in client.search_experiments()], f"run_name = '{name}'")
    return found


def weights(world: World, name: str) -> dict[str, torch.Tensor]:
    (folder,) = world.path.glob(f"runs/*-{name}-*")
    return load_file(folder / "bundle" / "weights.safetensors")


def check_same(name: str, one: World, other: World) -> None:
    """The run of that name in both worlds has logged the same figures, each once, and has the same weights."""
    runs = [run_of(world, name) for world in (one, other)]
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    histories = [steady(world.history(run.info.run_id)) for world, run in zip((one, other), runs, strict=True)]
    assert histories[0].keys() == histories[1].keys()
    for metric, values in histories[0].items():
        assert [step for step, _ in histories[1][metric]] == [step for step, _ in values], metric
        # Sums in another order, in single precision, over some dozens of steps.
        wanted = pytest.approx([value for _, value in values], rel=1e-5, abs=1e-5, nan_ok=True)
        assert [value for _, value in histories[1][metric]] == wanted, metric
    trained = [weights(world, name) for world in (one, other)]
    assert trained[0].keys() == trained[1].keys()
    for part in trained[0]:
        torch.testing.assert_close(trained[1][part], trained[0][part], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_learn_and_log_what_one_does(both: tuple[dict[int, World], Said], name: str) -> None:
    worlds, said = both
    assert said.status == 0, said.err
    check_same(name, worlds[1], worlds[2])


def test_one_process_reproduces_what_two_have_trained(
    both: tuple[dict[int, World], Said], monkeypatch: pytest.MonkeyPatch, seqapp: Callable[..., Said]
) -> None:
    world = both[0][2]
    world.enter(monkeypatch)
    said = seqapp("reproduce", run_of(world, "sentiment").info.run_id, "--quiet")
    assert said.status == 0, said.err + said.out
    assert "processes: 2 then, 1 here, which moves figures by rounding, and by what is drawn in a step" in said.out
    assert "reproduced: all " in said.out


def test_each_way_of_having_no_rows_is_among_them(world: World) -> None:
    write_data(world.path)
    for name, text in CONFIGS.items():
        resolved = config.load(world.config(f"{name}.yaml", text), [], sections=SECTIONS)
        options, task = Training(**resolved["train"]), TASKS.build(resolved["task"])
        splits = SOURCES.build(resolved["data"])
        task.prepare(splits.train)
        data = Data(task, splits, batch_tokens=options.batch_tokens, batch_rows=options.batch_rows, seed=options.seed,
                    truncate=options.truncate, rank=1, world=2)  # fmt: skip
        batches = [*data.train_dataloader(), *data.val_dataloader()]
        idle = [batch.weight for batch in batches if isinstance(batch, Idle)]
        assert idle, name
        assert any(idle) == (name == "memory")
        assert len(idle) < len(batches)


def test_processes_with_other_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "gather", lambda self, thing: [thing, {"train": "b"}])
    with pytest.raises(SeqappError, match="process 1 has other data than process 0; the same files, package versions"):
        Processes(0, 2).same({"train": "a"}, "data")


def test_only_the_first_process_speaks(both: tuple[dict[int, World], Said]) -> None:
    _, said = both
    assert len(re.findall("epoch 1/", said.err)) == len(CONFIGS)
    assert len(re.findall("bundle runs/", said.out)) == len(CONFIGS)
    assert "Warning" not in said.err


# Ends


class Running:
    """The sentiment config trained by two processes, slowly enough to be met in the middle of an epoch."""

    choices = ("train.batch_rows=3", "data.validation_share=0.4")

    def __init__(self, world: World, *more: str) -> None:
        self.said = world.path / "said"
        command = world.command("train", "sentiment.yaml", *self.choices, "train.devices=2", "train.accelerator=cpu",
                                "--no-register", "--quiet", *more)  # fmt: skip
        with self.said.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=world.path, env=world.environment(), stdout=subprocess.DEVNULL, stderr=file
            )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def wait_for_epoch(self, epoch: int) -> None:
        """Return in the middle of that one, from 2."""
        deadline = time.monotonic() + 120
        while f"epoch {epoch - 1}/" not in self.said.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self.said.read_text())
            time.sleep(0.02)
        time.sleep(0.2)
        assert self.process.poll() is None

    def ended(self, status: int) -> str:
        """The last line that it says, once it has ended with that status."""
        assert self.process.wait(60) == status
        said = self.said.read_text()
        assert len(re.findall("error:", said)) == 1, said
        assert "Traceback" not in said, said
        return said.splitlines()[-1]


def test_stopped_and_killed_it_goes_on_as_if_nothing_had_happened(
    make_world: Callable[[Path], World], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cut, whole = (make_world(tmp_path_factory.mktemp(name)) for name in ("cut", "whole"))
    for world in (cut, whole):
        write_csv(world.path / "data.csv", texts(1200, longest=12))
        world.config("sentiment.yaml", SENTIMENT)
    with Running(cut) as running:
        running.wait_for_epoch(2)
        running.process.send_signal(signal.SIGINT)
        assert running.ended(130) == f"error: stopped in epoch 2; {HOW_ON}"
    assert run_of(cut, "sentiment").info.status == "KILLED"
    with Running(cut, "--resume") as running:
        running.wait_for_epoch(3)
        workers = {child.environ()["RANK"]: child for child in psutil.Process(running.process.pid).children()}
        workers["1"].kill()
        assert running.ended(1) == f"error: process 1 of 2 was killed by SIGKILL, so all have ended; {HOW_ON}"
    assert run_of(cut, "sentiment").info.status == "FAILED"
    with Running(cut, "--resume") as running, pytest.MonkeyPatch.context() as patch:
        whole.enter(patch)
        whole.train(*Running.choices, config="sentiment.yaml", register=False)
        assert running.process.wait(120) == 0, running.said.read_text()
    check_same("sentiment", whole, cut)


def has_begun(worker: psutil.Process) -> bool:
    """Whether a process of torchrun's runs the program and imports what that needs."""
    return any("libtorch_python" in mapped.path for mapped in worker.memory_maps())


def test_ctrl_c_before_they_train_ends_them_with_one_sentence(world: World) -> None:
    write_csv(world.path / "data.csv", texts(60))
    world.config("sentiment.yaml", SENTIMENT)
    with Running(world) as running:
        parent = psutil.Process(running.process.pid)
        deadline = time.monotonic() + 60
        # Python itself, while it starts, answers a signal with a page of its own.
        while not (len(workers := parent.children()) == 2 and all(map(has_begun, workers))):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGINT)
        assert running.ended(130) == f"error: {NOT_YET}"
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert running.said.read_text().count("\n") == 1


# Two hosts


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, str]]]:
    """Names of two network namespaces, and in each of the end of the wire between them; 10.99.7.1 is the first."""
    names = [f"seqapp-{side}-{os.getpid()}" for side in "ab"]
    wires = [f"sq{side}{os.getpid()}" for side in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", wires[0], "netns", names[0], "type", "veth", "peer", "name", wires[1], "netns", names[1])
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        for name, wire, last in zip(names, wires, (1, 2), strict=True):
            ip("-n", name, "address", "add", f"10.99.7.{last}/24", "dev", wire)
            for device in (wire, "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield list(zip(names, wires, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def test_two_hosts_train_as_one(
    both: tuple[dict[int, World], Said],
    hosts: list[tuple[str, str]],
    make_world: Callable[[Path], World],
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path)
    write_data(world.path)
    world.config("sentiment.yaml", SENTIMENT)
    begun = []
    try:
        for rank, (name, wire) in enumerate(hosts):
            command = [
                "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                "--node-rank", str(rank), "--nproc-per-node", "1", "--master-addr", "10.99.7.1", "-m", "pipelines",
                "train", "sentiment.yaml", "train.nodes=2", "train.accelerator=cpu", "--no-register",
            ]  # fmt: skip
            environment = {**world.environment(), "GLOO_SOCKET_IFNAME": wire}
            begun.append(subprocess.Popen(command, cwd=world.path, env=environment, stdout=subprocess.PIPE,
                                          stderr=subprocess.PIPE, text=True))  # fmt: skip
        said = [Said(0, *process.communicate(timeout=120)) for process in begun]
        assert [process.returncode for process in begun] == [0, 0], said
    finally:
        for process in begun:
            process.kill()
            process.communicate()
    check_same("sentiment", both[0][1], world)
    assert ["epoch 3/3" in one.err for one in said].count(True) == 1


# What does not fit


def test_without_torchrun_several_processes_are_refused_with_the_command_that_fits(world: World) -> None:
    with pytest.raises(ConfigError, match=r"train\.devices=2 train\.nodes=1 needs a process for each.*`seqapp train`"):
        world.train("train.devices=2", "train.accelerator=cpu")
    assert not list(world.path.glob("runs/*"))


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        (("train.nodes=3",), r"train\.nodes=3: `torchrun --nnodes 3 --node-rank N --nproc-per-node 1 .* fits"),
        (("train.devices=2", "train.accelerator=gpu"), r"train\.devices is 2, but this host has 0 GPU\(s\); .*=cpu"),
        (("train.devices=0",), r"train\.devices"),
    ],
)
def test_what_cannot_be_run_is_refused(
    world: World, seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch, choices: tuple[str, ...], told: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    said = seqapp("train", "tiny.yaml", *choices)
    assert said.status == 1
    assert re.search(f"error: .*{told}", said.err), said.err
    assert not list(world.path.glob("runs/*"))


def test_configs_that_differ_in_processes_are_refused(world: World, seqapp: Seqapp) -> None:
    world.config("two.yaml", CONFIG.replace("epochs: 3", "epochs: 3, devices: 2, accelerator: cpu"))
    said = seqapp("train", "tiny.yaml", "two.yaml")
    assert said.status == 1
    assert "error: the configs differ in train.devices or train.nodes; one command for each fits" in said.err


def test_torchrun_and_config_must_agree(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"is 1 x 1, but torchrun has started 4 process\(es\); train\.devices is its"):
        world.train()


# Pieces of rows


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_pieces_of_rows_are_dealt_so_that_all_processes_take_equal_steps(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=25))
    world, steps, rows = (data.draw(st.integers(1, most)) for most in (4, 5, 6))
    splits = Splits("toy", [Series(tuple(map(float, range(n)))) for n in lengths], [])

    def pieces(rank: int, world: int) -> list[Any]:
        return list(Data(Toy(), splits, batch_tokens=40, batch_rows=rows, seed=3, truncate=steps, rank=rank,
                         world=world).train_dataloader())  # fmt: skip

    alone, dealt = pieces(0, 1), [pieces(rank, world) for rank in range(world)]
    assert {len(one) for one in dealt} == {len(alone)}
    for whole, *parts in zip(alone, *dealt, strict=True):
        found = [part for part in parts if not isinstance(part, Idle)]
        assert {part.fresh for part in found} == {whole.fresh}
        assert sorted(row for part in found for row in read(part)) == sorted(read(whole))
        assert all(part.weight == 0 for part in parts if isinstance(part, Idle))


def read(piece: Any) -> list[list[float]]:
    """Its rows without padding."""
    return [row[:size] for row, size in zip(piece.values.tolist(), piece.lengths.tolist(), strict=True)]
