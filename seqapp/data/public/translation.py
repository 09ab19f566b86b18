"""Sentences in several languages: the image captions of Multi30k."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from seqapp.data.download import Content, RemoteFile
from seqapp.data.pairs import SentencePair, read_pairs
from seqapp.data.public.catalogue import PUBLIC, PublicDataset, fetched_files
from seqapp.data.splits import SOURCES, Splits
from seqapp.registry import InvalidOption

Language = Literal["en", "de", "fr", "cs"]

_FILES = (
    ("train.en.gz", 568929, "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"),
    ("train.de.gz", 637044, "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"),
    ("train.fr.gz", 604242, "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c"),
    ("train.cs.gz", 593827, "a65adb8b32e3bc664f21ecba7a6e7f6950fd1f405e135f7c312faabdb6255077"),
    ("val.en.gz", 21650, "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"),
    ("val.de.gz", 24681, "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a"),
    ("val.fr.gz", 23001, "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9"),
    ("val.cs.gz", 22096, "b63226e05c4bd5dd6a42897d74b86a1b9d2c31498252c572b1ea7f7996927fcc"),
    ("test_2016_flickr.en.gz", 21077, "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9"),
    ("test_2016_flickr.de.gz", 22890, "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8"),
    ("test_2016_flickr.fr.gz", 22310, "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90"),
    ("test_2016_flickr.cs.gz", 22572, "200a4a74cc9560f051924abb9803be008d1908d77f747e9141aeb86dfd2797f1"),
)
PUBLIC["multi30k"] = PublicDataset(
    name="multi30k",
    title="Multi30k, captions of images",
    task="translation",
    examples="29,000 / 1,014 / 1,000 captions in English, German, French and Czech; the last are test_2016_flickr",
    licence="CC BY-NC-SA",
    citation="Elliott et al. 2016, Multi30K: Multilingual English-German Image Descriptions; French: Elliott et al. "
    "2017, Czech: Barrault et al. 2018, Findings of the Second and the Third Shared Task on Multimodal Machine "
    "Translation",
    homepage="https://github.com/multi30k/dataset",
    files=tuple(
        RemoteFile(
            name,
            f"https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/{name}",
            (Content(f"sha256:{sha256}", size),),
        )
        for name, size, sha256 in _FILES
    ),
)


@SOURCES.register("multi30k")
def multi30k(source: Language = "en", target: Language = "de") -> Splits[SentencePair]:
    """Multi30k (Elliott et al. 2016): captions of images in four languages, in the published splits and order.

    German, French and Czech captions were translated from English by people; a pair without English translates the
    same caption twice. Test is test_2016_flickr. No test sentence, in any of the languages, is in training or
    validation. Of the 1,014 of validation one in English, German and Czech and three in French are also in training,
    whatever their case and spacing; they stay, so that figures compare with published ones.

    Args:
        source: the language to translate from.
        target: the language to translate into.

    Raises:
        DataError: if the data set has not been fetched.
        InvalidOption: if both languages are the same.
    """
    if source == target:
        raise InvalidOption(("target",), f"is the source language, {source!r}; another of en, de, fr, cs would fit")
    folder, _ = fetched_files("multi30k")
    return read_multi30k(folder, source, target)


def read_multi30k(folder: Path, source: str = "en", target: str = "de") -> Splits[SentencePair]:
    """As :func:`multi30k`, from files such as ``train.en.gz`` in ``folder``."""
    parts = (
        read_pairs([folder / f"{part}.{code}.gz" for code in (source, target)], languages=(source, target))
        for part in ("train", "val", "test_2016_flickr")
    )
    return Splits(f"multi30k {source}-{target}", *parts)
