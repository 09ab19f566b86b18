"""Write docs/benchmarks.md from benchmarks/results/*.json.

python benchmarks/report.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "benchmarks.md"


def render(records: dict[str, dict[str, Any]]) -> str:
    """The page for results by name."""
    parts = [
        "# Benchmarks",
        "Written by `benchmarks/report.py` from `benchmarks/results/*.json`; do not edit. Each table names the command "
        "that made it. The machine is shared, so times vary; ratios were measured side by side.",
        "## Sentiment",
        "Test accuracy. Weights and strengths are chosen on validation data; the test split is read once per run. "
        "The linear baselines ran in the same command on the same splits.",
    ]
    quality = {name: record for name, record in records.items() if name.startswith("sentiment-")}
    parts.append(_quality(quality))
    speed = {name: record for name, record in records.items() if name.startswith("training-speed-")}
    if speed:
        parts += [
            "## Training speed",
            "Training tokens per second, padding not counted, beside a plain loop over the same model and weights: "
            "random batches of 64 rows padded to the longest, packed sequences, float32, Adam.",
            _speed(speed),
        ]
    models = [record for name, record in records.items() if name.startswith("language-model-")]
    if models:
        parts += ["## Language models", _LANGUAGE_MODELS, _language_models(models)]
    softmax = [record for name, record in records.items() if name.startswith("softmax")]
    if softmax:
        parts += ["## Softmax over large vocabularies", _SOFTMAX, *(part for one in softmax for part in _softmax(one))]
    translators = {name: record for name, record in records.items() if name.startswith("translation-")}
    if translators:
        parts += ["## Translation", _TRANSLATION]
        parts += [part for name, record in translators.items() for part in _translation(name, record)]
    if "translate" in records:
        parts += ["## Translation speed", _TRANSLATE, _translate(records["translate"])]
    if "decode" in records:
        parts += ["## Decoding", _DECODE, _decode(records["decode"])]
    if "distributed" in records:
        parts += ["## Several processes", _DISTRIBUTED, _distributed(records["distributed"])]
    if "predict" in records:
        parts += ["## Prediction over files", _PREDICT, _predict(records["predict"])]
    if any(name.startswith("serve-") for name in records):
        parts += ["## Serving", _SERVE, *_serve(records)]
    if "unroll" in records:
        parts += ["## Unrolled networks", _UNROLL, *_unroll(records["unroll"])]
    if "long-memory" in records:
        record = records["long-memory"]
        parts += [
            "## Long memory",
            f"The longest length that a network of {record['hidden']} units solves, with all shorter ones of "
            f"{', '.join(map(str, record['lengths']))}; {len(record['seeds'])} seed(s): the lower median and, where "
            f"they differ, the lowest and the highest. At most {record['steps']:,} steps of {record['rows_per_step']} "
            f"new sequences, Adam at {record['learning_rate']:g}, from a fresh start at each length. "
            "[What it shows](long-memory.md). A network that would read the answers is left out. Kept runs count, so "
            f"these are of the commits {', '.join(commit[:10] for commit in record['commits'])}.",
            _long_memory(record),
        ]
    parts += ["## Where the figures come from", _origins(records)]
    return "\n\n".join(parts) + "\n"


def _quality(records: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| data | model | seeds | test accuracy: mean (lowest to highest) | validation, mean | training time, mean |",
        "|---|---|---|---|---|---|",
    ]
    seen = set()
    for record in sorted(records.values(), key=lambda record: (record["data"], record["config"])):
        runs = record["runs"]
        accuracy = record["test_accuracy"]
        validation = sum(run["scores"]["validation"]["accuracy"] for run in runs) / len(runs)
        seconds = sum(run["seconds"] for run in runs) / len(runs)
        lines.append(
            f"| {record['data']} | `{Path(record['config']).stem}` ({record['parameters']:,} parameters) | "
            f"{len(runs)} | "
            f"{accuracy['mean']:.2%} ({accuracy['lowest']:.2%} to {accuracy['highest']:.2%}) | {validation:.2%} | "
            f"{seconds:.0f} s |"
        )
        if record["data"] in seen:
            continue
        seen.add(record["data"])
        for baseline in record["baselines"]:
            lines.append(
                f"| {record['data']} | {baseline['name']} | | {baseline['test']:.2%} | {baseline['validation']:.2%} | "
                f"{baseline['seconds']:.0f} s, all strengths |"
            )
    return "\n".join(lines)


def _speed(records: dict[str, dict[str, Any]]) -> str:
    lines = ["| data | precision | ours | plain loop | ratio: median (lowest to highest) |", "|---|---|---|---|---|"]
    for record in records.values():
        median, (low, high) = record["median"], record["ratio_lowest_highest"]
        lines.append(
            f"| {record['data']} | {record['precision']} | {median['ours']:,.0f} | {median['plain']:,.0f} | "
            f"{median['ratio']:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines)


_LANGUAGE_MODELS = (
    "Of the whole split named with the data, each token after at least 512 of the tokens before it, or all there are "
    "(static evaluation). Bits per "
    "character compare between all models of one text, nats per token only between those with the same tokens. "
    "Kneser-Ney is an interpolated n-gram model of the same tokens, its order chosen on validation text, also where "
    "that is what is reported. Dynamic "
    "evaluation goes on learning from the text it has been scored on, and is a figure of its own. Training time is "
    "that of the epochs, validation excluded."
)


def _language_models(records: list[dict[str, Any]]) -> str:
    lines = [
        "| data | model | seeds | nats per token: mean (lowest to highest) | bits per character | dynamic, nats | "
        "training time, mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in sorted(records, key=lambda record: (record["data"], record["config"])):
        runs, split = record["runs"], record["reported"]
        cells = [_spread([run["scores"][split][score] for run in runs]) for score in ("nll", "bits_per_character")]
        dynamic = _spread([run["dynamic"]["nll"] for run in runs if "dynamic" in run])
        seconds = sum(run["seconds"] for run in runs) / len(runs)
        lines.append(
            f"| {record['data']}, {split} | `{Path(record['config']).stem}` ({record['parameters']:,} parameters, "
            f"{record['tokens']:,} tokens) | {len(runs)} | {cells[0]} | {cells[1]} | {dynamic} | {seconds:,.0f} s |"
        )
        counted = record["baseline"]
        scores = counted["scores"][split]
        lines.append(
            f"| {record['data']}, {split} | Kneser-Ney, order {counted['strength']:g} | | {scores['nll']:.4f} | "
            f"{scores['bits_per_character']:.4f} | | {counted['seconds']:.0f} s, all orders |"
        )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.4f} to {max(values):.4f})"


_SOFTMAX = (
    "An LSTM language model (embedding 256, hidden 256, 20 rows x 35 steps). Plain is nn.Embedding, nn.LSTM, "
    "nn.Linear, cross_entropy and Adam over everything, its bias started at the words' log-frequencies like "
    "everybody's. Ratios are plain to head: the output layer forward and backward, the whole step, and the training "
    "time to the exact validation perplexity that plain had at its last step. The more steps plain is given, the lower "
    "that goal; a head is given a fifth of plain's time to reach it, and where that is too little, the perplexity it "
    "had then stands there. `zipf` is a synthetic text, half of it drawn by Zipf's law and half from 16 successors of "
    "each word; `imdb` is film reviews."
)


def _softmax(record: dict[str, Any]) -> list[str]:
    parts = []
    for result in record["results"]:
        plain = result["heads"][0]
        steps = plain["curve"][-1][0]
        lines = [
            f"{result['corpus']}, {result['vocabulary']:,} words; {record['threads']} threads. Plain: "
            f"{result['plain_seconds']:,.0f} s for {steps} steps, from perplexity {plain['curve'][0][2]:,.0f} to "
            f"{result['goal']:,.0f}, {plain['memory_gb']:.1f} GB.",
            "",
            "| head | layer, ms | x | step, ms | x | steps to the goal | time to the goal, s | x | peak memory, GB |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for head in result["heads"][1:]:
            name, ratios = head["head"], head["ratios"]
            done, seconds, perplexity = head["curve"][-1]
            wall = (
                f"{seconds:,.1f} | {ratios['wall']:,.0f}"
                if ratios["wall"]
                else f"not in {seconds:,.0f}: {perplexity:,.0f} | "
            )
            lines.append(
                f"| {name} | {1e3 * head['layer'][name]:,.1f} | {ratios['layer']:,.0f} | "
                f"{1e3 * head['step'][name]:,.1f} | {ratios['step']:,.0f} | {done:,} | {wall} | "
                f"{head['memory_gb']:.1f} |"
            )
        parts.append("\n".join(lines))
    return parts


_TRANSLATION = (
    "Scores of whole translations by beam search (5 hypotheses unless the config says otherwise), weights chosen by "
    "validation BLEU, the test split read once per run. `bleu` is sacreBLEU on raw text, `lower-cased` the figure "
    "of the Multi30k papers: lower-cased, punctuation normalised and tokenised as by Moses, BLEU-4 of multi-bleu.perl. "
    "An ensemble is all seeds of a config answering as one. Time is that of the training epochs, processor time that "
    "of the whole run, validation included, and what one thread takes where nothing else runs. `translation-memory` "
    "answers with the translation of the most similar training sentence, `word-by-word` is IBM Model 1."
)


def _translation(name: str, record: dict[str, Any]) -> list[str]:
    tests = [split for split in record["sizes"] if split not in ("train", "validation")]
    lines = [
        "| test split | model | seeds | bleu: mean (lowest to highest) | lower-cased | chrF2 | TER | time, mean |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = ("bleu", "bleu_lowercased", "chrf", "ter")
    for split in tests:
        for network, model in record["models"].items():
            runs = model["runs"]
            cells = [_about([run["scores"][split][score] for run in runs]) for score in names]
            minutes = [sum(run[key] for run in runs) / len(runs) / 60 for key in ("seconds", "cpu_seconds")]
            lines.append(
                f"| {split} | `{network}` ({model['parameters']:,} parameters) | {len(runs)} | {' | '.join(cells)} | "
                f"{minutes[0]:.1f} min on {runs[0]['threads']} thread(s); processor {minutes[1]:.1f} min |"
            )
            if split == "test" and len(runs) > 1:
                cells = [_about([model["ensemble"]["scores"][score]]) for score in names]
                lines.append(f"| {split} | the same, as one | {len(runs)} | {' | '.join(cells)} | |")
        for counted in record["baselines"]:
            cells = [_about([counted["scores"][split][score]]) for score in names]
            lines.append(f"| {split} | {counted['name']} | | {' | '.join(cells)} | {counted['seconds']:.0f} s |")
    signatures = "; ".join(f"{score}: `{text}`" for score, text in record["definitions"].items())
    parts = [f"{record['data']}. Definitions: {signatures}.", "\n".join(lines)]
    picture = ROOT / "docs" / "images" / f"bleu-by-{name.replace('translation', 'length')}.png"
    if len(record["models"]) > 1 and picture.is_file():
        parts.append(f"![BLEU over the length of the source, model by model](images/{picture.name})")
    return parts


def _about(values: list[float]) -> str:
    mean = f"{sum(values) / len(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


_TRANSLATE = (
    "Sentences a second on Multi30k test_2016_flickr, English to German, and target tokens a second in training. One "
    "architecture with the same weights for all: word vocabularies, embeddings 256, a bidirectional LSTM of 128 each "
    "way, a decoder LSTM of 256 with general attention and input feeding. Median of alternating turns; ids in, ids "
    "out, making batches is not counted. Ours trains in bfloat16 unless said; decoding is float32 for all. `same` is "
    "the share of translations equal to ours, token by token."
)


def _translate(record: dict[str, Any]) -> str:
    ways = record["decoding"]
    heads = [f"{'greedy' if way['beams'] == 1 else 'beam ' + str(way['beams'])}, batch {way['batch']}" for way in ways]
    lines = [
        f"| {record['threads']} threads | {' | '.join(heads)} | training, tokens/s |",
        f"|---|{'---|' * (len(heads) + 1)}",
    ]
    trained = record["training"]
    for program in trained["tokens_per_second"]:
        cells = []
        for way in ways:
            rate = way["sentences_per_second"].get(program)
            cell = "" if rate is None else f"{rate:,.0f}"
            if program in way["ratios"]:
                cell += (
                    f" (ours x {way['ratios'][program]['median']:.2f}, same {way['same_translations'][program]:.1%})"
                )
            cells.append(cell)
        rate = f"{trained['tokens_per_second'][program]:,.0f}"
        if program in trained["ratios"]:
            rate += f" (ours x {trained['ratios'][program]['median']:.2f})"
        lines.append(f"| {program} | {' | '.join([*cells, rate])} |")
    return "\n".join(lines)


_DECODE = (
    "Tokens a second of generation in float32, reading the first token included, beside a plain PyTorch loop over "
    "nn.LSTM with the same weights, median of alternating turns. A token counts once per text, however many beams are "
    "searched. `same tokens` is the share of places where both loops chose the same token; sampling draws differ."
)


def _decode(record: dict[str, Any]) -> str:
    lines = [
        f"| {record['layers']} x {record['hidden']} LSTM, {record['threads']} threads | texts at once | "
        "ours, tokens/s | plain, tokens/s | ratio | same tokens |",
        "|---|---|---|---|---|---|",
    ]
    for result in record["results"]:
        rates = result["tokens_per_second"]
        same = f"{result['same_tokens']:.1%}" if "same_tokens" in result else ""
        way = f"{record['beams']} beams" if result["way"] == "beams" else result["way"]
        lines.append(
            f"| {result['vocabulary']:,} tokens, {way} | {result['batch']} | {rates['ours']:,.0f} | "
            f"{rates['plain']:,.0f} | {result['ours_to_plain']:.2f} | {same} |"
        )
    return "\n".join(lines)


_DISTRIBUTED = (
    "The same config and seed trained by one process and by several on one host, in alternating turns. Without dropout "
    "they differ in rounding alone, which grows over hundreds of steps: the last column is one process with one thread "
    "beside one process with all threads, which differ in rounding alone as well. `apart` is the largest difference "
    "over the seeds. Tokens per second: median of the epochs after the first, of all processes together."
)


def _distributed(record: dict[str, Any]) -> str:
    count = record["devices"]
    parts = [[run for run in record["runs"] if run["way"] == way] for way in ("one", "several")]
    named = " ".join([record["config"], *record["choices"]])
    lines = [
        f"| `{named}`, mean of {len(parts[0])} seed(s) | 1 process | {count} processes | apart | apart, 1 thread |",
        "|---|---|---|---|---|",
    ]
    for name, apart in record["apart"]["several"].items():
        one, several = (statistics.mean(run["scores"][name] for run in part) for part in parts)
        lines.append(
            f"| {name} | {one:.4f} | {several:.4f} | {apart:.4f} | {record['apart']['one_thread'][name]:.4f} |"
        )
    one, several = (statistics.median(run["tokens_per_second"] for run in part) for part in parts)
    lines.append(f"| tokens/s | {one:,.0f} | {several:,.0f} | x {record['ratio']:.2f} | |")
    return "\n".join(lines)


_PREDICT = (
    "`seqapp predict in.parquet out.parquet` with an untrained classifier, beside a program that reads the whole "
    "table, answers it in one call and writes it. Memory is the largest resident set of the process that reads and "
    "writes; `with the model` is what it had before the first row. Several processes answer where the way says so, "
    "and their start is counted."
)


def _predict(record: dict[str, Any]) -> str:
    lines = [
        f"| rows, `{record['config']}` | file | way | rows/s | with the model, MiB | at most, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for result in record["results"]:
        way = f"{result['way']} process(es)" if result["way"].isdigit() else result["way"]
        lines.append(
            f"| {result['rows']:,} | {result['file_bytes'] / 2**20:,.1f} MiB | {way} | "
            f"{result['rows_per_second']:,.0f} | {result['before_bytes'] / 2**20:,.0f} | "
            f"{result['peak_bytes'] / 2**20:,.0f} |"
        )
    return "\n".join(lines)


_UNROLL = (
    "Milliseconds of one layer over random input in float32, gradient of the input included, median of alternating "
    "turns. `readable` is `scan` over the layer's `step`; `indexed` the same loop as it is usually written, over "
    "`x[:, t]`, whose backward pass fills a tensor of the size of x at every step; `fast` is what `forward` runs; "
    "`peer` is torch.nn.RNN, GRU or LSTM with the same weights. A ratio above 1 means that `fast` is faster. "
    "GFLOP/s counts matrix products only; `of product` is the time of one square product of as many operations, by "
    "`torch.mm` or oneDNN, whichever is faster, over the time of `fast`."
)


def _unroll(record: dict[str, Any]) -> list[str]:
    parts = []
    for shape in dict.fromkeys(tuple(result["shape"]) for result in record["results"]):
        for part, name in (("forward", "forward"), ("forward_backward", "forward + backward")):
            lines = [
                f"| {' x '.join(map(str, shape))}, {name} | readable, ms | fast, ms | ratio to readable | to indexed | "
                "to peer | GFLOP/s | of product |",
                "|---|---|---|---|---|---|---|---|",
            ]
            for result in record["results"]:
                if tuple(result["shape"]) != shape:
                    continue
                one = result[part]
                seconds = one["seconds"]
                peer = f"{one['fast_to_peer']:.2f}" if "fast_to_peer" in one else ""
                lines.append(
                    f"| `{result['kind']}` | {1e3 * seconds['readable']:.2f} | {1e3 * seconds['fast']:.2f} | "
                    f"{one['fast_to_readable']:.2f} | {one['fast_to_indexed']:.2f} | {peer} | {one['gflops']:.0f} | "
                    f"{1 / one['fast_to_product']:.0%} |"
                )
            parts.append("\n".join(lines))
    return parts


def _long_memory(record: dict[str, Any]) -> str:
    problems = record["problems"]
    lines = [
        "| network | " + " | ".join(f"{name}: {says}" for name, says in problems.items()) + " | parameters |",
        "|---|" + "---|" * (len(problems) + 1),
    ]
    for network in record["networks"]:
        mine = [run for run in record["runs"] if run["network"] == network]
        cells = [solved([run for run in mine if run["problem"] == problem], record["lengths"]) for problem in problems]
        sizes = sorted({run["parameters"] for run in mine})
        lines.append(f"| {network} | {' | '.join(cells)} | {sizes[0]:,} to {sizes[-1]:,} |")
    return "\n".join(lines)


def solved(runs: list[dict[str, Any]], lengths: list[int]) -> str:
    """The longest length that each seed solved, as ``20 (10 to 50)``; the end of the ladder is marked as at least."""
    seeds = {run["seed"] for run in runs}
    if not seeds:
        return ""
    found = sorted(
        max((run["length"] for run in runs if run["seed"] == seed and run["solved"]), default=0) for seed in seeds
    )
    low, middle, high = (
        f">= {length}" if length == lengths[-1] else str(length)
        for length in (found[0], found[(len(found) - 1) // 2], found[-1])
    )
    return middle if low == high else f"{middle} ({low} to {high})"


_SERVE = (
    "A BiLSTM of 20,000 x 128 and 128 units each way, random weights, 20-word texts, each request another text; wrk on "
    "the same cores as the server. Every server has the same weights and gives the same labels; `workers` is how many "
    "processes hold a model. Times are those of wrk, in milliseconds. [How the peers are set "
    "up](../benchmarks/peers/serving/README.md)."
)


def _serve(records: dict[str, dict[str, Any]]) -> list[str]:
    parts = []
    if "serve-throughput" in records:
        parts += ["Closed loop: each connection asks again as soon as it is answered. Medians of turns that alternate "
                  "between the servers (lowest to highest).", _throughput(records["serve-throughput"])]  # fmt: skip
    if "serve-overload" in records:
        parts += _overload(records["serve-overload"])
    if "serve-streams" in records:
        record = records["serve-streams"]
        parts += [f"Streamed generations of {record['tokens']} characters that start together, sampled from an LSTM, "
                  "beside a server that generates for one request at a time. Medians of turns (lowest to highest).",
                  _streams(record)]  # fmt: skip
    if "serve-reload" in records:
        record = records["serve-reload"]
        without, during = record["without"], record["during"]
        parts.append(
            f"Reload: {record['swaps']} swaps between two models under full load (64 connections), "
            f"{record['reload_seconds'][0]:.2f} s each (median): **{record['failed']} of {during['requests']:,} "
            f"requests failed**; p99 {during['p99']:.1f} ms, beside {without['p99']:.1f} ms without swaps, and "
            f"{during['requests'] / during['seconds']:,.0f} requests/s beside "
            f"{without['requests'] / without['seconds']:,.0f}."
        )
    return parts


def _middle(values: list[float], digits: int) -> str:
    """Median (lowest to highest)."""
    middle, low, high = (f"{value:,.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"


def _throughput(record: dict[str, Any]) -> str:
    lines = ["| connections | workers | server | requests/s | p50 | p99 | failed | ours to it |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    results = record["results"]
    ours = {(one["concurrency"], one["workers"]): one for one in results if one["server"] == "seqapp"}
    for one in sorted(results, key=lambda one: (one["concurrency"], one["workers"])):
        place = one["concurrency"], one["workers"]
        ratio = ours[place]["requests_per_second"][0] / one["requests_per_second"][0] if place in ours else None
        lines.append(
            f"| {place[0]} | {place[1]} | {one['server']} | {_middle(one['requests_per_second'], 0)} | "
            f"{_middle(one['p50_ms'], 2)} | {_middle(one['p99_ms'], 1)} | {one['failed']} | "
            f"{'' if ratio is None or one['server'] == 'seqapp' else f'{ratio:.2f}x'} |"
        )
    return "\n".join(lines)


def _overload(record: dict[str, Any]) -> list[str]:
    lines = ["| asked | offered/s | accepted/s | p50 | p99 | refused | p99 of refusals | other answers |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    rows = [(f"{one['level']:.0%}", one) for one in record["curve"]]
    rows += [(f"120 %, {record['minutes']:g} minutes", record["long"]), ("20 % after it", record["after"])]
    for name, one in rows:
        yes, no = one["accepted"], one["refused"]
        share = no["count"] / max(1, yes["count"] + no["count"])
        others = sum(other["count"] for other in one["others"].values()) + one["broken"]
        lines.append(
            f"| {name} | {one['offered']:,.0f} | {one['accepted_per_second']:,.0f} | {yes['p50']:.2f} | "
            f"{yes['p99']:.1f} | {share:.1%} | {no['p99']:.1f} | {others} |"
        )
    memory = [size / 2**20 for _, size in record["memory"]]
    grown = f"memory of the server from {memory[0]:,.0f} to {memory[-1]:,.0f} MiB" if memory else ""
    return [
        f"Overload: requests are due at random times (exponential gaps), whether or not earlier ones were answered, "
        f"over {record['connections']} connections; 100 % is the closed-loop rate, {record['capacity']:,.0f} a second. "
        f"Times count from when a request left; in the long run they left {record['long']['late_ms']['p99']:.1f} ms "
        f"late at most in 99 of 100 cases. The server refuses beyond {record['in_flight']} requests in hand or an "
        f"estimated wait of {record['wait_ms']:g} ms. Over that run: {grown}.",
        "\n".join(lines),
    ]


def _streams(record: dict[str, Any]) -> str:
    lines = ["| streams | server | time to the first character, ms | of the last stream, ms | characters/s |",
             "|---|---|---|---|---|"]  # fmt: skip
    for one in sorted(record["results"], key=lambda one: one["streams"]):
        lines.append(
            f"| {one['streams']} | {one['server']} | {_middle(one['first_ms'], 1)} | "
            f"{_middle(one['first_most_ms'], 1)} | {_middle(one['tokens_per_second'], 0)} |"
        )
    return "\n".join(lines)


def _origins(records: dict[str, dict[str, Any]]) -> str:
    lines = ["| result | command | date | commit | machine |", "|---|---|---|---|---|"]
    for name, record in records.items():
        source, machine = record["source"], record["machine"]
        commit = source.get("git_commit", "unknown")[:10] + ("+" if source.get("git_dirty") == "true" else "")
        lines.append(
            f"| {name} | `{record['command']}` | {record['date']} | {commit} | {machine['cores']} cores, "
            f"{machine['processor']}, torch {machine['torch']} |"
        )
    return "\n".join(lines) + "\n\nA `+` after a commit means that tracked files had uncommitted changes."


def load() -> dict[str, dict[str, Any]]:
    """Every committed result by name."""
    paths = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


if __name__ == "__main__":
    TARGET.write_text(render(load()), encoding="utf-8")
    print(TARGET)
