"""Text -> ids -> text, on the ``tokenizers`` library: one ``tokenizer.json`` each.

Special ids are the same everywhere: pad 0, unk 1, bos 2, eos 3.

What comes back, with ``normalise`` composing letters (NFC) and, if asked, folding upper case:

- ``character``: LAW decode(encode(text).ids) == normalise(text) for every text whose characters are known.
- ``byte_bpe``: the same for every text.
- ``subword``: the same for texts of known characters that do not begin with a space and hold no U+2581, which marks
  spaces.
- ``whitespace``: each run of white space becomes one space; those around a line end, at the start and at the end go.
- ``word``: white space is lost, and put back where English has it.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import tokenizers as hf
from numpy.typing import NDArray
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from seqapp.errors import BundleError, DataError
from seqapp.registry import InvalidOption, Registry, Size

PAD, UNK, BOS, EOS = range(4)
SPECIALS = ["<pad>", "<unk>", "<bos>", "<eos>"]
_BYTES = 256
_AT_ONCE = 1 << 18  # characters; the library takes up to 750 bytes for each
_PARTIAL = "\ufffd"  # what part of a character is decoded as

WORD = r"[\p{L}\p{M}\p{N}_]+(?:['’][\p{L}\p{M}]+)?|[^\s\p{L}\p{M}\p{N}_]"
"""A word with its apostrophe ("don't"), or one mark of punctuation."""

PIECE = (
    r" ?[\p{L}\p{M}]+(?:['’][\p{L}\p{M}]+)?| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+"  # with the space before it
    r"|\n+|[^\S\n]+(?!\S)|[^\S\n]"
)
"""A word, a number of up to three digits, a run of marks, of line ends or of other white space: all of any text."""


MARK = r"▁?(?:[^\p{L}\p{M}\p{N}▁'’]|['’](?!\p{L})|(?<!\p{L})['’])"
"""One mark of punctuation with the space before it; an apostrophe inside a word is none.

It stands alone, so that "bike." and "bike" share a piece, and so that "<pad>" in a text is not one piece: the unigram
model holds the special tokens as pieces.
"""


@dataclass(frozen=True)
class Encoded:
    """One text as ids, and where each id stands in the text: ``text[start:end]``."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """A ``tokenizers.Tokenizer`` that is fitted once, on training texts, and then only read.

    Args:
        core: the untrained or loaded tokenizer of the library.
        fit: gives it a vocabulary from texts; None if it is fitted already.
    """

    def __init__(self, core: hf.Tokenizer, fit: Callable[[Iterator[str]], None] | None = None) -> None:
        self.core = core
        core.encode_special_tokens = True  # "<pad>" written in a text is text
        self._fit = fit

    @property
    def size(self) -> int:
        """V, the number of ids, special ones included."""
        return int(self.core.get_vocab_size())

    def fit(self, texts: Iterable[str]) -> None:
        """Learn the vocabulary from ``texts``, which are read once and not kept.

        Raises:
            DataError: if the texts hold no token, or the options leave none.
        """
        if self._fit is None:
            raise ValueError("this tokenizer is fitted already")
        empty = True

        def cleaned() -> Iterator[str]:
            nonlocal empty
            for text in texts:
                empty = empty and not text
                yield clean(text)

        try:
            self._fit(cleaned())
        except DataError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"no vocabulary can be made of the training texts: {error}") from None
        self._fit = None
        if empty or self.size <= len(SPECIALS):
            raise DataError("not one token of the training texts is kept: they are empty or white space only, "
                            f"max_vocabulary is not above {len(SPECIALS)}, or min_frequency is too high")  # fmt: skip

    def encode(self, text: str) -> Encoded:
        encoding = self.core.encode(clean(text), add_special_tokens=False)
        return Encoded(encoding.ids, encoding.offsets)

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """As :meth:`encode` for many texts, on all cores."""
        encodings = self.core.encode_batch([clean(text) for text in texts], add_special_tokens=False)
        return [Encoded(encoding.ids, encoding.offsets) for encoding in encodings]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids alone of each of some texts, which are found more quickly."""
        encodings = self.core.encode_batch_fast([clean(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_all(self, texts: Iterable[str]) -> Iterator[NDArray[numpy.uint32]]:
        """The ids alone of each of many texts, of which few are in memory at a time."""
        if isinstance(self.core.decoder, decoders.Fuse):  # single characters
            table = numpy.full(sys.maxunicode + 1, UNK, numpy.uint32)
            for piece, index in self.core.get_vocab().items():
                if index >= len(SPECIALS):
                    table[ord(piece)] = index
            for text in texts:
                yield table[numpy.frombuffer(self.normalise(text).encode("utf-32-le"), "<u4")]
            return
        waiting: list[str] = []

        def encoded() -> Iterator[NDArray[numpy.uint32]]:
            for encoding in self.core.encode_batch_fast(waiting, add_special_tokens=False):
                yield numpy.array(encoding.ids, numpy.uint32)
            waiting.clear()

        size = 0
        for text in texts:
            waiting.append(clean(text))
            size += len(text) + 1
            if size > _AT_ONCE:
                yield from encoded()
                size = 0
        yield from encoded()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; special ids are left out."""
        return str(self.core.decode(list(ids), skip_special_tokens=True))

    def decoding(self, after: Sequence[int] = ()) -> Decoding:
        """Decodes ids that come one at a time.

        Args:
            after: the ids that come before them, such as a prompt; their text is not given again.
        """
        return Decoding(self, after)

    def normalise(self, text: str) -> str:
        """``text`` as the tokens see it: letters composed (NFC), lower case if that was asked for."""
        return str(self.core.normalizer.normalize_str(clean(text))) if self.core.normalizer else clean(text)

    def unknown(self, text: str) -> list[tuple[int, str]]:
        """The parts of ``text`` that become <unk>, each with its offset."""
        encoded = self.encode(text)
        return [
            (start, text[start:end])
            for index, (start, end) in zip(encoded.ids, encoded.offsets, strict=True)
            if index == UNK
        ]

    def token_text(self, index: int) -> str:
        """One token as shown to a person: its text, or for a special id its name, such as <eos>.

        The tokens of a text, joined, are the text for ``character``, ``byte_bpe`` (but the bytes of a character that it
        cuts are shown as <0xE2>) and ``subword`` (but with a space before the text). Words are shown without spaces.

        Raises:
            ValueError: if there is no such id.
        """
        piece = self.core.id_to_token(index) if index >= 0 else None
        if piece is None:
            raise ValueError(f"no token has the id {index}; 0 to {self.size - 1} fit")
        if index < len(SPECIALS):
            return str(piece)
        if isinstance(self.core.decoder, decoders.Metaspace):
            return str(piece).replace("▁", " ")
        if isinstance(self.core.decoder, decoders.ByteLevel):
            shown = bytes(map(_byte_of().__getitem__, piece)).decode(errors="surrogateescape")
            return re.sub("[\udc80-\udcff]", lambda found: f"<0x{ord(found[0]) - 0xDC00:02X}>", shown)
        return str(piece)

    def token_id(self, text: str) -> int | None:
        """The id whose :meth:`token_text` is ``text``, or None."""
        if text in SPECIALS:
            return SPECIALS.index(text)
        piece = self.normalise(text)
        if isinstance(self.core.decoder, decoders.Metaspace):
            piece = piece.replace(" ", "▁")
        elif isinstance(self.core.decoder, decoders.ByteLevel):
            names = {byte: name for name, byte in _byte_of().items()}
            content = re.sub(rb"<0x([0-9A-F]{2})>", lambda found: bytes.fromhex(found[1].decode()), piece.encode())
            piece = "".join(names[byte] for byte in content)
        found = self.core.token_to_id(piece)
        return None if found is None or found < len(SPECIALS) else int(found)

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


class Decoding:
    """Ids that come one at a time -> the text that each adds, never a part of a character.

    LAW: decode(after) + every add() + finish() == decode(after + ids), if ``after`` does not end inside a character.

    Args:
        tokenizer: of the ids.
        after: the ids that come before the first.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # How a token is spelt depends on the one before it, for spaces, and on no other.
        self._ids = [index for index in after if index >= len(SPECIALS)][-1:]
        self._shown = len(tokenizer.decode(self._ids))

    def add(self, index: int) -> str:
        """The text that is complete with token ``index``; empty for special ids and while a character is not whole."""
        if index < len(SPECIALS):
            return ""
        self._ids.append(index)
        text = self._tokenizer.decode(self._ids)
        if text.endswith(_PARTIAL):
            return ""
        new = text[self._shown :]
        self._ids = [index]
        self._shown = len(self._tokenizer.decode(self._ids))
        return new

    def finish(self) -> str:
        """What was held back: a character that never became whole, as U+FFFD."""
        return self._tokenizer.decode(self._ids)[self._shown :]


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
    core.decoder = _spaced(r" (?=[,.;:!?%)\]}»”…])|(?<=[(\[{«“]) ")
    trainer = trainers.WordLevelTrainer(
        vocab_size=max_vocabulary, min_frequency=min_frequency, special_tokens=SPECIALS, show_progress=False
    )
    return Tokenizer(core, functools.partial(core.train_from_iterator, trainer=trainer))


@TOKENIZERS.register("whitespace")
def whitespace(
    *, max_vocabulary: Size = 100_000, min_frequency: Size = 1, lowercase: bool = False, newlines: bool = True
) -> Tokenizer:
    """What stands between white space, for a corpus that is cut into tokens already; its <unk> is ours.

    "<pad>", "<bos>" and "<eos>" that stand in a text are cut after their "<".

    Args:
        max_vocabulary: most tokens kept, the most frequent first, special ids included.
        min_frequency: how often a token must occur in training to be kept.
        lowercase: fold upper case.
        newlines: whether a line end is a token.
    """
    core = hf.Tokenizer(models.WordLevel(unk_token=SPECIALS[UNK]))
    core.normalizer = _normalizer(lowercase)
    # Separators of records are no white space to the library and some to re.
    pattern = r"<(?=(?:pad|bos|eos)>(?![^\s\x1c-\x1f]))|(?:\S|[\x1c-\x1f])+"
    pattern = rf"\n|{pattern}" if newlines else pattern
    core.pre_tokenizer = pre_tokenizers.Split(hf.Regex(pattern), behavior="removed", invert=True)
    core.decoder = _spaced(r"(?<=\n) | (?=\n)")
    return _counted(core, re.compile(pattern).findall, max_vocabulary, min_frequency)


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
    return _counted(core, str, max_vocabulary, min_frequency)


@TOKENIZERS.register("subword")
def subword(
    *,
    algorithm: Literal["bpe", "unigram"] = "bpe",
    max_vocabulary: Size = 8_000,
    min_frequency: Size = 2,
    lowercase: bool = False,
) -> Tokenizer:
    """Pieces of words: byte-pair encoding (Sennrich et al. 2016) or a unigram model (Kudo 2018).

    A piece lies within one word with the space before it, or is one mark of punctuation.

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
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(hf.Regex(MARK), behavior="isolated")]
    )
    core.decoder = decoders.Metaspace()
    return Tokenizer(core, functools.partial(core.train_from_iterator, trainer=trainer))


@TOKENIZERS.register("byte_bpe")
def byte_bpe(*, max_vocabulary: Size = 8_000, min_frequency: Size = 2, lowercase: bool = False) -> Tokenizer:
    """Pieces of words by byte-pair encoding over bytes (Radford et al. 2019): no character is unknown, no space lost.

    A piece lies within one word with the space before it, one number, one run of marks, of line ends or of other white
    space.

    Args:
        max_vocabulary: number of pieces, special ids included; at least 260, for each byte is one.
        min_frequency: how often a pair must occur to be merged.
        lowercase: fold upper case.

    Raises:
        InvalidOption: if the bytes alone are more than max_vocabulary.
    """
    if max_vocabulary < len(SPECIALS) + _BYTES:
        raise InvalidOption(
            ("max_vocabulary",), f"takes at least {len(SPECIALS) + _BYTES}, the special ids and each byte"
        )
    core = hf.Tokenizer(models.BPE())
    core.normalizer = _normalizer(lowercase)
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(hf.Regex(PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max_vocabulary,
        min_frequency=min_frequency,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return Tokenizer(core, functools.partial(core.train_from_iterator, trainer=trainer))


def clean(text: str) -> str:
    """``text`` with each lone surrogate as "?", every offset unchanged."""
    # A lone surrogate, which JSON and surrogateescape can produce, has no UTF-8 form and would stop the library.
    try:
        if not text.isascii():
            text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
    return text


def _normalizer(lowercase: bool) -> Any:
    return normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])])


def _counted(
    core: hf.Tokenizer, split: Callable[[str], Iterable[str]], max_vocabulary: int, min_frequency: int
) -> Tokenizer:
    """As ``trainers.WordLevelTrainer`` would fit it, in less time; a special token in a text is left out."""

    def fit(texts: Iterator[str]) -> None:
        counts = Counter[str]()
        for text in texts:
            counts.update(split(core.normalizer.normalize_str(text)))
        known = {token for token, count in counts.items() if count >= min_frequency}.difference(SPECIALS)
        order = sorted(known, key=lambda token: (-counts[token], token))[: max(0, max_vocabulary - len(SPECIALS))]
        ids = {token: index for index, token in enumerate([*SPECIALS, *order])}
        core.model = models.WordLevel(ids, unk_token=SPECIALS[UNK])
        core.add_special_tokens(SPECIALS)

    return Tokenizer(core, fit)


def _spaced(superfluous: str) -> Any:
    """Joins tokens with single spaces, less those that the pattern ``superfluous`` finds."""
    # A later token must never change the text before it, or decoding one at a time would not give the same.
    return decoders.Sequence(
        [
            decoders.Replace(hf.Regex(r"\A"), " "),
            decoders.Fuse(),
            decoders.Replace(hf.Regex(superfluous), ""),
            decoders.Strip(" ", 1, 0),
        ]
    )


@functools.cache
def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level piece stands for."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # printable, so they stand for themselves
    hidden = [byte for byte in range(_BYTES) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(_BYTES + rank): byte for rank, byte in enumerate(hidden)}
