"""What a search asks for and how well a text answers: the query language, folding, rank and snippets. Pure.

Words all have to be there, in any order; "quoted words" in this order, together; word* begins a word; -word must not be
there. Case, accents and punctuation do not count, but sharps do. Text in a language written without spaces is looked
for as it stands, and so are the words beside it. Anything else in a query is ignored, so every string is one.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

TERMS_LIMIT = 32
WORDS_LIMIT = 32
QUERY_LIMIT = 10_000
WORD_LIMIT = 255  # PostgreSQL indexes no word of more than 2,046 bytes
SNIPPET_LENGTH = 160
SNIPPET_LEAD = 40

# Thai to Khmer, kana, Han, Hangul: revision 008 has the same ranges in its partial index.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0002ffff"
)

# One genre, more than one way to write it; a hyphen or an ampersand counts as a space.
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
    """One thing the text must have, or must not.

    Any of `spellings` will do, each one word or several in a row; of every tuple in `literals`, one has to stand in the
    text as it is, but for case. A term without spellings is text in a language without spaces, or beside such text.
    """

    spellings: tuple[str, ...]
    literals: tuple[tuple[str, ...], ...] = ()
    is_prefix: bool = False


@dataclass(frozen=True)
class Query:
    """What a search asks for; without `wanted` it finds nothing."""

    wanted: tuple[Term, ...]
    excluded: tuple[Term, ...]

    @property
    def is_literal(self) -> bool:
        """Whether it looks for text in a language without spaces, which no index of words can find."""
        return not all(term.spellings for term in self.wanted)

    @cached_property
    def _phrases(self) -> list[tuple[list[str], list[str]]]:
        """What to count for each wanted term: in the words of the text, and in the text itself."""
        counted = []
        for term in self.wanted:
            words = [_as_words(spelling)[: -1 if term.is_prefix else None] for spelling in term.spellings]
            literals = () if term.spellings else (literal for any_of in term.literals for literal in any_of)
            counted.append((list(filter(None, words)), list(filter(None, map(_fold, literals)))))
        return counted

    @cached_property
    def _together(self) -> str:
        if len(self.wanted) < 2 or not all(term.spellings for term in self.wanted):
            return ""
        whole = _as_words(" ".join(term.spellings[0] for term in self.wanted))
        return whole[:-1] if self.wanted[-1].is_prefix else whole

    def rank(self, texts: list[str]) -> list[float]:
        """Return how relevant each text is: the higher the better, comparable within one call.

        BM25 (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009; k1 = 1.2, b = 0.75) with the same
        weight for every term, because each of these texts has them all; doubled where the terms stand together in the
        order asked.
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
            ranks.append(2 * total if self._together and self._together in words else total)
        return ranks

    def snippet(self, text: str, marks: tuple[str, str]) -> str:
        """Return the part of `text` around its first match, every match in it between the two `marks`."""
        spans = _merge(self._find(text))
        start, end = 0, len(text)
        if len(text) > SNIPPET_LENGTH:
            first = spans[0][0] if spans else 0
            if first > SNIPPET_LEAD:
                # at the beginning of a word, where there is one
                start = text.rfind(" ", first - 2 * SNIPPET_LEAD, first - SNIPPET_LEAD) + 1 or first - SNIPPET_LEAD
            end = min(end, start + SNIPPET_LENGTH)
            if end < len(text):
                end = max(text.rfind(" ", start + SNIPPET_LENGTH // 2, end), start + SNIPPET_LENGTH // 2)
        pieces, at = [], start
        for left, right in spans:
            if left < end:
                pieces += [text[at:left], marks[0], text[left:right], marks[1]]
                at = right
        end = max(at, end)  # a match is never cut
        shown = " ".join("".join([*pieces, text[at:end]]).split())
        return f"{'…' if start else ''}{shown}{'…' if end < len(text) else ''}"

    def _find(self, text: str) -> Iterator[tuple[int, int]]:
        folded, origin = _fold_with_origin(text)
        for term in self.wanted:
            patterns = [re.escape(_fold(literal)) for any_of in term.literals for literal in any_of]
            if not patterns:
                patterns = [_pattern(spelling, term.is_prefix) for spelling in term.spellings]
            for pattern in patterns:
                yield from ((origin[m.start()], origin[m.end()]) for m in re.finditer(pattern, folded) if m.group())


def parse_query(text: str) -> Query:
    """Return what `text` asks for; any string is a query. Raises TypeError for anything but text."""
    if not isinstance(text, str):
        raise TypeError(f"query must be text, not {type(text).__name__}")
    parts = list(_join_spellings(list(_split(_clean(text)))))
    # In a text without spaces a Latin word stands between others too: lofi in 夜のlofi.
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
    """Drop what neither database can be asked for: NUL and lone surrogates."""
    return text[:QUERY_LIMIT].replace("\0", " ").encode("utf-8", "replace").decode("utf-8")


def _split(text: str) -> Iterator[tuple[bool, str, bool]]:
    """Yield each part of a query: whether it is unwanted, its words, and whether the last of them is a beginning."""
    for match in _TOKEN.finditer(text):
        phrase_minus, phrase, star, minus, word = match.groups()
        if word is None:
            yield bool(phrase_minus), phrase, bool(star)
        else:
            yield bool(minus), word, word.endswith("*")


def _join_spellings(parts: list[tuple[bool, str, bool]]) -> Iterator[tuple[bool, str, bool]]:
    """Make one part of the words that are one genre or tempo: hip hop finds hiphop too, drum & bass finds dnb."""
    start = 0
    while start < len(parts):
        for count in (3, 2):
            some = parts[start : start + count]
            words = _words(" ".join(text for _, text, _ in some))
            # Two words only where they are also written as one: whoever asks for drum bass may mean both.
            known = _alternatives(" ".join(words) if count == 3 else "".join(words))
            plain = len(some) == count and not any(minus or star for minus, _, star in some)
            if plain and len(words) > 1 and known:
                yield False, " ".join(words), False
                break
        else:
            count = 1
            yield parts[start]
        start += count


def _literal_term(text: str) -> Term | None:
    """Return the term for text in a language without spaces, or beside such text."""
    words = " ".join(_words(text))
    literal = unicodedata.normalize("NFC", text.strip("*").strip())[:WORD_LIMIT]
    # SQLite folds the case of ASCII only.
    cases = () if literal.isascii() else (literal.lower(), literal.upper(), literal.title())
    others = (*cases, literal.replace("♯", "#"), literal.replace("#", "♯"), *_alternatives(words))
    return Term((), (tuple(dict.fromkeys((literal, *others))),)) if words else None


def _term(text: str, is_prefix: bool) -> Term | None:
    words = _words(text)[:WORDS_LIMIT]
    if not words or any(len(word) > WORD_LIMIT for word in words):
        return None
    notes = list(dict.fromkeys(match.group().replace("♯", "#") for match in _SHARP.finditer(text)))
    sharps = tuple((note, note.replace("#", "♯")) for note in notes[:WORDS_LIMIT])
    # Beyond ASCII each index knows best what its words are.
    plain = " ".join(words) if text.isascii() else text[: QUERY_LIMIT // 10].rstrip("*")
    others = () if is_prefix else tuple(other for other in _alternatives(plain) if other != plain)
    return Term((plain, *others), sharps, is_prefix)


def _alternatives(words: str) -> tuple[str, ...]:
    """Return every way to write the genre or tempo that `words` are, or nothing."""
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
    """Return the words with a space on both sides of each, so that counting " word " finds neighbours too."""
    words = "  ".join(_words(text))
    return f" {words} " if words else ""


def _fold(text: str) -> str:
    return _fold_with_origin(text)[0]


def _fold_with_origin(text: str) -> tuple[str, Sequence[int]]:
    """Return `text` without case and Latin accents, and where each of its characters came from (and the end)."""
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
