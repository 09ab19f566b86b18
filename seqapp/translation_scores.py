"""How good translations are: BLEU in two definitions, chrF and TER of a whole corpus, and BLEU by sentence length.

N sentences. BLEU, chrF and TER are percentages: 100 is a perfect BLEU or chrF, 0 a perfect TER, and TER may pass 100.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import Any

import numpy
from sacrebleu.metrics.base import Metric as SacreMetric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from seqapp.outcomes import Outcomes

EDGES = (5, 10, 15, 20, 25, 30)
"""The longest source of each row of :meth:`Translations.by_length`, in words; one more row holds what is longer."""
DEFINITIONS: dict[str, SacreMetric] = {
    "bleu": BLEU(tokenize="13a", force=True),
    "chrf": CHRF(),
    "ter": TER(),
    "bleu_lowercased": BLEU(tokenize="none", smooth_method="none", force=True),
}
"""Score -> how it is computed; that of ``bleu_lowercased`` reads tokens."""
_COLUMNS = (
    "said",
    "expected",
    *(f"right_{order}" for order in range(1, 5)),
    *(f"all_{order}" for order in range(1, 5)),
)


@dataclass(frozen=True)
class LengthRow:
    """The sentences whose source is about as long.

    Args:
        words: the range of source lengths in words split at white space, such as "6-10" or "31+".
        sentences: how many there are; at least 1.
        bleu: as ``bleu`` of :class:`Translations`, of these alone.
        ratio: length of the hypotheses over that of the references, in the tokens of ``bleu``: below 1 they are short.
            NaN where the references are empty.
    """

    words: str
    sentences: int
    bleu: float
    ratio: float


@dataclass(frozen=True)
class Translations:
    """Translations beside the references, from which every score of a corpus is read; a :class:`seqapp.metrics.Metric`.

    LAW: parts joined by ``+`` are equal to the whole, and so are their scores: BLEU is no mean over sentences.

    ``bleu``: BLEU (Papineni et al. 2002) as sacreBLEU gives it on the raw texts: tokenizer 13a, mixed case, orders 1 to
    4, "exp" smoothing, one reference (Post 2018). ``chrf``: chrF2, character n-grams of orders 1 to 6, no word n-grams
    (Popović 2015). ``ter``: edits of words and shifts of phrases over reference words, lower-cased (Snover et al.
    2006). ``bleu_lowercased``: the figure of the Multi30k papers. Hypothesis and reference are lower-cased, then
    punctuation is normalised, then they are tokenised, as by Moses' ``lowercase.perl | normalize-punctuation.perl -l L
    | tokenizer.perl -l L`` with L the target language, dashes inside words kept; then BLEU-4 as in ``multi-bleu.perl``:

        BLEU = min(1, exp(1 - r / h)) (p_1 p_2 p_3 p_4)^(1/4)

    with r and h the tokens of references and hypotheses, and p_n the share of the hypotheses' n-grams that stand in
    their references, each counted as often as there at most. It differs from ``bleu`` in case (a wrong capital letter
    costs nothing), in tokens (13a cuts ``U.S.`` and keeps ``l'eau``, Moses the other way round), in punctuation (the
    quotation marks of all languages are the same), and where some p_n is 0: it is 0 then, while ``bleu`` is smoothed.
    Neither follows from the other: give both, with :meth:`details`. Where no hypothesis has four tokens both are 0,
    even if all are right.

    Args:
        sources: N texts.
        hypotheses: N translations of them; an empty one counts as a translation of no tokens.
        references: N right translations.
        languages: of sources and references, codes as in BCP 47, such as ("en", "de"); "" where none is known, which is
            tokenised with the abbreviations of English.

    Raises:
        ValueError: if the three are not equally many.
    """

    sources: tuple[str, ...]
    hypotheses: tuple[str, ...]
    references: tuple[str, ...]
    languages: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        if not len(self.sources) == len(self.hypotheses) == len(self.references):
            raise ValueError(f"{len(self.sources)} sources, {len(self.hypotheses)} hypotheses and "
                             f"{len(self.references)} references; equally many fit")  # fmt: skip

    def __add__(self, other: Translations) -> Translations:
        if self.languages != other.languages:
            raise ValueError(f"translations of {self.languages} and of {other.languages} have no score together; "
                             f"those of one pair of languages fit")  # fmt: skip
        return Translations(
            self.sources + other.sources,
            self.hypotheses + other.hypotheses,
            self.references + other.references,
            self.languages,
        )

    def scores(self) -> dict[str, float]:
        """``bleu``, ``chrf``, ``ter`` and ``bleu_lowercased``, computed once; each NaN where there is no sentence."""
        return dict(self._scores)

    @cached_property
    def _scores(self) -> dict[str, float]:
        if not self.sources:
            return dict.fromkeys(DEFINITIONS, float("nan"))
        language = self.languages[1]
        raw = (self.hypotheses, self.references)
        tokens = tuple([moses_tokens(text, language) for text in side] for side in raw)
        return {
            name: float(_score(name, *(tokens if name == "bleu_lowercased" else raw)).score) for name in DEFINITIONS
        }

    def outcomes(self) -> Outcomes:
        """What each sentence adds to ``bleu``: tokens, right n-grams and n-grams, of orders 1 to 4."""
        found = [_score("bleu", [said], [right]) for said, right in zip(self.hypotheses, self.references, strict=True)]
        rows = [[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in found]
        return Outcomes(_COLUMNS, {"bleu": ("bleu", *_COLUMNS)}, numpy.array(rows, float).reshape(-1, len(_COLUMNS)))

    def details(self) -> dict[str, str]:
        """Score -> its definition: sacreBLEU's signature, and before it what else was done to the texts."""
        for name in DEFINITIONS:
            # A metric of sacreBLEU knows how many references there are once it has seen some.
            _score(name, [""], [""])
        signatures = {name: str(metric.get_signature()) for name, metric in DEFINITIONS.items()}
        language = _primary(self.languages[1]) or "unknown"
        before = f"lower-cased, Moses punctuation and tokens (sacremoses {version('sacremoses')}, language {language})"
        return {**signatures, "bleu_lowercased": f"{before}, multi-bleu|{signatures['bleu_lowercased']}"}

    def by_length(self, edges: Sequence[int] = EDGES) -> list[LengthRow]:
        """BLEU over the length of the source, shortest first; a row without sentences is left out.

        Args:
            edges: the longest source of each row, in words, rising; one more row holds what is longer.

        Raises:
            ValueError: if the edges do not rise from 1 or more.
        """
        bounds = [0, *edges]
        if any(low >= high for low, high in zip(bounds, edges, strict=False)):
            raise ValueError(f"edges {list(edges)} do not rise; such as {list(EDGES)} fits")
        names = [f"{low + 1}-{high}" if low + 1 < high else str(high) for low, high in zip(bounds, edges, strict=False)]
        rows: dict[str, list[int]] = {name: [] for name in (*names, f"{bounds[-1] + 1}+")}
        for index, source in enumerate(self.sources):
            rows[list(rows)[bisect_left(edges, len(source.split()))]].append(index)
        return [self._row(name, row) for name, row in rows.items() if row]

    def _row(self, words: str, row: Sequence[int]) -> LengthRow:
        bleu = _score("bleu", *([side[index] for index in row] for side in (self.hypotheses, self.references)))
        ratio = bleu.sys_len / bleu.ref_len if bleu.ref_len else float("nan")
        return LengthRow(words, len(row), float(bleu.score), ratio)


def moses_tokens(text: str, language: str) -> str:
    """``text`` lower-cased, punctuation-normalised and tokenised as by Moses, tokens apart by one space.

    That is how the tokenised files of Multi30k were made (its ``scripts/task1-tokenize.sh``), but that ``"`` and its
    like are not written as ``&quot;``, which changes no count.

    Args:
        text: raw.
        language: of it, a code as in BCP 47, of which the first part counts.
    """
    normalizer, tokenizer = _moses(_primary(language))
    return str(tokenizer.tokenize(normalizer.normalize(text.lower()), return_str=True, escape=False))


@lru_cache(maxsize=8)
def _moses(language: str) -> tuple[Any, Any]:
    # A fifth of a second, which a server that scores nothing need not wait for.
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    return MosesPunctNormalizer(language), MosesTokenizer(language)


def _primary(language: str) -> str:
    return language.partition("-")[0].lower()


def _score(name: str, hypotheses: Sequence[str], references: Sequence[str]) -> Any:
    return DEFINITIONS[name].corpus_score(hypotheses, [references])
