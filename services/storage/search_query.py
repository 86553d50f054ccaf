"""The query language of the search, and the rank and snippet of a matching text. Does not use the database.

A text must contain every word, in any order; "quoted words" together, in that order; a word that begins with word* ;
and no -word. Case, accents and punctuation are ignored, but not sharps. Text in a language written without spaces, and
the words in a query with such text, are searched as substrings. Other characters are ignored: any string is a query.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

TERMS_LIMIT = 32
WORDS_LIMIT = 32
QUERY_LIMIT = 10_000
WORD_LIMIT = 255  # PostgreSQL does not index words over 2,046 bytes
SNIPPET_LENGTH = 160
SNIPPET_LEAD = 40

# Thai to Khmer, kana, Han, Hangul: the ranges of the partial index idx_prompts_unspaced.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0002ffff"
)

# The spellings of a genre; a hyphen or an ampersand counts as a space.
SPELLINGS = (
    ("lofi", "lo fi"),
    ("hiphop", "hip hop"),
    ("rnb", "r b", "r n b"),
    ("dnb", "drum bass", "drum n bass", "drum and bass"),
    ("synthwave", "synth wave"),
    ("chillwave", "chill wave"),
    ("boombap", "boom bap"),
    ("breakbeat", "break beat"),
)

_TOKEN = re.compile(r'(-?)["“”„]([^"“”„]*)["“”„]?(\*?)|(-?)([^\s"“”„]+)')
_UNSPACED = re.compile(f"[{UNSPACED}]")
_SHARP = re.compile(r"(?<![^\W_])[A-Ga-g][#♯][^\W_]*")
_WORD = re.compile(r"[^\W_]+")
_TEMPO = re.compile(r"(\d{1,3}) ?bpm", re.ASCII)
FOLDED = {"♯": "#", "\N{GREEK SMALL LETTER FINAL SIGMA}": "\N{GREEK SMALL LETTER SIGMA}"}
_ASCII_PUNCTUATION = {code: " " for code in range(128) if not chr(code).isalnum()}
_ALTERNATIVES = {spelling: group for group in SPELLINGS for spelling in group}


@dataclass(frozen=True)
class Term:
    """A part of a query that a text must contain, or must not contain.

    A text contains it if it has one of the `spellings`, each a word or consecutive words, and one substring of each
    tuple in `literals`, ignoring case. A term in a language without spaces, or in a query with one, has no spellings.
    """

    spellings: tuple[str, ...]
    literals: tuple[tuple[str, ...], ...] = ()
    is_prefix: bool = False


@dataclass(frozen=True)
class Query:
    """A parsed query; without `wanted` terms it matches nothing."""

    wanted: tuple[Term, ...]
    excluded: tuple[Term, ...]

    @property
    def is_literal(self) -> bool:
        """Whether it searches text in a language without spaces, for which an index of words is no use."""
        return not all(term.spellings for term in self.wanted)

    @cached_property
    def _phrases(self) -> list[tuple[list[str], list[str]]]:
        """The strings that rank() counts for each wanted term: in the words of the text, and in the whole text."""
        counted = []
        for term in self.wanted:
            words = [_as_words(spelling)[: -1 if term.is_prefix else None] for spelling in term.spellings]
            literals = () if term.spellings else (literal for any_of in term.literals for literal in any_of)
            counted.append((list(filter(None, words)), list(filter(None, map(_fold, literals)))))
        return counted

    @cached_property
    def _whole_phrase(self) -> str:
        """All wanted terms as one phrase, or "" if there are fewer than two or some are literals."""
        if len(self.wanted) < 2 or not all(term.spellings for term in self.wanted):
            return ""
        phrase = _as_words(" ".join(term.spellings[0] for term in self.wanted))
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
            folded, words = _fold(text), _as_words(text)
            damping = 1.2 * (0.25 + 0.75 * len(text) / average)
            total = 0.0
            for phrases, literals in self._phrases:
                count = sum(map(words.count, phrases)) + sum(map(folded.count, literals))
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
        folded, origin = _fold_with_origin(text)
        for term in self.wanted:
            patterns = [re.escape(_fold(literal)) for any_of in term.literals for literal in any_of]
            if not patterns:
                patterns = [_pattern(spelling, term.is_prefix) for spelling in term.spellings]
            for pattern in patterns:
                yield from ((origin[m.start()], origin[m.end()]) for m in re.finditer(pattern, folded) if m.group())


def parse_query(text: str) -> Query:
    """Parse a query; any string is valid. Raises TypeError for anything but text."""
    if not isinstance(text, str):
        raise TypeError(f"query must be text, not {type(text).__name__}")
    parts = list(_join_spellings(list(_split(_clean(text)))))
    # In text without spaces, Latin words have no spaces around them either: lofi in 夜のlofi.
    unspaced = any(_UNSPACED.search(words) for minus, words, _ in parts if not minus)
    wanted: list[Term] = []
    excluded: list[Term] = []
    for minus, words, is_prefix in parts:
        term = _literal_term(words) if unspaced or _UNSPACED.search(words) else _term(words, is_prefix)
        if term is None:
            if not minus and any(len(word) > WORD_LIMIT for word in _words(words)):
                return Query((), ())
            continue
        terms = excluded if minus else wanted
        if term not in terms and len(wanted) + len(excluded) < TERMS_LIMIT:
            terms.append(term)
    return Query(tuple(wanted), tuple(excluded))


def _clean(text: str) -> str:
    """Replace characters that the databases refuse in a query: NUL and lone surrogates."""
    return text[:QUERY_LIMIT].replace("\0", " ").encode("utf-8", "replace").decode("utf-8")


def _split(text: str) -> Iterator[tuple[bool, str, bool]]:
    """Yield the parts of a query: whether a part is excluded, its words, and whether the last word is a prefix."""
    for match in _TOKEN.finditer(text):
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
            words = _words(" ".join(text for _, text, _ in some))
            # Two words only if they are also written as one word: drum bass may mean both instruments.
            spellings = _alternatives(" ".join(words) if count == 3 else "".join(words))
            is_plain = len(some) == count and not any(minus or star for minus, _, star in some)
            if is_plain and len(words) > 1 and spellings:
                yield False, " ".join(words), False
                break
        else:
            count = 1
            yield parts[start]
        start += count


def _literal_term(text: str) -> Term | None:
    """Return the term for text in a language without spaces, or in a query with such text."""
    words = " ".join(_words(text))
    literal = unicodedata.normalize("NFC", text.strip("*").strip())[:WORD_LIMIT]
    # SQLite ignores case for ASCII only.
    cases = () if literal.isascii() else (literal.lower(), literal.upper(), literal.title())
    others = (*cases, literal.replace("♯", "#"), literal.replace("#", "♯"), *_alternatives(words))
    return Term((), (tuple(dict.fromkeys((literal, *others))),)) if words else None


def _term(text: str, is_prefix: bool) -> Term | None:
    words = _words(text)[:WORDS_LIMIT]
    if not words or any(len(word) > WORD_LIMIT for word in words):
        return None
    notes = list(dict.fromkeys(match.group().replace("♯", "#") for match in _SHARP.finditer(text)))
    sharps = tuple((note, note.replace("#", "♯")) for note in notes[:WORDS_LIMIT])
    # Text beyond ASCII is passed as it is: each database splits it as it split the indexed texts.
    spelling = " ".join(words) if text.isascii() else text[: QUERY_LIMIT // 10].rstrip("*")
    others = () if is_prefix else tuple(other for other in _alternatives(spelling) if other != spelling)
    return Term((spelling, *others), sharps, is_prefix)


def _alternatives(words: str) -> tuple[str, ...]:
    """Return all spellings of the genre or tempo that `words` name, or ()."""
    if tempo := _TEMPO.fullmatch(words):
        return f"{tempo[1]} bpm", f"{tempo[1]}bpm"
    return _ALTERNATIVES.get(words, ())


def _words(text: str) -> list[str]:
    """Return the words of a text, folded."""
    if text.isascii():
        return text.lower().translate(_ASCII_PUNCTUATION).split()
    return _WORD.findall(_fold(text))


def _pattern(spelling: str, is_prefix: bool) -> str:
    words = r"[\W_]+".join(map(re.escape, _words(spelling)))
    return rf"(?<![^\W_]){words}" if is_prefix else rf"(?<![^\W_]){words}(?![^\W_])"


def _as_words(text: str) -> str:
    """Return the words, each with its own space on both sides, so that counting " word " finds adjacent ones too."""
    words = "  ".join(_words(text))
    return f" {words} " if words else ""


def _fold(text: str) -> str:
    return _fold_with_origin(text)[0]


def _fold_with_origin(text: str) -> tuple[str, Sequence[int]]:
    """Return `text` in lower case without Latin accents, and the original index of each character and of the end."""
    if text.isascii():
        return text.lower(), range(len(text) + 1)
    folded: list[str] = []
    origin: list[int] = []
    for position, character in enumerate(text):
        base = _fold_character(character)
        folded.append(base)
        origin += [position] * len(base)
    return "".join(folded), [*origin, len(text)]


def _fold_character(character: str) -> str:
    if character.isascii():
        return character.lower()
    if character in FOLDED:
        return FOLDED[character]
    if "\u0300" <= character <= "\u036f":
        return ""
    first = unicodedata.normalize("NFD", character)[0]
    return first.lower() if first.isascii() else character.lower()[:1]


def _merge(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
