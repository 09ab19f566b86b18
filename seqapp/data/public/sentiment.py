"""Movie reviews with labels: SST, MR and IMDb."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from seqapp.data.download import Content, RemoteFile
from seqapp.data.public.catalogue import PUBLIC, PublicDataset, fetched_files, packed
from seqapp.data.splits import SOURCES, LabelledText, Splits, split_by_group
from seqapp.data.text import Passage
from seqapp.errors import DataError
from seqapp.registry import Count, InvalidOption, Share, Size

log = logging.getLogger(__name__)

_SST_FILES = packed(
    "https://nlp.stanford.edu/sentiment/trainDevTestTrees_PTB.zip",
    ("trees/train.txt", 2160058, "e2f3f41b0b1e6d4dddc0effe3bfc2d27ed8928079aa9a03d652311614fc5feb7"),
    ("trees/dev.txt", 280825, "0e9336aed6e4730e19f58d00a77b3f0297efdb755f7b5e598c98a05e3f97ea40"),
    ("trees/test.txt", 559614, "6e54806dee95cf80cd918e7dfb3f6770f6df24bf826f289a4d1f709e1c8f6761"),
)
_MR_FILES = packed(
    "https://www.cs.cornell.edu/people/pabo/movie-review-data/rt-polaritydata.tar.gz",
    ("rt-polaritydata/rt-polarity.neg", 612256, "4ace77d558c3714723843f1d65b60c01e3417b208180f0728808d76ad0eeeaca"),
    ("rt-polaritydata/rt-polarity.pos", 626139, "2da124ec187a9d5a29c9f04e91c540e02baed5af8868f550a26bd6fd4dbf8bf0"),
)
_IMDB_FILE = RemoteFile(
    "aclImdb_v1.tar.gz",
    "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    (
        Content("md5:7c2ac02c03563afcf9b574c7e56c153a", 84125825),
        # the same without the unlabelled reviews, as some mirrors hold it
        Content("sha256:3d886f596273945ec3702c77982a72f7a56c5178d3117ebd306caf1b139db604", 28237704),
    ),
)

PUBLIC["sst"] = PublicDataset(
    name="sst",
    title="Stanford Sentiment Treebank",
    task="text classification",
    examples="8,544 / 1,101 / 2,210 sentences in five classes; 6,920 / 872 / 1,821 in two",
    licence="for research; the publisher names no licence",
    citation="Socher et al. 2013, Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank",
    homepage="https://nlp.stanford.edu/sentiment/",
    files=_SST_FILES,
)

PUBLIC["mr"] = PublicDataset(
    name="mr",
    title="Movie review sentences (rt-polarity 1.0)",
    task="text classification",
    examples="10,662 sentences in two classes, split into folds",
    licence="for research; the publisher names no licence",
    citation="Pang and Lee 2005, Seeing Stars: Exploiting Class Relationships for Sentiment Categorization",
    homepage="https://www.cs.cornell.edu/people/pabo/movie-review-data/",
    files=_MR_FILES,
)

PUBLIC["imdb"] = PublicDataset(
    name="imdb",
    title="Large Movie Review Dataset 1.0",
    task="text classification",
    examples="25,000 / 25,000 reviews in two classes; validation is taken out of training",
    licence="for research; cite Maas et al. 2011",
    citation="Maas et al. 2011, Learning Word Vectors for Sentiment Analysis",
    homepage="https://ai.stanford.edu/~amaas/data/sentiment/",
    files=(_IMDB_FILE,),
)


@SOURCES.register("sst")
def sst(labels: Literal["binary", "fine"] = "binary", phrases: bool = True) -> Splits[LabelledText]:
    """Stanford Sentiment Treebank (Socher et al. 2013): sentences and their phrases.

    Words stay apart as in the treebank ("it 's"). Training examples whose text is a whole validation or test sentence
    are left out.

    Args:
        labels: "binary" (negative, positive; neutral ones are left out) or "fine" (five classes).
        phrases: train on every distinct phrase, not only on whole sentences.

    Raises:
        DataError: if the data set has not been fetched, or a tree is malformed.
    """
    folder, _ = fetched_files("sst")
    return read_sst(folder, labels, phrases)


@SOURCES.register("mr")
def mr(folds: Size = 10, fold: Count = 0) -> Splits[LabelledText]:
    """Movie review sentences (Pang and Lee 2005), for cross-validation; equal sentences share a fold.

    Args:
        folds: number of parts, at least 3; which sentence is in which is fixed.
        fold: the part to test on, from 0; the one after it is for validation, the others for training.

    Raises:
        DataError: if the data set has not been fetched.
        InvalidOption: if there is no such fold.
    """
    folder, _ = fetched_files("mr")
    return read_mr(folder, folds, fold)


@SOURCES.register("imdb")
def imdb(validation_share: Share = 0.2, seed: Count = 0) -> Splits[LabelledText]:
    """Large Movie Review Dataset (Maas et al. 2011): whole reviews; no movie is both in training and validation.

    Reviews whose text occurs again in a later split (validation, test) are left out of the earlier one.

    Args:
        validation_share: share of the training reviews that is kept for validation, less than 1.
        seed: decides which movies those are.

    Raises:
        DataError: if the data set has not been fetched, or the archive is not laid out as expected.
        InvalidOption: if nothing would be left to train on.
    """
    if validation_share >= 1:
        raise InvalidOption(("validation_share",), "takes less than 1, or nothing is left to train on")
    return _split_imdb(imdb_reviews(), validation_share, seed)


T = TypeVar("T", LabelledText, Passage)


def without_leaks(name: str, train: Sequence[T], validation: Sequence[T], test: Sequence[T]) -> Splits[T]:
    """Splits in which an earlier one (train, validation) has no example whose text occurs in a later one."""
    held = {example.text for example in test}
    kept_validation = [example for example in validation if example.text not in held]
    held |= {example.text for example in kept_validation}
    kept_train = [example for example in train if example.text not in held]
    log.info(
        "%s: left out %d training and %d validation examples whose text occurs in a later split",
        name,
        len(train) - len(kept_train),
        len(validation) - len(kept_validation),
    )
    return Splits(name, kept_train, kept_validation, list(test))


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    try:
        text = path.read_bytes().decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as {encoding} text: {error}") from None
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() also cuts at characters inside a sentence
        if line.strip():
            yield number, line.strip()


_SST_LABELS = {
    "binary": ("negative", "negative", "", "positive", "positive"),
    "fine": ("very negative", "negative", "neutral", "positive", "very positive"),
}
_NODE = re.compile(r"\(([0-4]) ([^()\s][^()]*)\)|\(([0-4]) |(\))| ")
_PTB = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}
_PTB |= {"``": '"', "''": '"', "`": "'"}


def parse_tree(text: str) -> list[tuple[str, int]]:
    """Phrase and label of every node of a tree like ``(3 (2 a) (4 gem))``; the whole sentence comes last.

    Penn Treebank escapes become plain text: ``-LRB-`` a bracket, two backquotes a quotation mark.

    Args:
        text: one tree; it may be of any depth.

    Raises:
        ValueError: telling where the tree is malformed.
    """
    words: list[str] = []
    found: list[tuple[str, int]] = []
    pending: list[tuple[int, int]] = []
    position = 0
    while position < len(text):
        match = _NODE.match(text, position)
        complete = bool(found) and not pending
        childless = match is not None and match[4] and not (pending and pending[-1][1] < len(words))
        if match is None or complete or childless:
            raise ValueError(f"column {position + 1}: unexpected {text[position : position + 20]!r}")
        position = match.end()
        if match[2]:
            word = _PTB.get(match[2], match[2].replace("\\/", "/").replace("\\*", "*"))
            words.append(" ".join(word.split()))
            found.append((words[-1], int(match[1])))
        elif match[3]:
            pending.append((int(match[3]), len(words)))
        elif match[4]:
            label, first = pending.pop()
            found.append((" ".join(words[first:]), label))
    if pending or not found:
        raise ValueError(f"column {len(text) + 1}: {len(pending)} bracket(s) still open")
    return found


def _read_trees(path: Path) -> Iterator[list[tuple[str, int]]]:
    for number, line in _lines(path, "utf-8"):
        try:
            yield parse_tree(line)
        except ValueError as error:
            expected = "expected (LABEL word) or (LABEL node node), with a label from 0 to 4"
            raise DataError(f"{path}:{number}: not a tree, {error}; {expected}") from None


def read_sst(folder: Path, labels: Literal["binary", "fine"] = "binary", phrases: bool = True) -> Splits[LabelledText]:
    """As :func:`sst`, from ``train.txt``, ``dev.txt`` and ``test.txt`` in ``folder``."""

    names = _SST_LABELS[labels]

    def named(pairs: Iterable[tuple[str, int]]) -> list[LabelledText]:
        return [LabelledText(text, names[label]) for text, label in pairs if names[label]]

    trees = {name: list(_read_trees(folder / f"{name}.txt")) for name in ("train", "dev", "test")}
    train, validation, test = ([tree[-1] for tree in split] for split in trees.values())
    if phrases:
        distinct: dict[str, int] = {}
        for tree in trees["train"]:
            for text, label in tree:
                distinct.setdefault(text, label)
        train = list(distinct.items())
    name = f"sst {labels}, {'phrases' if phrases else 'sentences'}"
    return without_leaks(name, named(train), named(validation), named(test))


def read_mr(folder: Path, folds: int = 10, fold: int = 0) -> Splits[LabelledText]:
    """As :func:`mr`, from ``rt-polarity.neg`` and ``rt-polarity.pos`` in ``folder``."""
    if folds < 3:
        raise InvalidOption(("folds",), f"takes int >= 3, for training, validation and test, not {folds}")
    if not 0 <= fold < folds:
        raise InvalidOption(("fold",), f"takes 0 to {folds - 1} with folds={folds}, not {fold}")
    examples = [
        LabelledText(line, label)
        for label, name in (("negative", "rt-polarity.neg"), ("positive", "rt-polarity.pos"))
        # called Latin-1, but the bytes 0x80 to 0x9f in it are the quotes, dashes and ellipses of Windows-1252
        for _, line in _lines(folder / name, "cp1252")
    ]
    parts = split_by_group(examples, lambda example: example.text, [1 / folds] * folds, seed=0)
    validation = (fold + 1) % folds
    train = [one for part, content in enumerate(parts) if part not in (fold, validation) for one in content]
    return Splits(f"mr, fold {fold} of {folds}", train, parts[validation], parts[fold])


class Review(NamedTuple):
    """One IMDb review, the split it was published in, and the movie it is about."""

    split: str
    label: str
    movie: str
    text: str


_MEMBER = re.compile(r"aclImdb/(train|test)/(?:(pos|neg)/(\d{1,9})_\d+|urls_(pos|neg))\.txt", re.ASCII)


def read_reviews(archive: Path) -> list[Review]:
    """The labelled reviews in the IMDb ``archive`` in the order of their paths, read in one pass and never unpacked.

    Raises:
        DataError: if it is not such an archive, or a review has no movie.
    """
    texts: dict[str, tuple[str, str, int, str]] = {}
    movies: dict[tuple[str, str], list[str]] = {}
    where = str(archive)
    try:
        with tarfile.open(archive, "r|gz") as pack:
            for member in pack:
                match, stream = _MEMBER.fullmatch(member.name), pack.extractfile(member) if member.isfile() else None
                if match is None or stream is None:
                    continue
                where = f"{archive}, {member.name}"
                content = stream.read().decode("utf-8")
                if match[4]:
                    movies[match[1], match[4]] = content.split("\n")
                else:
                    content = re.sub(r"\s*(?:<br\s*/?>\s*)+", "\n", content).strip()
                    texts[member.name] = (match[1], match[2], int(match[3]), content)
    except (tarfile.TarError, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{where}: cannot be read as a part of the IMDb archive: {error}") from None
    reviews = []
    for name, (split, label, index, text) in sorted(texts.items()):
        urls = movies.get((split, label), [])
        movie = re.search(r"tt\d+", urls[index]) if index < len(urls) else None
        if movie is None:
            raise DataError(f"{archive}, {name}: its movie is not on line {index + 1} of {split}/urls_{label}.txt")
        reviews.append(Review(split, {"neg": "negative", "pos": "positive"}[label], movie[0], text))
    if not reviews:
        raise DataError(f"{archive}: holds no review; expected members such as aclImdb/train/pos/0_9.txt")
    return reviews


def _parsed_reviews(archive: Path, parsed: Path) -> list[Review]:
    damaged = contextlib.suppress(OSError, EOFError, ValueError, TypeError, zlib.error)
    with damaged, gzip.open(parsed, "rt", encoding="utf-8") as lines:
        if kept := [Review(*json.loads(line)) for line in lines]:  # an empty file is valid gzip
            return kept
    reviews = read_reviews(archive)
    unfinished = parsed.with_name(f"{parsed.name}.{os.getpid()}")
    try:
        with gzip.open(unfinished, "wt", compresslevel=1, encoding="utf-8") as out:
            out.writelines(json.dumps(review) + "\n" for review in reviews)
        unfinished.replace(parsed)
    except OSError as error:
        log.info("%s: not kept, so the archive will be read again next time: %s", parsed, error)
    return reviews


def read_imdb(archive: Path, parsed: Path, validation_share: float = 0.2, seed: int = 0) -> Splits[LabelledText]:
    """As :func:`imdb`, from ``archive``; the reviews found in it are kept in the file ``parsed`` for the next time."""
    return _split_imdb(_parsed_reviews(archive, parsed), validation_share, seed)


def imdb_reviews() -> list[Review]:
    """The labelled reviews of the IMDb data set.

    Raises:
        DataError: if the data set has not been fetched, or the archive is not laid out as expected.
    """
    folder, (version,) = fetched_files("imdb")
    parsed = folder / f"parsed-1-{version.checksum.replace(':', '-')}.jsonl.gz"
    return _parsed_reviews(folder / "aclImdb_v1.tar.gz", parsed)


def _split_imdb(reviews: Sequence[Review], validation_share: float, seed: int) -> Splits[LabelledText]:
    published = [review for review in reviews if review.split == "train"]
    shares = [1 - validation_share, validation_share]
    train, validation = split_by_group(published, lambda review: review.movie, shares, seed)
    test = [review for review in reviews if review.split == "test"]
    examples = ([LabelledText(review.text, review.label) for review in part] for part in (train, validation, test))
    return without_leaks(f"imdb, {validation_share:g} of training for validation, seed {seed}", *examples)
