"""What needs no download: reviews are balanced, paired and unrepeated, the documentation is split without overlap."""

import csv
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from itertools import combinations
from pathlib import Path

import pytest

from seqapp.data import bundled
from seqapp.data.splits import LabelledText
from seqapp.errors import DataError

FOLDER = Path(bundled.__file__).parent / "reviews"
SPLITS = ("train", "validation", "test")
DOMAINS = {"films", "restaurants", "products", "travel"}
LABELS = {"positive", "negative"}
PHENOMENA = {"plain", "negation", "concession", "intensifier", "irony"}
COLUMNS = ["domain", "label", "phenomenon", "pair", "text"]

Row = dict[str, str]


@cache
def rows(split: str) -> tuple[Row, ...]:
    with (FOLDER / f"{split}.tsv").open(encoding="utf-8", newline="") as stream:
        return tuple(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def every() -> list[tuple[str, Row]]:
    return [(split, row) for split in SPLITS for row in rows(split)]


def pairs() -> dict[str, list[tuple[str, Row]]]:
    found = defaultdict(list)
    for split, row in every():
        if row["pair"]:
            found[row["pair"]].append((split, row))
    return found


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def trigrams(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return set(zip(found, found[1:], found[2:], strict=False))


def near(texts: list[tuple[str, str]], features: list[set[object]], bound: float) -> list[tuple[str, str, float]]:
    """Pairs of texts of different splits whose sets of features have a Jaccard index above ``bound``.

    Two such sets share a feature among the rarest |A| - ceil(bound |A|) + 1 of each (prefix filtering, Chaudhuri et
    al. 2006), so only those are looked up.
    """
    frequency = Counter(feature for found in features for feature in found)
    index: dict[object, list[int]] = defaultdict(list)
    said = []
    for place, found in enumerate(features):
        rare = sorted(found, key=lambda feature: (frequency[feature], repr(feature)))
        prefix = rare[: len(rare) - int(bound * len(rare)) + 1]
        candidates = {other for feature in prefix for other in index[feature]}
        for other in candidates:
            if texts[other][0] != texts[place][0]:
                shared = len(found & features[other])
                jaccard = shared / (len(found) + len(features[other]) - shared)
                if jaccard > bound:
                    said.append((texts[other][1], texts[place][1], jaccard))
        for feature in prefix:
            index[feature].append(place)
    return said


def test_there_are_enough_sentences_of_four_domains() -> None:
    assert len(every()) >= 2400
    for split in SPLITS:
        assert {row["domain"] for row in rows(split)} == DOMAINS
        assert {row["phenomenon"] for row in rows(split)} == PHENOMENA
        assert len(rows(split)) >= 200


def test_the_source_yields_the_files_row_by_row() -> None:
    given = bundled.reviews()
    for split in SPLITS:
        assert list(getattr(given, split)) == [LabelledText(row["text"], row["label"]) for row in rows(split)]


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced_in_every_domain(split: str) -> None:
    counts = Counter((row["domain"], row["label"]) for row in rows(split))
    assert set(counts) == {(domain, label) for domain in DOMAINS for label in LABELS}
    for domain in DOMAINS:
        positive, negative = counts[domain, "positive"], counts[domain, "negative"]
        assert abs(positive - negative) <= 0.05 * (positive + negative), (domain, positive, negative)
    positive = sum(row["label"] == "positive" for row in rows(split))
    assert abs(2 * positive - len(rows(split))) <= 0.02 * len(rows(split))


def test_domains_are_balanced_within_each_split() -> None:
    for split in SPLITS:
        counts = Counter(row["domain"] for row in rows(split))
        assert max(counts.values()) <= 1.5 * min(counts.values()), (split, counts)


def test_phenomena_have_both_labels_everywhere() -> None:
    for split in SPLITS:
        counts = Counter((row["phenomenon"], row["label"]) for row in rows(split))
        for phenomenon in PHENOMENA - {"irony"}:
            positive, negative = counts[phenomenon, "positive"], counts[phenomenon, "negative"]
            assert abs(positive - negative) <= 0.1 * (positive + negative), (split, phenomenon, positive, negative)


def test_there_are_enough_pairs() -> None:
    assert len(pairs()) >= 300


def test_a_pair_is_two_opinions_on_one_thing_in_one_split() -> None:
    for name, members in pairs().items():
        assert len(members) == 2, name
        (split, first), (other, second) = members
        assert split == other, name
        assert {first["label"], second["label"]} == LABELS, name
        assert first["phenomenon"] == second["phenomenon"], name
        assert first["domain"] == second["domain"] == name.rpartition("-")[0], name


def test_a_pair_differs_by_a_small_edit() -> None:
    shares = []
    for name, ((_, first), (_, second)) in pairs().items():
        left, right = set(words(first["text"])), set(words(second["text"]))
        assert left & right, name
        shares.append(len(left & right) / len(left | right))
    shares.sort()
    assert shares[len(shares) // 2] > 0.4


def test_no_text_stands_twice() -> None:
    counts = Counter(" ".join(words(row["text"])) for _, row in every())
    assert [text for text, count in counts.items() if count > 1] == []


@pytest.mark.parametrize(("what", "bound"), [("words", 0.6), ("trigrams", 0.5)])
def test_no_text_is_nearly_repeated_in_another_split(what: str, bound: float) -> None:
    texts = [(split, row["text"]) for split, row in every()]
    features: list[set[object]] = [set(words(text) if what == "words" else trigrams(text)) for _, text in texts]
    assert near(texts, features, bound) == []


def test_the_search_for_near_repetitions_finds_all_of_them() -> None:
    texts = [(split, row["text"]) for split in SPLITS for row in rows(split)[:150]]
    # Members of pairs are alike and lie in one split: calling each row a split of its own must find them.
    apart = [(str(place), text) for place, (_, text) in enumerate(texts)]
    features: list[set[object]] = [set(words(text)) for _, text in texts]
    for bound in (0.3, 0.6):
        wanted = {
            (texts[i][1], texts[j][1])
            for i, j in combinations(range(len(texts)), 2)
            if len(features[i] & features[j]) / len(features[i] | features[j]) > bound
        }
        assert wanted
        assert {(first, second) for first, second, _ in near(apart, features, bound)} == wanted


def odd(text: str) -> Iterable[str]:
    for character in text:
        kind = unicodedata.category(character)
        if kind.startswith("C") or (kind.startswith("Z") and character != " ") or character == "\ufffd":
            yield f"U+{ord(character):04X}"


def test_files_are_plain_tables_without_odd_characters() -> None:
    for split in SPLITS:
        content = (FOLDER / f"{split}.tsv").read_bytes().decode("utf-8")
        assert "\r" not in content
        assert content.endswith("\n")
        lines = content.removesuffix("\n").split("\n")
        assert lines[0].split("\t") == COLUMNS
        assert all(line.count("\t") == len(COLUMNS) - 1 for line in lines)
        assert len(lines) == len(rows(split)) + 1
        for row in rows(split):
            text = row["text"]
            assert list(odd(text)) == [], text
            assert text == unicodedata.normalize("NFC", text).strip(), text
            assert "  " not in text, text
            assert 2 <= len(words(text)) <= 80, text
            assert row["domain"] in DOMAINS
            assert row["label"] in LABELS
            assert row["phenomenon"] in PHENOMENA


def test_the_readme_gives_the_true_counts() -> None:
    readme = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    total = re.search(r"([\d,]+) English review sentences", readme)
    split = re.search(r"Three fixed splits: ([\d,]+) training, ([\d,]+) validation, ([\d,]+) test", readme)
    assert total is not None
    assert split is not None
    said = [int(number.replace(",", "")) for number in (total.group(1), *split.groups())]
    assert said == [len(every()), *(len(rows(name)) for name in SPLITS)]
    assert all(phenomenon in readme for phenomenon in PHENOMENA)
    assert all(domain in readme for domain in DOMAINS)
    assert all(f"`{column}`" in readme for column in COLUMNS)


def sharing_runs(parts: list[list[str]], length: int) -> list[tuple[str, ...]]:
    """Runs of ``length`` words that stand in two of ``parts``."""
    runs = []
    for texts in parts:
        split = [text.split() for text in texts]
        runs.append(
            {tuple(words[start : start + length]) for words in split for start in range(len(words) - length + 1)}
        )
    return [run for one, other in combinations(runs, 2) for run in one & other]


def test_the_documentation_shares_no_run_of_words_between_splits() -> None:
    splits = bundled.documentation()
    parts = [[one.text for one in part] for part in (splits.train, splits.validation, splits.test)]
    assert sharing_runs(parts, 12) == []
    assert len(sharing_runs(parts, 4)) > 50, "the check would find them"
    sizes = [sum(map(len, part)) for part in parts]
    assert sum(sizes) > 300_000
    assert all(0.08 < size / sum(sizes) < 0.12 for size in sizes[1:])
    assert all(len(part) >= 5 for part in parts)
    assert all(one.ends for part in (splits.train, splits.validation, splits.test) for one in part)


def test_no_topic_of_the_documentation_is_lost_but_in_a_longer_one() -> None:
    splits = bundled.documentation()
    held = {" ".join(text.split()) for part in (splits.train, splits.validation, splits.test) for text in
            re.split(r"\n\s*\n", "\n\n".join(one.text for one in part))}  # fmt: skip
    topics = import_module("pydoc_data.topics").topics
    paragraphs = [" ".join(one.split()) for text in topics.values() for one in re.split(r"\n\s*\n", text)]
    missing = [one for one in paragraphs if one not in held]
    assert sum(map(len, missing)) < 0.02 * sum(map(len, paragraphs))


def test_where_a_topic_goes_is_decided_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    topics = import_module("pydoc_data.topics").topics
    first = bundled.documentation()
    monkeypatch.setattr("pydoc_data.topics.topics", dict(reversed([*topics.items(), ("new", "A new topic.")])))
    second = bundled.documentation()
    for part in SPLITS:
        assert set(getattr(first, part)) <= set(getattr(second, part))
    assert second.digests()["validation"] == first.digests()["validation"]


def test_topics_that_repeat_others_are_put_together_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = " ".join(f"w{index}" for index in range(12))
    topics = {f"t{index}": f"{shared} {index} {'x' * index}" + f" {index}" * 40 for index in range(9)}
    topics |= {"inside": shared, "apart": "quite different"}
    monkeypatch.setattr("pydoc_data.topics.topics", topics)
    splits = bundled.documentation()
    found = [[one.text for one in part if "w0" in one.text] for part in (splits.train, splits.validation, splits.test)]
    assert sorted(map(len, found)) == [0, 0, 9]


def test_a_python_without_its_documentation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"installed without its documentation, pydoc_data\.topics; a complete Python"):
        bundled.documentation()
