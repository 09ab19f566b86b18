"""Time the server beside LitServe, BentoML, FastAPI and `mlflow models serve`, under overload, streaming and reloading.

python benchmarks/serve.py [--part throughput overload streams reload] [--peers FOLDER] [--minutes 10] [--quick]

The model is a BiLSTM of 20,000 x 128 and 128 units each way with random weights; a text has 20 words, and each request
another text. wrk drives every server from the same cores (benchmarks/load/). Each part writes a file of its own.

throughput: closed loop; servers take turns, each started afresh for its turn; all give the same labels.
overload:   requests are due at random times at 20 % to 200 % of the closed-loop rate, then for minutes at 120 %.
streams:    generations of 200 characters, beside a server that generates for one request at a time.
reload:     the model is replaced 20 times under full load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import psutil
import record
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from seqapp import bundle
from seqapp.data.splits import LabelledText
from seqapp.data.text import Passage
from seqapp.data.tokenizers import EOS
from seqapp.models.classifier import Classifier
from seqapp.tasks import TASKS
from seqapp.tasks.generation import Generation
from seqapp.tasks.sentiment import Sentiment, SentimentInput

HERE = Path(__file__).parent
LOAD, PEERS = HERE / "load", HERE / "peers" / "serving"
VOCABULARY, EMBEDDING, HIDDEN, WORDS, BODIES = 20_000, 128, 128, 20, 4000
CONCURRENCY = (1, 8, 64)
CONNECTIONS = 512
"""Of the paced load: more than are ever waited for at once."""
TOKENS = 200
LEVELS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0)
SWAPS = 20
LSTM = {"kind": "lstm", "hidden_size": HIDDEN}
OURS = "seqapp"


class Server(NamedTuple):
    """How to start one, and what to ask it."""

    name: str
    workers: int
    command: list[str]
    path: str
    listed: bool = False
    """Whether it takes a list of texts."""
    variables: dict[str, str] = {}  # noqa: RUF012

    def body(self, text: str) -> str:
        return json.dumps({"inputs": [text] if self.listed else text})


# ---------------------------------------------------------------------------------------------------------- the models


def texts() -> list[str]:
    """One text a request, all different."""
    chance = random.Random(0)
    return [" ".join(f"w{chance.randrange(VOCABULARY - 4)}" for _ in range(WORDS)) for _ in range(BODIES)]


def save_classifier(folder: Path, seed: int) -> Path:
    """A classifier that has learned nothing, as folder/bundle and in the names of PyTorch as folder/plain."""
    task = Sentiment(tokenizer={"kind": "word", "max_vocabulary": VOCABULARY})
    words = [f"w{index}" for index in range(VOCABULARY - 4)]
    labels = ("negative", "positive")
    task.prepare([LabelledText(" ".join(words[i : i + 50]), labels[i // 50 % 2]) for i in range(0, len(words), 50)])
    spec = {"kind": "classifier", "embedding_size": EMBEDDING, "encoder": {"kind": "birnn", "layer": LSTM}}
    torch.manual_seed(seed)
    model = task.build_model(spec)
    assert isinstance(model, Classifier)
    with torch.no_grad():
        model.embedding.weight.normal_()
    known = [SentimentInput(text=text) for text in texts()[:4]]
    path = bundle.save(
        folder / "bundle", task=task, model=model, metrics={}, name="serve", golden=known,
        resolved={"task": TASKS.check({"kind": "sentiment", "tokenizer": {"kind": "word"}}), "model": spec},
    )  # fmt: skip
    plain = folder / "plain"
    plain.mkdir()
    own = model.state_dict()
    weights = {"embedding.weight": own["embedding.weight"]}
    for ours, suffix in (("ahead", ""), ("back", "_reverse")):
        V, W, b = (own[f"encoder.{ours}.{name}"] for name in ("V", "W", "b"))
        weights |= {
            f"lstm.weight_ih_l0{suffix}": V, f"lstm.weight_hh_l0{suffix}": W,
            f"lstm.bias_ih_l0{suffix}": b, f"lstm.bias_hh_l0{suffix}": torch.zeros_like(b),
        }  # fmt: skip
    weights |= {f"project.{name}": own[f"head.project.{name}"] for name in ("weight", "bias")}
    save_file(weights, plain / "weights.safetensors")
    for name in ("tokenizer.json", "labels.json"):
        (plain / name).write_bytes((path / name).read_bytes())
    return path


def save_writer(folder: Path) -> Path:
    """A character model of the size of configs/language_model/bundled*.yaml whose texts never end."""
    task = Generation(reads="rows")
    task.prepare([Passage("".join(map(chr, range(32, 96))))])
    spec = {"kind": "language_model", "embedding_size": 64, "encoder": {"kind": "lstm", "hidden_size": 256}}
    torch.manual_seed(0)
    model = task.build_model(spec)
    with torch.no_grad():
        model.get_parameter("head.project.bias")[EOS] = -1e4
    resolved = {"task": TASKS.check({"kind": "generation", "reads": "rows"}), "model": spec}
    return bundle.save(folder / "writer", task=task, model=model.eval(), resolved=resolved, metrics={}, name="writer")


# --------------------------------------------------------------------------------------------------------- the servers


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def ours(path: Path, workers: int = 1) -> Server:
    many = ["--workers", str(workers)] if workers > 1 else []
    command = [sys.executable, "-m", "serving", str(path), "--host", "127.0.0.1", "--port", "{port}", *many]
    return Server(OURS, workers, command, "/v1/sentiment")


def servers(folder: Path, python: Path, workers: int) -> list[Server]:
    """Ours and every peer, with so many processes that hold a model."""
    uvicorn = ["-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--workers", str(workers), "--log-level",
               "warning", "--no-access-log", "--loop", "uvloop", "--http", "httptools",
               "--app-dir", str(PEERS)]  # fmt: skip
    given = {"FOLDER": str(folder / "plain"), "PYTHONPATH": str(PEERS)}
    own = str(folder / "bundle")
    count = str(workers)
    return [
        ours(folder / "bundle", workers),
        Server("FastAPI", workers, [str(python), *uvicorn, "serve_fastapi:app"], "/predict", variables=given),
        Server("FastAPI, our model", workers, [sys.executable, *uvicorn, "serve_bundle:app"], "/predict",
               variables={"FOLDER": own}),
        Server("LitServe", workers, [str(python), str(PEERS / "serve_litserve.py"), "{port}", count], "/predict",
               variables=given),
        Server("BentoML", workers, [str(python), "-m", "bentoml", "serve", "serve_bentoml:Sentiment", "--host",
               "127.0.0.1", "--port", "{port}", "--working-dir", str(PEERS)], "/predict", listed=True,
               variables={**given, "WORKERS": count, "BENTOML_DO_NOT_TRACK": "1", "BENTOML_HOME": str(folder)}),
        Server("MLflow", workers, [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder / "mlflow"),
               "--env-manager", "local", "--host", "127.0.0.1", "--port", "{port}", "--workers", count],
               "/invocations", listed=True,
               variables={"UVICORN_ACCESS_LOG": "0", "UVICORN_LOG_LEVEL": "warning",
                          "MLFLOW_DISABLE_TELEMETRY": "true"}),
    ]  # fmt: skip


def ask(port: int, path: str, body: str | None = None, timeout: float = 30) -> Any:
    """The JSON that a server answers.

    Raises:
        OSError: if it does not answer, or not with 200.
    """
    data = None if body is None else body.encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        content = answer.read()
        return json.loads(content) if content else None


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and its children, those too that made themselves a group of their own."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
    for one in tree:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(tree, 10)
    process.wait()


@contextmanager
def running(server: Server, folder: Path, threads: int, question: str | None) -> Iterator[tuple[int, int]]:
    """Start a server, wait until it answers, and stop it with all its processes: its port and process id."""
    port = free_port()
    command = [word.replace("{port}", str(port)) for word in server.command]
    several = {name: str(threads) for name in ("OMP_NUM_THREADS", "THREADS", "SEQAPP_THREADS")}
    environment = {**os.environ, **several, "TOKENIZERS_PARALLELISM": "false", "SEQAPP_ACCESS_LOG": "false",
                   "RAYON_NUM_THREADS": str(threads), "PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}",
                   **server.variables}  # fmt: skip
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, cwd=HERE.parent, env=environment, start_new_session=True
        )
        try:
            until = time.monotonic() + 120
            while True:
                try:
                    ask(port, server.path if question else "/readyz", question and server.body(question), timeout=5)
                    break
                except OSError as error:
                    if process.poll() is not None or time.monotonic() > until:
                        said = log.read_text(encoding="utf-8", errors="replace")[-3000:]
                        raise SystemExit(f"{server.name} does not answer ({error}):\n{said}") from None
                    time.sleep(0.1)
            yield port, process.pid
        finally:
            stop(process)


def label(answer: Any) -> str:
    """The label in any server's answer about one text."""
    while True:
        if isinstance(answer, list):
            answer = answer[0]
        elif "predictions" in answer:
            answer = answer["predictions"]
        else:
            found: str = answer["label"]
            return found


# ------------------------------------------------------------------------------------------------------------ the load


def wrk(script: str, port: int, connections: int, seconds: float, *words: str) -> Any:
    """What a run of wrk counted."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "20s",
               "-s", str(LOAD / script), f"http://127.0.0.1:{port}", "--", *words]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        raise SystemExit(f"wrk: {done.stdout}{done.stderr}") from None


def write_bodies(server: Server, folder: Path) -> str:
    file = folder / f"bodies-{server.listed}.jsonl"
    if not file.exists():
        file.write_text("".join(server.body(text) + "\n" for text in texts()), encoding="utf-8")
    return str(file)


def closed(server: Server, port: int, folder: Path, connections: int, seconds: float) -> Any:
    return wrk("closed.lua", port, connections, seconds, write_bodies(server, folder), server.path)


def paced(server: Server, port: int, folder: Path, rate: float, seconds: float) -> Any:
    return wrk("paced.lua", port, CONNECTIONS, seconds, write_bodies(server, folder), server.path, str(round(rate, 3)))


def resident(pid: int) -> int:
    """Bytes that a server and its children have in memory."""
    total = 0
    root = psutil.Process(pid)
    for one in (root, *root.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


# ----------------------------------------------------------------------------------------------------------- the parts


def throughput(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    path = save_classifier(folder, 0)
    subprocess.run(
        [sys.executable, str(PEERS / "save_mlflow.py"), str(folder / "plain"), str(folder / "mlflow")],
        check=True, capture_output=True,
    )  # fmt: skip
    python = peers_python(options.peers)
    lists = [[one for one in servers(folder, python, workers) if options.only is None or one.name in options.only]
             for workers in options.workers]  # fmt: skip
    sample = texts()[:50]
    loaded = bundle.load(path)
    expected = [one.label for one in loaded.predict([SentimentInput(text=text) for text in sample])]
    turns: dict[tuple[str, int, int], list[Any]] = {}
    for turn in range(options.turns):
        for server in (one for some in lists for one in some):
            with running(server, folder, options.threads, sample[0]) as (port, _):
                if turn == 0:
                    said = [label(ask(port, server.path, server.body(text))) for text in sample]
                    if said != expected:
                        raise SystemExit(f"{server.name} does not give the labels of the bundle")
                for connections in CONCURRENCY if server.workers == 1 else CONCURRENCY[1:]:
                    closed(server, port, folder, connections, options.warm_up)
                    found = closed(server, port, folder, connections, options.seconds)
                    turns.setdefault((server.name, server.workers, connections), []).append(found)
    return {
        "threads": options.threads,
        "texts": {"words": WORDS, "different": BODIES},
        "labels": {name: expected.count(name) for name in sorted(set(expected))},
        "results": [
            {
                "server": name, "workers": workers, "concurrency": connections, "turns": len(found),
                "requests_per_second": spread([one["requests"] / one["seconds"] for one in found]),
                "p50_ms": spread([one["p50"] for one in found]), "p99_ms": spread([one["p99"] for one in found]),
                "failed": sum(one["failed"] + one["broken"] for one in found),
            }
            for (name, workers, connections), found in turns.items()
        ],
    }  # fmt: skip


def spread(values: Sequence[float]) -> list[float]:
    """Median, lowest, highest."""
    return [statistics.median(values), min(values), max(values)]


def overload(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    bounds = {"SEQAPP_MAX_WAIT_SECONDS": str(options.wait_ms / 1000), "SEQAPP_MAX_IN_FLIGHT": str(options.in_flight),
              "SEQAPP_MAX_CLIENT_CONNECTIONS": str(2 * CONNECTIONS)}  # fmt: skip
    server = ours(save_classifier(folder, 0))._replace(variables=bounds)
    with running(server, folder, options.threads, texts()[0]) as (port, pid):
        together = min(64, options.in_flight)  # so that nothing is refused yet
        closed(server, port, folder, together, options.warm_up)
        full = closed(server, port, folder, together, options.seconds)
        capacity = (full["requests"] - full["failed"]) / full["seconds"]
        curve = []
        for level in LEVELS:
            found = told(paced(server, port, folder, level * capacity, options.seconds))
            curve.append({"level": level, "asked": level * capacity, **found})
            time.sleep(1)
        memory: list[tuple[float, int]] = []
        stop, began = Event(), time.monotonic()

        def watch() -> None:
            while not stop.wait(options.minutes):  # sixty times, whatever it takes
                memory.append((time.monotonic() - began, resident(pid)))

        watcher = Thread(target=watch)
        watcher.start()
        try:
            long = told(paced(server, port, folder, 1.2 * capacity, 60 * options.minutes))
        finally:
            stop.set()
            watcher.join()
        after = told(paced(server, port, folder, LEVELS[0] * capacity, options.seconds))
    return {"capacity": capacity, "connections": CONNECTIONS, "curve": curve, "long": long, "after": after,
            "minutes": options.minutes, "memory": memory, "wait_ms": options.wait_ms,
            "in_flight": options.in_flight}  # fmt: skip


def told(found: Any) -> dict[str, Any]:
    """What a paced run counted: offered and answered a second, and the times of each kind of answer."""
    statuses = found["statuses"]
    none = {"count": 0, "p50": 0.0, "p99": 0.0, "most": 0.0}
    odd = {status: one for status, one in statuses.items() if status not in ("200", "503")}
    return {"offered": found["sent"] / found["seconds"], "broken": found["broken"], "late_ms": found["late"],
            "accepted": statuses.get("200", none), "refused": statuses.get("503", none), "others": odd,
            "accepted_per_second": statuses.get("200", none)["count"] / found["seconds"]}  # fmt: skip


def streams(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    path = save_writer(folder)
    own = ours(path)._replace(path="/v1/completions")
    alone = Server(
        "one request at a time", 1,
        [sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning",
         "--no-access-log", "--app-dir", str(PEERS), "serve_writer:app"],
        "/v1/completions", variables={"FOLDER": str(path)},
    )  # fmt: skip
    turns: dict[tuple[str, int], list[Any]] = {}
    for _ in range(options.turns):
        for server in (own, alone):
            with running(server, folder, options.threads, None) as (port, _):
                asyncio.run(read_streams(port, server.path, 2))
                for count in CONCURRENCY:
                    turns.setdefault((server.name, count), []).append(
                        asyncio.run(read_streams(port, server.path, count))
                    )
    return {
        "tokens": TOKENS, "threads": options.threads,
        "results": [
            {"server": name, "streams": count, "turns": len(found), **{
                key: spread([one[key] for one in found]) for key in ("first_ms", "first_most_ms", "tokens_per_second")
            }}
            for (name, count), found in turns.items()
        ],
    }  # fmt: skip


async def read_streams(port: int, path: str, count: int) -> dict[str, float]:
    """Time to the first token, median and longest, and tokens a second of so many streams that start together."""
    firsts: list[float] = []
    tokens = 0
    began = time.perf_counter()

    async def one(seed: int) -> None:
        nonlocal tokens
        body = json.dumps({"prompt": "A", "max_tokens": TOKENS, "stream": True, "seed": seed, "temperature": 1.0})
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        start, text, ended = time.perf_counter(), 0, False
        async for line in reader:
            if line.startswith(b"data: [DONE]"):
                ended = True
            elif line.startswith(b"data: {"):
                piece = json.loads(line[6:])["choices"][0]["text"]
                if piece and not text:
                    firsts.append(time.perf_counter() - start)
                text += len(piece)
        writer.close()
        if not ended or text != TOKENS:
            raise SystemExit(f"a stream brought {text} of {TOKENS} characters, and {'an' if ended else 'no'} end")
        tokens += text

    await asyncio.gather(*map(one, range(count)))
    return {"first_ms": 1000 * statistics.median(firsts), "first_most_ms": 1000 * max(firsts),
            "tokens_per_second": tokens / (time.perf_counter() - began)}  # fmt: skip


def reload(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    path = folder / "bundle"
    save_classifier(folder, 0)
    kept = {"first": folder / "first", "second": folder / "second"}
    bundle.copy(path, kept["first"])
    save_classifier(folder / "another", 1)
    bundle.copy(folder / "another" / "bundle", kept["second"])
    server = ours(path)
    with running(server, folder, options.threads, texts()[0]) as (port, _):
        closed(server, port, folder, 64, options.warm_up)
        without = closed(server, port, folder, 64, options.seconds)
        found: list[Any] = []
        span = SWAPS * options.swap_seconds
        load = Thread(target=lambda: found.append(closed(server, port, folder, 64, span)))
        load.start()
        took, answers = [], set()
        start = time.monotonic()
        for swap in range(SWAPS):
            bundle.copy(kept["second" if swap % 2 == 0 else "first"], path)
            began = time.monotonic()
            ask(port, "/v1/models/reload", "{}", timeout=60)
            took.append(time.monotonic() - began)
            scores = ask(port, server.path, server.body(texts()[0]))  # they round as the batch does that they are in
            answers.add(tuple((one["label"], round(one["score"], 4)) for one in scores))
            time.sleep(max(0.0, start + (swap + 1) * options.swap_seconds * 0.9 - time.monotonic()))
        late = not load.is_alive()
        load.join()
    if late:
        raise SystemExit(f"the load ended before the last of {SWAPS} swaps; a longer --swap-seconds fits")
    if len(answers) != 2:
        raise SystemExit(f"two models were swapped, and {len(answers)} different answers were given")
    during = found[0]
    return {"swaps": SWAPS, "reload_seconds": spread(took), "without": without, "during": during,
            "failed": during["failed"] + during["broken"]}  # fmt: skip


def peers_python(folder: Path | None) -> Path:
    """The interpreter of the peers' environment, which is made where there is none."""
    if folder is None:
        raise SystemExit("throughput: --peers FOLDER says where the peers' environment is, or shall be made")
    python = folder.absolute() / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(PEERS / "requirements.txt")], check=True)
    return python


PARTS = {"throughput": throughput, "overload": overload, "streams": streams, "reload": reload}


def show(part: str, found: dict[str, Any]) -> None:
    table = Table(title=part)
    if part in ("throughput", "streams"):
        rows = found["results"]
        for column in rows[0]:
            table.add_column(column)
        for row in rows:
            table.add_row(*(f"{cell[0]:,.2f} ({cell[1]:,.2f} to {cell[2]:,.2f})" if isinstance(cell, list) else
                            str(cell) for cell in row.values()))  # fmt: skip
    elif part == "overload":
        for column in ("level", "offered", "accepted/s", "p50", "p99", "refused", "p99", "others", "late p99"):
            table.add_column(column)
        long = {"level": f"1.2, {found['minutes']:g} min", **found["long"]}
        for row in [*found["curve"], long, {"level": "0.2 after", **found["after"]}]:
            yes, no = row["accepted"], row["refused"]
            table.add_row(str(row["level"]), f"{row['offered']:.0f}", f"{row['accepted_per_second']:.0f}",
                          f"{yes['p50']:.2f}", f"{yes['p99']:.2f}", str(no["count"]), f"{no['p99']:.2f}",
                          str({name: one["count"] for name, one in row["others"].items()}),
                          f"{row['late_ms']['p99']:.2f}")  # fmt: skip
    else:
        table.add_column("what")
        for name, value in found.items():
            table.add_row(f"{name}: {value}")
    Console(width=180).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--peers", type=Path, help="environment of the peers; made where there is none")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes that hold a model")
    parser.add_argument("--only", nargs="+", help="names of servers for throughput; a run that records nothing")
    parser.add_argument("--threads", type=int, default=1, help="of one forward pass, for every server")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6, help="of one measurement")
    parser.add_argument("--warm-up", type=float, default=2, help="seconds before it")
    parser.add_argument("--minutes", type=float, default=10, help="of the long overload")
    parser.add_argument(
        "--wait-ms", type=float, default=1000, help="of the overload: the longest wait that is accepted"
    )
    parser.add_argument("--in-flight", type=int, default=16, help="of the overload: most requests in hand at once")
    parser.add_argument("--swap-seconds", type=float, default=1.5, help="between two reloads")
    parser.add_argument("--quick", action="store_true", help="a short run that records nothing")
    options = parser.parse_args()
    if options.quick:
        options.turns, options.seconds, options.warm_up, options.minutes = 1, 1, 1, 0.05
    for part in options.part:
        with tempfile.TemporaryDirectory() as name:
            found = PARTS[part](options, Path(name))
        show(part, found)
        if not options.quick and options.only is None:
            print(record.write(f"serve-{part}", found))


if __name__ == "__main__":
    main()
