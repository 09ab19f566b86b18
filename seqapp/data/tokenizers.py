"""Text -> ids, on the ``tokenizers`` library: words, characters or subwords, one ``tokenizer.json`` each.

Special ids are the same everywhere: pad 0, unk 1, bos 2, eos 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from seqapp.errors import BundleError, DataError
from seqapp.registry import Registry, Size

PAD, UNK, BOS, EOS = range(4)
SPECIALS = ["<pad>", "<unk>", "<bos>", "<eos>"]

WORD = r"[\p{L}\p{M}\p{N}_]+(?:['’][\p{L}\p{M}]+)?|[^\s\p{L}\p{M}\p{N}_]"
"""A word with its apostrophe ("don't"), or one mark of punctuation."""


@dataclass(frozen=True)
class Encoded:
    """One text as ids, and where each id stands in the text: ``text[start:end]``."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """A ``tokenizers.Tokenizer`` that is fitted once, on training texts, and then only read.

    Args:
        core: the untrained or loaded tokenizer of the library.
        trainer: what fits it; None if it is fitted already.
    """

    def __init__(self, core: hf.Tokenizer, trainer: Any = None) -> None:
        self.core = core
        core.encode_special_tokens = True  # "<pad>" written in a text is text
        self._trainer = trainer

    @property
    def size(self) -> int:
        """V, the number of ids, special ones included."""
        return int(self.core.get_vocab_size())

    def fit(self, texts: Iterable[str]) -> None:
        """Learn the vocabulary from ``texts``.

        Raises:
            DataError: if the texts hold no token, or the options leave none.
        """
        if self._trainer is None:
            raise ValueError("this tokenizer is fitted already")
        try:
            self.core.train_from_iterator((clean(text) for text in texts), trainer=self._trainer)
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"no vocabulary can be made of the training texts: {error}") from None
        self._trainer = None
        if self.size <= len(SPECIALS):
            raise DataError("not one token of the training texts is kept: they are empty or white space only, "
                            f"max_vocabulary is not above {len(SPECIALS)}, or min_frequency is too high")  # fmt: skip

    def encode(self, text: str) -> Encoded:
        encoding = self.core.encode(clean(text), add_special_tokens=False)
        return Encoded(encoding.ids, encoding.offsets)

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """As :meth:`encode` for many texts, on all cores."""
        encodings = self.core.encode_batch([clean(text) for text in texts], add_special_tokens=False)
        return [Encoded(encoding.ids, encoding.offsets) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; special ids are left out."""
        return str(self.core.decode(list(ids), skip_special_tokens=True))

    def save(self, path: Path) -> None:
        self.core.save(str(path))

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            BundleError: if the file is not one, or its special ids are not ours.
        """
        try:
            core = hf.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path}: not a readable tokenizer.json: {error}") from None
        found = [core.id_to_token(index) for index in range(len(SPECIALS))]
        if found != SPECIALS:
            raise BundleError(f"{path}: the first ids stand for {found}; {SPECIALS} fit")
        if max(core.get_vocab().values()) >= core.get_vocab_size():
            raise BundleError(f"{path}: its ids have gaps; 0 to {core.get_vocab_size() - 1} fit")
        core.no_truncation()
        core.no_padding()
        return cls(core)


TOKENIZERS: Registry[Tokenizer] = Registry("tokenizer")


@TOKENIZERS.register("word")
def word(*, max_vocabulary: Size = 30_000, min_frequency: Size = 1, lowercase: bool = True) -> Tokenizer:
    """Whole words and single punctuation marks; a rare word becomes <unk>.

    Args:
        max_vocabulary: most words kept, the most frequent first, special ids included.
        min_frequency: how often a word must occur in training to be kept.
        lowercase: fold upper case, so that "Good" and "good" are one word.
    """
    core = hf.Tokenizer(models.WordLevel(unk_token=SPECIALS[UNK]))
    core.normalizer = _normalizer(lowercase)
    core.pre_tokenizer = pre_tokenizers.Split(hf.Regex(WORD), behavior="removed", invert=True)
    trainer = trainers.WordLevelTrainer(
        vocab_size=max_vocabulary, min_frequency=min_frequency, special_tokens=SPECIALS, show_progress=False
    )
    return Tokenizer(core, trainer)


@TOKENIZERS.register("character")
def character(*, max_vocabulary: Size = 1_000, min_frequency: Size = 1, lowercase: bool = False) -> Tokenizer:
    """Single characters, white space included.

    Args:
        max_vocabulary: most characters kept, the most frequent first, special ids included.
        min_frequency: how often a character must occur in training to be kept.
        lowercase: fold upper case.
    """
    core = hf.Tokenizer(models.WordLevel(unk_token=SPECIALS[UNK]))
    core.normalizer = _normalizer(lowercase)
    core.pre_tokenizer = pre_tokenizers.Split(hf.Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(
        vocab_size=max_vocabulary, min_frequency=min_frequency, special_tokens=SPECIALS, show_progress=False
    )
    return Tokenizer(core, trainer)


@TOKENIZERS.register("subword")
def subword(
    *,
    algorithm: Literal["bpe", "unigram"] = "bpe",
    max_vocabulary: Size = 8_000,
    min_frequency: Size = 2,
    lowercase: bool = False,
) -> Tokenizer:
    """Pieces of words: byte-pair encoding (Sennrich et al. 2016) or a unigram model (Kudo 2018).

    Args:
        algorithm: how pieces are found.
        max_vocabulary: number of pieces, special ids included.
        min_frequency: bpe only: how often a pair must occur to be merged.
        lowercase: fold upper case.
    """
    trainer: Any
    if algorithm == "bpe":
        core = hf.Tokenizer(models.BPE(unk_token=SPECIALS[UNK], fuse_unk=True))
        trainer = trainers.BpeTrainer(
            vocab_size=max_vocabulary, min_frequency=min_frequency, special_tokens=SPECIALS, show_progress=False
        )
    else:
        core = hf.Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=max_vocabulary, special_tokens=SPECIALS, unk_token=SPECIALS[UNK], show_progress=False
        )
    core.normalizer = _normalizer(lowercase)
    # "<" stands alone, or "<pad>" in a text would be one piece: the unigram model holds the special tokens as pieces.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split("<", behavior="isolated")]
    )
    core.decoder = decoders.Metaspace()
    return Tokenizer(core, trainer)


def clean(text: str) -> str:
    """``text`` with each lone surrogate as "?", every offset unchanged."""
    # A lone surrogate, which JSON and surrogateescape can produce, has no UTF-8 form and would stop the library.
    return text.encode("utf-8", "replace").decode("utf-8") if any("\ud800" <= c <= "\udfff" for c in text) else text


def _normalizer(lowercase: bool) -> Any:
    return normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])])
