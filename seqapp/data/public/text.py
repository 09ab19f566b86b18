"""Corpora to model: tinyshakespeare, names, WikiText-2, and the reviews of IMDb without their labels."""

from __future__ import annotations

import bisect
import random
import re
import unicodedata
from pathlib import Path

from seqapp.data.download import Content, RemoteFile
from seqapp.data.public.catalogue import PUBLIC, PublicDataset, fetched_files
from seqapp.data.public.sentiment import imdb_reviews, without_leaks
from seqapp.data.splits import SOURCES, Splits, split_by_group, training_share
from seqapp.data.text import Passage, passages, read_text
from seqapp.errors import DataError
from seqapp.registry import Count, InvalidOption, Probability, Share

PUBLIC["tinyshakespeare"] = PublicDataset(
    name="tinyshakespeare",
    title="Tiny Shakespeare",
    task="language models",
    examples="1,115,394 characters of plays, 65 distinct; the last 10 % are for test",
    licence="the text is in the public domain",
    citation="Karpathy 2015, The Unreasonable Effectiveness of Recurrent Neural Networks",
    homepage="https://github.com/karpathy/char-rnn",
    files=(
        RemoteFile(
            "input.txt",
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            (Content("sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", 1115394),),
        ),
    ),
)

_NAMES = (
    ("Arabic", 13190, "6f424a8dbe51cbbbabab7a57d38b617210125e4e3991f3c657cb79b8f104bafc"),
    ("Chinese", 1246, "09ba8f1f7e38dbc99372d461b26ad4433b811fc6bfa6a3ecca6fe11a9a777465"),
    ("Czech", 3916, "e17ab0ec47616a72c39cb85c783f70c3663ab64488721e5d8378f146d2226be7"),
    ("Dutch", 2351, "924f32b635170eae561f84538632138fc07d4c8bbd70ba3fb980de1ecc4d2af3"),
    ("English", 27125, "9cca037066d3d5989e24bc01801416162de506b5e28e15b7c092a47905d29bf2"),
    ("French", 2178, "81e65b36c60ed5b89a17422f6edcadbb89546f38ad69e960e64e7ba682012a95"),
    ("German", 5610, "7449cd590b97a733e18d613a4155decd77ec35dc5f8aadd7a82204dce4f051db"),
    ("Greek", 1981, "3555b5186de7f401e6d991b088e9e644ca3099116477818c25ab5793801389e6"),
    ("Irish", 1858, "cf8c7013256252a88d2503127b87282a11f21b2ff6db1bded68834c19a1ec058"),
    ("Italian", 5657, "f88414c27d0606a11a678b4859277828c2565d6cc4d9ee932deef6e94f3b35e4"),
    ("Japanese", 7622, "e0e717e114fec3e7eade4d9dabe0067c475f43147e36a22b47902ee76ad9e67f"),
    ("Korean", 423, "cd54221ccb362a6cba4c78828838cf3268a0e59744767a37cf6ec4b74036b136"),
    ("Polish", 1165, "45bab898af2f60ed3a728bbf6980e28821011a7caa53227553b5785903a40826"),
    ("Portuguese", 554, "50a8735f41f4f73757c8ce5b16cb0275cd86b2b214bcbc8c9805f508cb131c53"),
    ("Russian", 85168, "0cfe53ac18041e8f63666aa77313e0a3ff378facb132abee052d8ebdc8c3d62c"),
    ("Scottish", 752, "78d0252711d87d948ea86fe34826c51d2d794a8e52d15b5d6f7b6244d45d62dd"),
    ("Spanish", 2284, "1bcb462ed3316756a85781d68232bddae04498fdddd5d9219c53fd1fbdeba7a7"),
    ("Vietnamese", 339, "f3f9e4164ab47601178a6e45b216464a64122f49d05541f24bf18a757253281d"),
)
PUBLIC["names"] = PublicDataset(
    name="names",
    title="Surnames of 18 languages",
    task="language models that depend on a class",
    examples="20,074 lines, no name of a language twice in a split",
    licence="MIT",
    citation="Robertson 2017, Generating Names with a Character-Level RNN (PyTorch tutorial)",
    homepage="https://github.com/spro/practical-pytorch",
    files=tuple(
        RemoteFile(
            f"{language}.txt",
            f"https://raw.githubusercontent.com/spro/practical-pytorch/master/data/names/{language}.txt",
            (Content(f"sha256:{sha256}", size),),
        )
        for language, size, sha256 in _NAMES
    ),
)
PUBLIC["wikitext-2"] = PublicDataset(
    name="wikitext-2",
    title="WikiText-2, its validation and test articles",
    task="language models over words",
    examples="60 / 60 articles of words apart; wiki.train.tokens is your own to get",
    licence="CC BY-SA",
    citation="Merity et al. 2016, Pointer Sentinel Mixture Models",
    homepage="https://arxiv.org/abs/1609.07843",
    files=(
        RemoteFile(
            "valid.txt",
            "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/valid.txt",
            (Content("sha256:f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8", 1121681),),
        ),
        RemoteFile(
            "test.txt",
            "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/test.txt",
            (Content("sha256:d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0", 1256449),),
        ),
    ),
)


@SOURCES.register("tinyshakespeare")
def tinyshakespeare(holdout: Probability = 0.05) -> Splits[Passage]:
    """A million characters of Shakespeare's plays (Karpathy 2015), one text cut in order into train, validation, test.

    Published figures train on the first 90 % of the characters and report the last 10 %, which is the test split here.
    Validation, which chooses between weights, is the end of those first 90 %, so that the test split is read once.

    Args:
        holdout: share of the first 90 % that is kept for validation; 0 gives the published split, whose last 10 % is
            then validation, and no test split.

    Raises:
        DataError: if the data set has not been fetched.
    """
    folder, _ = fetched_files("tinyshakespeare")
    return read_tinyshakespeare(folder, holdout)


@SOURCES.register("names")
def names(validation_share: Share = 0.1, test_share: Probability = 0.1, seed: Count = 0) -> Splits[Passage]:
    """Surnames of 18 languages (Robertson 2017), each a text that depends on its language.

    A name stands once for each language that has it, and in one split, whatever its case; a language has its share of
    every split.

    Args:
        validation_share: share of the names that is kept for validation.
        test_share: share of the names that is kept for test; 0 for no test split.
        seed: decides which names those are.

    Raises:
        ConfigError: if the shares leave nothing to train on.
        DataError: if the data set has not been fetched.
    """
    folder, _ = fetched_files("names")
    return read_names(folder, validation_share, test_share, seed)


@SOURCES.register("wikitext-2")
def wikitext_2(train: str | None = None, validation_share: Share = 0.1, seed: Count = 0) -> Splits[Passage]:
    """WikiText-2 (Merity et al. 2016): articles whose words are apart, rare ones ``<unk>``; each a document.

    Only the published validation and test articles can be fetched. Without ``train``, training is most of the former:
    figures are then not those of papers.

    Args:
        train: your copy of wiki.train.tokens; validation is then the published one.
        validation_share: share of the published validation articles that stays for validation if there is no train.
        seed: decides which articles those are.

    Raises:
        ConfigError: if the share leaves nothing to train on.
        DataError: if the data set has not been fetched, or train is not a text of articles.
    """
    folder, _ = fetched_files("wikitext-2")
    return read_wikitext(folder, Path(train) if train is not None else None, validation_share, seed)


@SOURCES.register("imdb_text")
def imdb_text(validation_share: Share = 0.05, test_share: Probability = 0.05, seed: Count = 0) -> Splits[Passage]:
    """The 50,000 labelled reviews of IMDb (Maas et al. 2011) as text, each a document; no movie is in two splits.

    They are dealt anew, not as for classification, for more text to learn from. Reviews whose text occurs again in a
    later split (validation, test) are left out of the earlier one.

    Args:
        validation_share: share of the reviews that is kept for validation.
        test_share: share of the reviews that is kept for test; 0 for no test split.
        seed: decides which movies those are about.

    Raises:
        ConfigError: if the shares leave nothing to train on.
        DataError: if the data set has not been fetched, or the archive is not laid out as expected.
    """
    left = training_share({"validation": validation_share, "test": test_share})
    parts = split_by_group(imdb_reviews(), lambda review: review.movie, [left, validation_share, test_share], seed)
    name = f"imdb text, validation {validation_share:g}, test {test_share:g}, seed {seed}"
    return without_leaks(name, *([Passage(review.text) for review in part] for part in parts))


def read_tinyshakespeare(folder: Path, holdout: float = 0.05) -> Splits[Passage]:
    """As :func:`tinyshakespeare`, from ``input.txt`` in ``folder``."""
    text = _content(folder / "input.txt")
    last = len(text) * 9 // 10
    middle = last - round(last * holdout)
    # The text goes on over both cuts, and nothing in it is an end that a model could learn.
    train, held, rest = (passages(part, ends=False) for part in (text[:middle], text[middle:last], text[last:]))
    if not held:
        return Splits("tinyshakespeare", train, rest)
    return Splits(f"tinyshakespeare, {holdout:g} of training for validation", train, held, rest)


def read_names(folder: Path, validation_share: float = 0.1, test_share: float = 0.1, seed: int = 0) -> Splits[Passage]:
    """As :func:`names`, from a file a language in ``folder``: ``Arabic.txt`` and so on."""
    left = training_share({"validation": validation_share, "test": test_share})
    part_of: dict[str, int] = {}
    of_language: dict[str, dict[str, str]] = {}
    for language, _, _ in _NAMES:
        found = of_language[language] = {}
        for line in _content(folder / f"{language}.txt").split("\n"):
            if name := unicodedata.normalize("NFC", line).strip():
                found.setdefault(name.casefold(), name)
    # The smallest first: those of its names that a larger one has as well do not cost it its share of each split.
    for language, found in sorted(of_language.items(), key=lambda item: (len(item[1]), item[0])):
        new = sorted(key for key in found if key not in part_of)
        random.Random(f"{seed} {language}").shuffle(new)
        for rank, key in enumerate(new):
            part_of[key] = bisect.bisect([left, 1 - test_share], (rank + 0.5) / len(new))
    parts: list[list[Passage]] = [[], [], []]
    for language, found in of_language.items():
        for key, name in found.items():
            parts[part_of[key]].append(Passage(name, condition=language))
    how = f"validation {validation_share:g}, test {test_share:g}, seed {seed}"
    return Splits(f"names, {how}", *parts)


def read_wikitext(
    folder: Path, train: Path | None = None, validation_share: float = 0.1, seed: int = 0
) -> Splits[Passage]:
    """As :func:`wikitext_2`, from ``valid.txt`` and ``test.txt`` in ``folder``, and ``train`` if it is given."""
    name, held, test = "wikitext-2", _articles(folder / "valid.txt"), _articles(folder / "test.txt")
    if train is not None:
        rest = _articles(train)
    elif validation_share < 1:
        rest, held = split_by_group(held, str, [1 - validation_share, validation_share], seed)
        name += f" without its training text, validation {validation_share:g}, seed {seed}"
    else:
        raise InvalidOption(("validation_share",), "takes less than 1, or nothing is left to train on")
    return Splits(name, *([one for text in part for one in passages(text)] for part in (rest, held, test)))


def _articles(path: Path) -> list[str]:
    text = _content(path)
    starts = [found.start() for found in _HEADING.finditer(text)]
    if not starts:
        raise DataError(f"{path}: holds no article; a file such as wiki.train.tokens, with lines ' = Title = ', fits")
    return [text[start:stop] for start, stop in zip(starts, [*starts[1:], None], strict=True)]


# A line " = Title = " with blank lines around it; a formula may look like one, but for the blank lines.
_HEADING = re.compile(r"(?:(?<=\n \n)|(?<=\A \n)) = (?!= )[^\n]+(?<! =) = (?=\n \n)")


def _content(path: Path) -> str:
    return "".join(passage.text for passage in read_text(path))
