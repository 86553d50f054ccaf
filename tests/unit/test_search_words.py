"""Words of a text: the same for every normal form, with their places; and the constants that revision 008 repeats."""

# ruff: noqa: RUF001 - characters that look like others are the subject

import unicodedata

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from hypothesis import example, given
from hypothesis import strategies as st

from services.storage import migrations, search_words
from services.storage.backends import sqlite_search
from services.storage.search_words import locate_words, split_words

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
TEXTS = st.text(
    st.sampled_from("aZé\u0301\u0308ßıİſ #♯C½²Ａ♭ﬁﾋﾟか\u3099ガ夜เ้한가\u1100\u1161\u11a8йи\u0306άΣςहिन्दीآ\u0653ﻻ½´-'")
    | st.characters(exclude_categories=["Cs", "Cn"], exclude_characters="™℠")
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Lo-Fi, hip_hop!", "lo fi hip hop"),
        ("Café ÉDITH", "cafe edith"),
        ("ＬＯＦＩ ９０", "lofi 90"),
        ("ﬁnal oﬃce", "final office"),
        ("ﾋﾟｱﾉ", "ピ ア ノ"),
        ("夜のlofi音楽", "夜 の lofi 音 楽"),
        ("한국의", "한 국 의"),
        ("Йогурт", "йогурт"),
        ("ΜΟΥΣΙΚΗΣ μουσικής", "μουσικησ μουσικήσ"),
        ("हिन्दी गाना", "हिन्दी गाना"),
        ("ﻻ مُوسِيقَى", "لا مُوسِيقَى"),
        ("Đêm Việt", "đem viet"),
        ("İstanbul LOFI", "istanbul lofi"),
        ("C#m F♯ Ｇ＃ #lofi A# xC#", "c sharp m f sharp g sharp lofi a sharp xc"),
        ("Moog™ don´t 1\ufe0f\u20e3 🎸", "moog don t 1"),
        ("", ""),
    ],
)
def test_a_text_has_the_words(text: str, expected: str) -> None:
    assert split_words(text) == expected.split()


@given(TEXTS)
def test_every_normal_form_of_a_text_has_the_same_words(text: str) -> None:
    for form in FORMS:
        assert split_words(unicodedata.normalize(form, text)) == split_words(text)


@given(TEXTS)
@example("\u1000\u0d62")  # two words, one cluster
@example("½")
def test_words_are_located_where_they_are(text: str) -> None:
    located = locate_words(text)
    assert [word.word for word in located] == split_words(text)
    start, end = 0, 0  # of the last cluster of the word before
    for word in located:
        assert len(word.word) == len(word.starts) == len(word.ends)
        assert end <= word.starts[0] or (start, end) == (word.starts[0], word.ends[0])  # both are in one cluster
        assert all(start < end for start, end in zip(word.starts, word.ends, strict=True))
        start, end = word.starts[-1], word.ends[-1]
    assert end <= len(text)


def test_revision_008_splits_as_the_library_does() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations.script_location()))
    revision = ScriptDirectory.from_config(config).get_revision("008").module
    for name in ("SEPARATORS", "UNSPACED", "CASED", "RARELY_CASED"):
        assert getattr(revision, name) == getattr(search_words, name)
    for name in ("FOLDED", "NEEDS_FOLDING"):
        assert getattr(revision, name) == getattr(sqlite_search, name)
