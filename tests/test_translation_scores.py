"""The scores of translations: worked numbers, an independent multi-bleu, and sums of parts."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import corpus_bleu, corpus_chrf, corpus_ter

from seqapp.metrics import Metric
from seqapp.translation_scores import DEFINITIONS, LengthRow, Translations, moses_tokens

GERMAN = ("en", "de")
SENTENCE = st.lists(st.sampled_from(["ein", "Ein", "Mann", "läuft", "schnell", ",", ".", '"', "l'eau"]), max_size=9)
PAIRS = st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=6)


def translations(hypotheses: list[str], references: list[str], languages: tuple[str, str] = GERMAN) -> Translations:
    return Translations(tuple(references), tuple(hypotheses), tuple(references), languages)


def multi_bleu(hypotheses: list[list[str]], references: list[list[str]]) -> float:
    """BLEU-4 of tokens, from its definition (Papineni et al. 2002, section 2.3)."""
    right, total = Counter[int](), Counter[int]()
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        for n in range(1, 5):
            said, wanted = (Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
                            for tokens in (hypothesis, reference))  # fmt: skip
            right[n] += sum((said & wanted).values())
            total[n] += sum(said.values())
    if not all(right[n] for n in range(1, 5)):
        return 0.0
    h, r = sum(map(len, hypotheses)), sum(map(len, references))
    brevity = min(1.0, math.exp(1 - r / h))
    return 100 * brevity * math.prod(right[n] / total[n] for n in range(1, 5)) ** 0.25


def test_bleu_by_hand() -> None:
    # 7 tokens against 8; 6 of 7 words, 4 of 6 pairs, 3 of 5 triples and 2 of 4 quadruples are right.
    scores = translations(["a b c d e x g"], ["a b c d e f g h"]).scores()
    wanted = 100 * math.exp(1 - 8 / 7) * (6 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25
    assert scores["bleu"] == pytest.approx(wanted)
    assert scores["bleu_lowercased"] == pytest.approx(wanted)
    # One word replaced and one left out, of eight.
    assert scores["ter"] == pytest.approx(100 * 2 / 8)


def test_a_word_counts_as_often_as_it_stands_in_the_reference() -> None:
    # The worked example of Papineni et al. 2002, section 2.1, with words around it so that all orders have a match.
    scores = translations(["the the the the the the the", "a b c d"], ["the cat is on the mat now", "a b c d"]).scores()
    assert scores["bleu_lowercased"] == pytest.approx(100 * ((2 + 4) / 11 * (0 + 3) / 9 * 2 / 7 * 1 / 5) ** 0.25)


def test_a_perfect_translation() -> None:
    texts = ["Ein Mann läuft schnell.", "Er sagte: „Nein, danke!“"]
    assert translations(texts, texts).scores() == pytest.approx(
        {"bleu": 100, "chrf": 100, "ter": 0, "bleu_lowercased": 100}
    )


def test_a_long_translation_is_not_punished_by_its_length_alone() -> None:
    longer = translations(["a b c d e f"], ["a b c d"]).scores()["bleu_lowercased"]
    assert longer == pytest.approx(100 * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


@pytest.mark.parametrize(
    ("language", "raw", "tokenised"),
    [
        # From the raw and the tokenised files of test_2016_flickr, as its makers published them, with &quot; as ".
        ("de", 'Eine Frau hält einen großen Scheck für "Kids\' Food Basket".',
         "eine frau hält einen großen scheck für \" kids ' food basket \" ."),
        ("de", 'Ein Jugendlicher in einem schwarzen T-Shirt mit dem Aufdruck "Asian Pacific 2007" sitzt.',
         'ein jugendlicher in einem schwarzen t-shirt mit dem aufdruck " asian pacific 2007 " sitzt .'),
        ("de", "Zwei Mädchen (eine in Blau und die andere in Pink) liefern sich ein Rennen auf Rollschuhen.",
         "zwei mädchen ( eine in blau und die andere in pink ) liefern sich ein rennen auf rollschuhen ."),
        ("fr", 'Un homme passe devant un grand panneau où est écrit "E.S.E. Electronics".',
         'un homme passe devant un grand panneau où est écrit " e.s.e. electronics " .'),
        ("fr", 'Une femme sur un bateau nommé "El Corazon" lâche des poids noirs dans l\'eau.',
         'une femme sur un bateau nommé " el corazon " lâche des poids noirs dans l\' eau .'),
    ],
)  # fmt: skip
def test_tokens_are_those_of_the_multi30k_papers(language: str, raw: str, tokenised: str) -> None:
    assert moses_tokens(raw, language) == tokenised
    assert moses_tokens(raw, f"{language}-CH") == tokenised
    assert translations([raw.lower()], [raw], ("en", language)).scores()["bleu_lowercased"] == pytest.approx(100)


def test_where_the_two_bleus_differ() -> None:
    def both(hypothesis: str, reference: str, language: str = "de") -> tuple[float, float]:
        scores = translations([hypothesis], [reference], ("en", language)).scores()
        return scores["bleu"], scores["bleu_lowercased"]

    for right in (
        both("ein mann läuft schnell", "Ein Mann läuft schnell"),
        both('Er rief: "Nein, danke!"', "Er rief: „Nein, danke!“"),
    ):
        assert right[0] < 99
        assert right[1] == pytest.approx(100)
    cut = both("Er lebt in den U . S .", "Er lebt in den U.S.")
    assert cut[0] == pytest.approx(100)
    assert cut[1] < 99
    # For 13a "l'air" is one token, and of 3 quadruples none is right, which "exp" counts as half of one.
    water = both("Il boit de l'air pur ici", "Il boit de l'eau pure ici", "fr")
    assert water[0] == pytest.approx(100 * (4 / 6 * 2 / 5 * 1 / 4 * 0.5 / 3) ** 0.25)
    assert water[1] == pytest.approx(100 * (5 / 7 * 3 / 6 * 2 / 5 * 1 / 4) ** 0.25)
    assert both("a b c x d e f", "a b c d e f")[1] == 0


@given(pairs=PAIRS, cut=st.integers(0, 6))
def test_lowercased_bleu_is_multi_bleu_and_the_others_are_sacrebleus(
    pairs: list[tuple[list[str], list[str]]], cut: int
) -> None:
    hypotheses, references = ([" ".join(side) for side in sides] for sides in zip(*pairs, strict=True))
    whole = translations(hypotheses, references)
    scores = whole.scores()
    tokens = [[moses_tokens(text, "de").split() for text in side] for side in (hypotheses, references)]
    assert scores["bleu_lowercased"] == pytest.approx(multi_bleu(*tokens))
    assert scores["bleu"] == pytest.approx(corpus_bleu(hypotheses, [references]).score)
    assert scores["chrf"] == pytest.approx(corpus_chrf(hypotheses, [references]).score)
    assert scores["ter"] == pytest.approx(corpus_ter(hypotheses, [references]).score)
    joined = translations(hypotheses[:cut], references[:cut]) + translations(hypotheses[cut:], references[cut:])
    assert joined == whole
    assert joined.scores() == scores


def test_it_is_a_metric_that_sums_its_parts_not_their_scores() -> None:
    good, bad = translations(["a b c d e"], ["a b c d e"]), translations(["v w"], ["a b c d e"])
    assert isinstance(good, Metric)
    assert (good.scores()["bleu"], bad.scores()["bleu"]) == pytest.approx((100, 0))
    assert (good + bad).scores()["bleu"] == pytest.approx(100 * math.exp(1 - 10 / 7) * (5 / 7 * 4 / 5) ** 0.25)
    found = good.scores()
    found.clear()
    assert good.scores()["bleu"] == pytest.approx(100)


def test_nothing_to_score() -> None:
    nothing = Translations((), (), (), GERMAN)
    assert list(nothing.scores()) == list(DEFINITIONS)
    assert all(math.isnan(value) for value in nothing.scores().values())
    assert nothing.by_length() == []
    assert translations([""], ["a b"]).scores() == {"bleu": 0, "chrf": 0, "ter": 100, "bleu_lowercased": 0}
    assert translations(["a b"], [""]).scores()["bleu"] == 0
    (row,) = translations(["a b"], [""]).by_length()
    assert math.isnan(row.ratio)
    some = translations(["a b c d", ""], ["a b c d", "e"]).scores()
    assert some["bleu"] == pytest.approx(100 * math.exp(1 - 5 / 4))


def test_details_say_which_figure_is_which() -> None:
    details = translations(["a"], ["b"]).details()
    assert details["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.")
    assert details["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.")
    assert details["ter"].startswith("nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:2.")
    assert "Moses" in details["bleu_lowercased"]
    assert "language de), multi-bleu|nrefs:1|case:mixed|eff:no|tok:none|smooth:none" in details["bleu_lowercased"]
    assert Translations((), (), (), GERMAN).details() == details


def test_bleu_by_length() -> None:
    sources = ["one", "a b c d e", "a b c d e f", "g h i j k l m", " ".join(["word"] * 31)]
    hypotheses = ["a b c d", "a b c x", "a b c d", "a b", "a b c d e f"]
    references = ["a b c d", "a b c d", "a b c d", "a b c d", "a b c d"]
    rows = Translations(tuple(sources), tuple(hypotheses), tuple(references)).by_length()
    assert [(row.words, row.sentences) for row in rows] == [("1-5", 2), ("6-10", 2), ("31+", 1)]
    assert [row.ratio for row in rows] == [1.0, 6 / 8, 6 / 4]
    assert rows[0].bleu == pytest.approx(100 * (7 / 8 * 5 / 6 * 3 / 4 * 1 / 2) ** 0.25)
    assert rows[1].bleu == pytest.approx(100 * math.exp(1 - 8 / 6))
    rows = Translations(tuple(sources), tuple(hypotheses), tuple(references)).by_length(edges=(1, 5))
    assert [(row.words, row.sentences) for row in rows] == [("1", 1), ("2-5", 1), ("6+", 3)]


def test_all_lengths_in_one_row_are_the_corpus() -> None:
    chance = random.Random(3)
    texts = [" ".join(chance.choices("abcdef", k=chance.randint(1, 40))) for _ in range(40)]
    corpus = Translations(tuple(texts), tuple(texts[1:] + texts[:1]), tuple(texts))
    (row,) = corpus.by_length(edges=())
    assert row == LengthRow("1+", 40, corpus.scores()["bleu"], 1.0)
    assert sum(row.sentences for row in corpus.by_length()) == 40


@pytest.mark.parametrize("edges", [(0, 5), (5, 5), (10, 5), (-1,)])
def test_edges_rise(edges: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not rise"):
        translations(["a"], ["b"]).by_length(edges)


def test_what_does_not_fit_together() -> None:
    with pytest.raises(ValueError, match="1 sources, 2 hypotheses and 1 references; equally many fit"):
        Translations(("a",), ("b", "c"), ("d",))
    with pytest.raises(ValueError, match="those of one pair of languages fit"):
        translations(["a"], ["b"]) + translations(["a"], ["b"], ("en", "fr"))
