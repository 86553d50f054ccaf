"""The query language of the search, and the rank and snippet of a matching text. Does not use the database.

A text must contain every word, in any order; "quoted words" together, in that order; a word that begins with word* ;
and no -word. Case, accents, punctuation and Unicode forms are ignored, but not sharps: search_words.py
splits both. Text in a language written without spaces is found by any part of it. Other characters are ignored: any
string is a query.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from .limits import QUERY_LIMIT, QUERY_TERMS_LIMIT, TERM_WORDS_LIMIT, WORD_LIMIT
from .search_spellings import spellings_of
from .search_words import locate_words, split_words

SNIPPET_LENGTH = 160
SNIPPET_LEAD = 40

_TOKEN = r'(-?)["“”„]([^"“”„]*)["“”„]?(\*?)|(-?)([^\s"“”„]+)'
_FULL_WIDTH_OPERATORS = str.maketrans("\uff02\uff0a\uff0d", '"*-')


@dataclass(frozen=True)
class Term:
    """A part of a query that a text must contain, or must not contain.

    A text contains it if it has one of the `spellings`, each a word or consecutive words as split_words() returns them.
    """

    spellings: tuple[str, ...]
    is_prefix: bool = False


@dataclass(frozen=True)
class Query:
    """A parsed query; without `wanted` terms it matches nothing."""

    wanted: tuple[Term, ...]
    excluded: tuple[Term, ...]

    @cached_property
    def _phrases(self) -> list[list[str]]:
        """The strings that rank() counts in the words of a text, for each wanted term."""
        return [
            [_spaced(spelling)[: -1 if term.is_prefix else None] for spelling in term.spellings] for term in self.wanted
        ]

    @cached_property
    def _whole_phrase(self) -> str:
        """All wanted terms as one phrase, or "" if there are fewer than two."""
        if len(self.wanted) < 2:
            return ""
        phrase = _spaced(" ".join(term.spellings[0] for term in self.wanted))
        return phrase[:-1] if self.wanted[-1].is_prefix else phrase

    def rank(self, texts: list[str]) -> list[float]:
        """Return the relevance of each text, higher is better; comparable only within one call.

        BM25 (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009; k1 = 1.2, b = 0.75) with equal term
        weights, because all these texts contain every term; doubled if the terms are adjacent in the order of the
        query.
        """
        average = max(1, sum(map(len, texts))) / max(1, len(texts))
        ranks = []
        for text in texts:
            words = _spaced(" ".join(split_words(text)))
            damping = 1.2 * (0.25 + 0.75 * len(text) / average)
            total = 0.0
            for phrases in self._phrases:
                count = sum(map(words.count, phrases))
                total += count * 2.2 / (count + damping)
            ranks.append(2 * total if self._whole_phrase and self._whole_phrase in words else total)
        return ranks

    def snippet(self, text: str, marks: tuple[str, str]) -> str:
        """Return the part of `text` around its first match, with `marks` before and after each match."""
        spans = _merge(self._find(text))
        start, end = 0, len(text)
        if len(text) > SNIPPET_LENGTH:
            first = spans[0][0] if spans else 0
            if first > SNIPPET_LEAD:
                # start at the beginning of a word if possible
                start = text.rfind(" ", first - 2 * SNIPPET_LEAD, first - SNIPPET_LEAD) + 1 or first - SNIPPET_LEAD
            end = min(end, start + SNIPPET_LENGTH)
            if end < len(text):
                end = max(text.rfind(" ", start + SNIPPET_LENGTH // 2, end), start + SNIPPET_LENGTH // 2)
        pieces, position = [], start
        for left, right in spans:
            if left < end:
                pieces += [text[position:left], marks[0], text[left:right], marks[1]]
                position = right
        end = max(position, end)  # do not cut a match
        excerpt = " ".join("".join([*pieces, text[position:end]]).split())
        return f"{'…' if start else ''}{excerpt}{'…' if end < len(text) else ''}"

    def _find(self, text: str) -> Iterator[tuple[int, int]]:
        words = locate_words(text)
        for term in self.wanted:
            for spelling in term.spellings:
                *others, last = spelling.split()
                for first in range(len(words) - len(others)):
                    *before, end = words[first : first + len(others) + 1]
                    is_last = end.word.startswith(last) if term.is_prefix else end.word == last
                    if is_last and [word.word for word in before] == others:
                        yield words[first].starts[0], end.ends[len(last) - 1]


def parse_query(text: str) -> Query:
    """Parse a query; any string is valid. Raises TypeError for anything but text."""
    if not isinstance(text, str):
        raise TypeError(f"query must be text, not {type(text).__name__}")
    wanted: list[Term] = []
    excluded: list[Term] = []
    for minus, part, is_prefix in _join_spellings(list(_split(_clean(text)))):
        words = split_words(part)[:TERM_WORDS_LIMIT]
        if not words or (minus and _has_long_word(words)):
            continue
        if _has_long_word(words):
            return Query((), ())
        term = _term(" ".join(words), is_prefix)
        terms = excluded if minus else wanted
        if term not in terms and len(wanted) + len(excluded) < QUERY_TERMS_LIMIT:
            terms.append(term)
    return Query(tuple(wanted), tuple(excluded))


def _clean(text: str) -> str:
    """Replace NUL and lone surrogates, which the databases refuse, and the full-width forms of the operators."""
    text = text[:QUERY_LIMIT].replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
    return text.translate(_FULL_WIDTH_OPERATORS)


def _split(text: str) -> Iterator[tuple[bool, str, bool]]:
    """Yield the parts of a query: whether a part is excluded, its words, and whether the last word is a prefix."""
    for match in re.finditer(_TOKEN, text):
        phrase_minus, phrase, star, minus, word = match.groups()
        if word is None:
            yield bool(phrase_minus), phrase, bool(star)
        else:
            yield bool(minus), word, word.endswith("*")


def _join_spellings(parts: list[tuple[bool, str, bool]]) -> Iterator[tuple[bool, str, bool]]:
    """Merge adjacent words that name one genre or tempo: hip hop also finds hiphop, drum & bass also finds dnb."""
    start = 0
    while start < len(parts):
        for count in (3, 2):
            some = parts[start : start + count]
            words = split_words(" ".join(text for _, text, _ in some))
            # Two words only if they are also written as one word: drum bass may mean both instruments.
            spellings = spellings_of(" ".join(words) if count == 3 else "".join(words))
            is_plain = len(some) == count and not any(minus or star for minus, _, star in some)
            if is_plain and len(words) > 1 and spellings:
                yield False, " ".join(words), False
                break
        else:
            count = 1
            yield parts[start]
        start += count


def _term(words: str, is_prefix: bool) -> Term:
    others = () if is_prefix else (other for other in spellings_of(words) if other != words)
    return Term((words, *others), is_prefix)


def _has_long_word(words: list[str]) -> bool:
    return any(len(word) > WORD_LIMIT for word in words)


def _spaced(words: str) -> str:
    """Return the words, each with its own space on both sides, so that counting " word " finds adjacent ones too."""
    return f" {words.replace(' ', '  ')} " if words else ""


def _merge(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
