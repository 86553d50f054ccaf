"""How a text is split into words for search: the same words for every way of writing the same text. Pure.

All normal forms of a text have the same words (https://unicode.org/reports/tr15/): composed or decomposed, full-width
or not, with ligatures or without. Case and the accents of Latin letters are removed. Each character of a language that
is written without spaces is a word by itself, so a phrase finds any part of such a text. A sharp after the name of a
note is the word "sharp".

The function prompt_words() of PostgreSQL does the same in SQL; revision 008 has a copy of the constants. See ADR 26.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Final, NamedTuple

# All assigned characters but letters, marks and digits, in the blocks of living scripts; emoji and musical symbols. The
# classes of regular expressions depend on the versions of Python and PostgreSQL, and there on the locale too.
SEPARATORS: Final = (
    r"\u0001-\u002F\u003A-\u0040\u005B-\u0060\u007B-\u00BF\u00D7\u00F7\u02C2-\u02C5\u02D2-\u02EB\u02ED"
    r"\u02EF-\u02FF\u0375\u037E\u0384-\u0385\u0387\u03F6\u0482\u0488-\u0489\u055A-\u055F\u0589-\u058F\u05BE\u05C0"
    r"\u05C3\u05C6\u05F3-\u060F\u061B-\u061F\u066A-\u066D\u06D4\u06DD-\u06DE\u06E9\u06FD-\u06FE\u0700-\u070F"
    r"\u0964-\u0965\u0970\u09F2-\u09F3\u09FA-\u09FB\u09FD\u0A76\u0AF0-\u0AF1\u0B70\u0BF3-\u0BFA\u0C77\u0C7F\u0C84"
    r"\u0D4F\u0D79\u0DF4\u0E3F\u0E4F\u0E5A-\u0E5B\u0F01-\u0F17\u0F1A-\u0F1F\u0F34\u0F36\u0F38\u0F3A-\u0F3D\u0F85"
    r"\u0FBE-\u0FC5\u0FC7-\u0FDA\u104A-\u104F\u109E-\u109F\u10FB\u1360-\u1368\u1390-\u1399\u1400\u166D-\u166E"
    r"\u17D4-\u17D6\u17D8-\u17DB\u1800-\u180A\u180E\u1FBD-\u1FC1\u1FCD-\u1FCF\u1FDD-\u1FDF\u1FED-\u1FEF"
    r"\u1FFD-\u20C0\u20DD-\u20E0\u20E2-\u20E4\u2100-\u212E\u213A-\u214D\u214F\u218A-\u24E9\u2500-\u2775"
    r"\u2794-\u2BFF\u2CE5-\u2CEA\u2CF9-\u2CFC\u2CFE-\u2CFF\u2D70\u2E00-\u2E2E\u2E30-\u3004\u3008-\u3020\u3030"
    r"\u3036-\u3037\u303D-\u303F\u309B-\u309C\u30A0\u30FB\u3190-\u319F\u31C0-\u31E3\u3200-\u3247\u3250-\u33FF"
    r"\u4DC0-\u4DFF\uA720-\uA721\uA789-\uA78A\uFB29-\uFE19\uFE30-\uFE6B\uFEFF-\uFFFD\U0001CF50-\U0001D35F"
    r"\U0001EEF0-\U0001FBEF\U000E0001-\U000E01EF"
)
# Thai, Lao, Burmese, Khmer, kana, Han, Hangul syllables; none of the separators among them.
UNSPACED: Final = (
    r"\u0E01-\u0E3A\u0E40-\u0E4E\u0E50-\u0E59\u0E81-\u0EFF\u1000-\u1049\u1050-\u109D\u1780-\u17D3\u17D7\u17DC-\u17FF"
    r"\u3005-\u3007\u3041-\u309A\u309D-\u309F\u30A1-\u30FA\u30FC-\u30FF\u31F0-\u31FF\u3400-\u4DBF\u4E00-\u9FFF"
    r"\uAC00-\uD7AF\uF900-\uFAFF\U00020000-\U0003FFFF"
)
# Blocks with upper-case letters: Latin, Greek and Cyrillic first, because PostgreSQL's translate() takes time in
# proportion to the number of letters.
CASED: Final = ((0xC0, 0x17F), (0x391, 0x3A9), (0x400, 0x42F))
RARELY_CASED: Final = (
    *((0x180, 0x24F), (0x370, 0x390), (0x3CF, 0x3FF), (0x460, 0x52F), (0x531, 0x556), (0x10A0, 0x10CD)),
    *((0x13A0, 0x13F5), (0x1C90, 0x1CBF), (0x1E9E, 0x1EFF), (0x2132, 0x2183), (0x2C00, 0x2CFF), (0xA640, 0xA7BF)),
    *((0x10400, 0x10427), (0x104B0, 0x104D3), (0x1E900, 0x1E921)),
)


def upper_case(blocks: Sequence[tuple[int, int]]) -> str:
    """Return the upper-case letters of these blocks that no normal form replaces by other characters."""
    letters = (chr(code) for first, last in blocks for code in range(first, last + 1))
    return "".join(c for c in letters if c != c.lower() and unicodedata.is_normalized("NFKD", c))


_LETTER = rf"[^\0{SEPARATORS}{UNSPACED}]"
_ACCENTS = "(^|[\x00-\x7f])[\u0300-\u036f]+"
_ASCII_PUNCTUATION = {code: " " for code in range(128) if not chr(code).isalnum()}


@cache  # when first needed, because it takes 6 ms
def _word() -> re.Pattern[str]:
    return re.compile(f"{_LETTER}+|[{UNSPACED}]|[#♯](?<=[a-g].)(?<!{_LETTER}[a-g].)")


@cache
def _lower() -> dict[int, int]:
    upper = upper_case(((ord("A"), ord("Z")), *CASED, *RARELY_CASED)) + "\N{GREEK SMALL LETTER FINAL SIGMA}"
    return str.maketrans(upper, upper[:-1].lower() + "\N{GREEK SMALL LETTER SIGMA}")


class Word(NamedTuple):
    """A word of a text: for each of its characters, where in the text what it stands for begins and ends."""

    word: str
    starts: Sequence[int]
    ends: Sequence[int]


def split_words(text: str) -> list[str]:
    """Return the words of a text, folded, in order."""
    if text.isascii() and "#" not in text:
        return text.lower().translate(_ASCII_PUNCTUATION).split()
    words: list[str] = _word().findall(_fold(text))
    return ["sharp" if word in "#♯" else word for word in words] if "#" in words or "♯" in words else words


def locate_words(text: str) -> list[Word]:
    """Return the words of split_words() with their places in the text."""
    folded, starts, ends = _fold_by_cluster(text)
    words = []
    for match in _word().finditer(folded):
        start, end = match.span()
        if match.group() in "#♯":
            words.append(Word("sharp", [starts[start]] * 5, [ends[start]] * 5))
        else:
            words.append(Word(match.group(), starts[start:end], ends[start:end]))
    return words


def _fold(text: str) -> str:
    if text.isascii():
        return text.lower()
    # Without the spaces "Moog™" would be one word, moogtm.
    decomposed = unicodedata.normalize("NFKD", text.replace("™", " ").replace("℠", " "))
    return unicodedata.normalize("NFC", re.sub(_ACCENTS, r"\1", decomposed).translate(_lower()))


def _fold_by_cluster(text: str) -> tuple[str, Sequence[int], Sequence[int]]:
    """Return _fold(text), and for each of its characters the start and end of what it was made of."""
    if text.isascii():
        return text.lower(), range(len(text)), range(1, len(text) + 1)
    edges = [0, *(at for at in range(1, len(text)) if not _joins_previous(text[at])), len(text)]
    folded: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for start, end in pairwise(edges):
        cluster = _fold(text[start:end])
        folded.append(cluster)
        starts += [start] * len(cluster)
        ends += [end] * len(cluster)
    return "".join(folded), starts, ends


def _joins_previous(character: str) -> bool:
    """Tell whether a character may become one with the character before it: a mark, a vowel or final of Hangul."""
    if character.isascii():
        return False
    first = unicodedata.normalize("NFKD", character)[0]
    return unicodedata.category(first).startswith("M") or "\u1160" <= first <= "\u11ff"
