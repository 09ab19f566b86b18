"""OpenNMT-py with given weights, a request a line: `PYTHON drive_opennmt.py FOLDER THREADS`.

Its own model, search and trainer; batches are made beforehand, since loading is not counted. Lent to it, so that it
computes the same function as the others: a bridge with tanh from both directions' states to the decoder's (its own has
ReLU and one product for both directions), and a bias in the read-out.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import onmt.opts
import pyonmttok
import torch
from onmt.encoders.rnn_encoder import RNNEncoder
from onmt.model_builder import build_base_model
from onmt.trainer import Trainer
from onmt.translate import GNMTGlobalScorer
from onmt.translate.translator import Translator
from onmt.utils.loss import LossCompute
from onmt.utils.optimizers import Optimizer
from onmt.utils.parse import ArgumentParser
from onmt.utils.report_manager import ReportMgr
from protocol import BOS, EOS, Given, Ids, Pairs, padded, serve, until_eos
from torch import Tensor, nn

SPECIALS = ["<blank>", "<unk>", "<s>", "</s>"]


def vocabulary(size: int) -> Any:
    """So many tokens, the special ones with the ids of the project."""
    return pyonmttok.build_vocab_from_tokens(
        [f"t{index}" for index in range(len(SPECIALS), size)], maximum_size=size, special_tokens=SPECIALS
    )


def options(given: Given) -> Any:
    """Its training options: an LSTM with input feeding and general attention."""
    own = given.options
    parser = ArgumentParser()
    onmt.opts.train_opts(parser)
    parsed, _ = parser.parse_known_args([
        "-config", "", "-data", "{}", "-src_vocab", "none", "-save_model", "none",
        "-encoder_type", "brnn", "-decoder_type", "rnn", "-rnn_type", "LSTM", "-layers", "1",
        "-word_vec_size", str(own["embedding_size"]), "-hidden_size", str(own["hidden_size"]),
        "-global_attention", "general", "-input_feed", "1", "-dropout", str(own["dropout"]),
        "-optim", "adam", "-learning_rate", str(own["learning_rate"]), "-max_grad_norm", str(own["clip"]),
        "-world_size", "1", "-normalization", "tokens",
    ][2:])  # fmt: skip
    ArgumentParser.update_model_opts(parsed)
    ArgumentParser.validate_model_opts(parsed)
    return parsed


class Bridged(RNNEncoder):  # type: ignore[misc]
    """Its encoder; the decoder's hidden state and memory cell are tanh(W [h; h_reverse])."""

    bridge: nn.Linear

    def _bridge(self, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        last = torch.cat(list(hidden[0]), 1)
        return tuple(torch.stack(part.chunk(2, 1)) for part in torch.tanh(self.bridge(last)).chunk(2, 1))


def weights(given: Given) -> dict[str, torch.Tensor]:
    """Its names for the weights given."""
    w, found = given.weights, {}
    found["encoder.embeddings.make_embedding.emb_luts.0.weight"] = w["source.embedding"]
    found["decoder.embeddings.make_embedding.emb_luts.0.weight"] = w["target.embedding"]
    for ours, suffix in (("ahead", ""), ("back", "_reverse")):
        found[f"encoder.rnn.weight_ih_l0{suffix}"] = w[f"encoder.{ours}.V"]
        found[f"encoder.rnn.weight_hh_l0{suffix}"] = w[f"encoder.{ours}.W"]
        found[f"encoder.rnn.bias_ih_l0{suffix}"] = w[f"encoder.{ours}.b"]
        found[f"encoder.rnn.bias_hh_l0{suffix}"] = torch.zeros_like(w[f"encoder.{ours}.b"])
    found["encoder.bridge.weight"], found["encoder.bridge.bias"] = w["bridge.weight"], w["bridge.bias"]
    found["decoder.rnn.layers.0.weight_ih"] = w["decoder.V"]
    found["decoder.rnn.layers.0.weight_hh"] = w["decoder.W"]
    found["decoder.rnn.layers.0.bias_ih"] = w["decoder.b"]
    found["decoder.rnn.layers.0.bias_hh"] = torch.zeros_like(w["decoder.b"])
    found["decoder.attn.linear_in.weight"] = w["attention.W"].T
    h, c = w["combine.weight"].chunk(2, 1)
    found["decoder.attn.linear_out.weight"] = torch.cat([c, h], 1)
    found["decoder.attn.linear_out.bias"] = w["combine.bias"]
    found["generator.weight"], found["generator.bias"] = w["output.weight"], w["output.bias"]
    return found


def main() -> None:
    given = Given(Path(sys.argv[1]))
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(1)
    chosen = options(given)
    vocabs = {
        "src": vocabulary(given.vocabularies[0]), "tgt": vocabulary(given.vocabularies[1]),
        "decoder_start_token": "<s>", "data_task": "seq2seq",
    }  # fmt: skip
    for name in ("src", "tgt"):
        assert [vocabs[name].lookup_token(token) for token in SPECIALS] == [0, 1, 2, 3]
    model = build_base_model(chosen, vocabs)
    H = given.options["hidden_size"]
    model.encoder.__class__ = Bridged
    model.encoder.use_bridge, model.encoder.bridge = True, nn.Linear(H, 2 * H)
    model.decoder.attn.linear_out = nn.Linear(2 * H, H)
    nn.Module.load_state_dict(model, weights(given))

    def translate(rows: list[Ids], beams: int) -> list[Ids]:
        model.eval()
        translator = translators.get(beams)
        if translator is None:
            translator = translators[beams] = Translator(
                model, vocabs, n_best=1, beam_size=beams, max_length=given.options["longest"], max_length_ratio=0,
                global_scorer=GNMTGlobalScorer(0.0, 0.0, "none", "none"), report_score=False, dump_beam="",
                seed=1,
            )  # fmt: skip
        ids, lengths = padded(rows)
        found = translator.translate_batch({"src": ids[..., None], "srclen": lengths}, attn_debug=False)
        return [until_eos(best[0].tolist()) for best in found["predictions"]]

    translators: dict[int, Any] = {}
    optimizer = Optimizer.from_opt(model, chosen)
    trainer = Trainer(
        model, LossCompute.from_opts(chosen, model, vocabs["tgt"]), None,
        types.SimpleNamespace(transforms={}), {}, optimizer, norm_method="tokens",
        n_gpu=0, gpu_rank=-1, report_manager=ReportMgr(10**9), dropout=chosen.dropout,
        attention_dropout=chosen.attention_dropout,
    )  # fmt: skip

    def tensors(batch: Pairs) -> dict[str, torch.Tensor]:
        source, source_lengths = padded([source for source, _ in batch])
        target, target_lengths = padded([[BOS, *target, EOS] for _, target in batch])
        return {"src": source[..., None], "srclen": source_lengths, "tgt": target[..., None], "tgtlen": target_lengths}

    made = [(tensors(batch), 0) for batch in given.train]
    places = {id(batch): place for place, batch in enumerate(given.train)}

    def train(batches: list[Pairs]) -> None:
        model.train()
        trainer.train([made[places[id(batch)]] for batch in batches], 0, save_checkpoint_steps=0, valid_steps=10**9)

    serve(given, translate, train)


if __name__ == "__main__":
    main()
