"""JoeyNMT with given weights, a request a line: `PYTHON drive_joeynmt.py FOLDER THREADS`.

Its own model, search and training step; batches are made beforehand, since loading is not counted. Two things are
lent to it so that it computes the same function as the others: its bridge has units of its own for the memory cell, and
its output layer has a bias.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from joeynmt.batch import Batch
from joeynmt.builders import build_gradient_clipper, build_optimizer
from joeynmt.decoders import RecurrentDecoder
from joeynmt.model import build_model
from joeynmt.search import search
from joeynmt.vocabulary import Vocabulary
from protocol import BOS, EOS, PAD, UNK, Given, Ids, Pairs, padded, serve, until_eos
from torch import Tensor, nn

SPECIALS = SimpleNamespace(
    unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", sep_token=None,
    unk_id=0, pad_id=1, bos_id=2, eos_id=3, lang_tags=[],
)  # fmt: skip


def swap(rows: Tensor) -> Tensor:
    """Rows of a table with the places of padding and unknown changed, as it wants them."""
    order = torch.arange(len(rows))
    order[[PAD, UNK]] = torch.tensor([UNK, PAD])
    return rows[order]


def exchange(ids: Ids) -> Ids:
    """Ids with padding and unknown changed."""
    return [(UNK, PAD)[index] if index < 2 else index for index in ids]


class Bridged(RecurrentDecoder):  # type: ignore[misc]
    """Its decoder; hidden state and memory cell start as tanh(W [h; h_reverse]), each by a part of W."""

    def _init_hidden(self, encoder_final: Tensor) -> tuple[Tensor, ...]:
        return tuple(part[None].contiguous() for part in torch.tanh(self.bridge_layer(encoder_final)).chunk(2, 1))


def build(given: Given) -> Any:
    """Its model with the given weights."""
    own = given.options
    E, H = own["embedding_size"], own["hidden_size"]
    shared = {"type": "recurrent", "rnn_type": "lstm", "num_layers": 1, "dropout": own["dropout"]}
    vocabs = [Vocabulary([f"t{index}" for index in range(4, size)], SPECIALS) for size in given.vocabularies]
    embeddings = {"embedding_dim": E, "dropout": own["dropout"]}
    model = build_model(
        {
            "encoder": {**shared, "embeddings": embeddings, "hidden_size": H // 2, "bidirectional": True},
            "decoder": {**shared, "embeddings": embeddings, "hidden_size": H, "hidden_dropout": own["dropout"],
                        "attention": "luong", "input_feeding": True, "init_hidden": "bridge"},
        },
        *vocabs,
    )  # fmt: skip
    decoder = model.decoder
    decoder.__class__ = Bridged
    decoder.bridge_layer = nn.Linear(H, 2 * H)
    decoder.output_layer = nn.Linear(H, given.vocabularies[1])
    w = given.weights
    found = {"src_embed.lut.weight": swap(w["source.embedding"]), "trg_embed.lut.weight": swap(w["target.embedding"])}
    for ours, suffix in (("ahead", ""), ("back", "_reverse")):
        found[f"encoder.rnn.weight_ih_l0{suffix}"] = w[f"encoder.{ours}.V"]
        found[f"encoder.rnn.weight_hh_l0{suffix}"] = w[f"encoder.{ours}.W"]
        found[f"encoder.rnn.bias_ih_l0{suffix}"] = w[f"encoder.{ours}.b"]
        found[f"encoder.rnn.bias_hh_l0{suffix}"] = torch.zeros_like(w[f"encoder.{ours}.b"])
    found["decoder.bridge_layer.weight"], found["decoder.bridge_layer.bias"] = w["bridge.weight"], w["bridge.bias"]
    found["decoder.rnn.weight_ih_l0"], found["decoder.rnn.weight_hh_l0"] = w["decoder.V"], w["decoder.W"]
    found["decoder.rnn.bias_ih_l0"] = w["decoder.b"]
    found["decoder.rnn.bias_hh_l0"] = torch.zeros_like(w["decoder.b"])
    found["decoder.attention.key_layer.weight"] = w["attention.W"]
    found["decoder.att_vector_layer.weight"] = w["combine.weight"]
    found["decoder.att_vector_layer.bias"] = w["combine.bias"]
    found["decoder.output_layer.weight"] = swap(w["output.weight"])
    found["decoder.output_layer.bias"] = swap(w["output.bias"])
    model.load_state_dict(found)
    model.loss_function = ("crossentropy", 0.0)
    return model


def main() -> None:
    given = Given(Path(sys.argv[1]))
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(1)
    model = build(given)

    def batch(source: list[Ids], target: list[Ids] | None) -> Batch:
        ids, lengths = padded([exchange(row) for row in source])
        ids[torch.arange(ids.shape[1]) >= lengths[:, None]] = SPECIALS.pad_id
        trg = None
        if target is not None:
            trg, target_lengths = padded([[BOS, *exchange(row), EOS] for row in target])
            trg[torch.arange(trg.shape[1]) >= target_lengths[:, None]] = SPECIALS.pad_id
        return Batch(src=ids, src_length=lengths, src_prompt_mask=None, trg=trg, trg_prompt_mask=None,
                     indices=torch.arange(len(source)), device=torch.device("cpu"), pad_index=SPECIALS.pad_id,
                     eos_index=EOS, is_train=target is not None)  # fmt: skip

    def translate(rows: list[Ids], beams: int) -> list[Ids]:
        model.eval()
        made = batch(rows, None)
        back = made.sort_by_src_length()
        found, _, _ = search(model=model, batch=made, max_output_length=given.options["longest"], beam_size=beams,
                             beam_alpha=-1, n_best=1)  # fmt: skip
        return [exchange(until_eos([int(index) for index in found[place]])) for place in back]

    chosen = {"optimizer": "adam", "learning_rate": given.options["learning_rate"], "clip_grad_val": None,
              "clip_grad_norm": given.options["clip"]}  # fmt: skip
    optimizer, clip = build_optimizer(chosen, model.parameters()), build_gradient_clipper(chosen)
    made = [batch([source for source, _ in pairs], [target for _, target in pairs]) for pairs in given.train]
    places = {id(pairs): place for place, pairs in enumerate(given.train)}

    def train(batches: list[Pairs]) -> None:
        # The lines of TrainManager.train_and_validate and _train_step for one batch, less what it logs and saves.
        model.train()
        for pairs in batches:
            one = made[places[id(pairs)]]
            one.sort_by_src_length()
            loss, _, _, correct = model(return_type="loss", **vars(one))
            loss = one.normalize(loss, normalization="tokens", n_gpu=0, n_accumulation=1)
            loss.backward()
            loss.item(), correct.item()
            clip(parameters=model.parameters())
            optimizer.step()
            model.zero_grad()

    serve(given, translate, train)


if __name__ == "__main__":
    main()
