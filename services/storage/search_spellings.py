"""Genres and tempos that are written in several ways: a search for one spelling finds all of them."""

import re
from typing import Final

# The spellings of a genre; a hyphen or an ampersand counts as a space.
SPELLINGS: Final = (
    ("lofi", "lo fi"),
    ("hiphop", "hip hop"),
    ("rnb", "r b", "r n b"),
    ("dnb", "drum bass", "drum n bass", "drum and bass"),
    ("synthwave", "synth wave"),
    ("chillwave", "chill wave"),
    ("boombap", "boom bap"),
    ("breakbeat", "break beat"),
)

_TEMPO = r"(?a)(\d{1,3}) ?bpm"
_GENRES = {spelling: group for group in SPELLINGS for spelling in group}


def spellings_of(words: str) -> tuple[str, ...]:
    """Return all spellings of the genre or tempo that `words` name, or ()."""
    if tempo := re.fullmatch(_TEMPO, words):
        return f"{tempo[1]} bpm", f"{tempo[1]}bpm"
    return _GENRES.get(words, ())
