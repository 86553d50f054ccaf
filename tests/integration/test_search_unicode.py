"""Search in every script and Unicode form: any form finds any form, with the same answers on both databases."""

# ruff: noqa: RUF001 - characters that look like others are the subject

import itertools
import random
import sys
import unicodedata
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

from services.storage import (
    Storage,
    check_database,
    check_search_index,
    create_generations,
    search_generations,
    search_prompts,
    track_prompt_usage,
)
from services.storage.search_words import split_words
from tests.conftest import administer, database_at
from tests.support.databases import file_of
from tests.support.factories import a_request
from tests.support.sqlite_module import sqlite3

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# A text of two words or more, and what finds it: a word, two words in a row, the beginning of a word.
SAMPLES = {
    "Korean": ("조용한 한국의 음악", "음악", "한국의 음악", "조용*"),
    "Japanese": ("夜のガラスとピアノ", "ピアノ", "ガラスと", "ピア*"),
    "half-width": ("ｶﾞｷﾞﾋﾟｱﾉ の曲", "ガギピアノ", "ピアノの曲", "ﾋﾟ*"),
    "full-width": ("ＬＯＦＩ　Ｐｉａｎｏ ９０", "lofi", "lofi piano", "ｐｉａ*"),
    "ligatures": ("ﬁnal oﬃce ﬂute", "final", "office flute", "flu*"),
    "Latin": ("Ünïcode Café à la Édith", "café", "unicode cafe", "éd*"),
    "Vietnamese": ("Đêm nhạc Việt êm dịu", "việt", "nhac viet", "đê*"),
    "Russian": ("Тёплый йогурт Майский", "майский", "тёплый йогурт", "йог*"),
    "Greek": ("Μουσική της νύχτας Ώρα", "νύχτας", "ΜΟΥΣΙΚΉ ΤΗΣ", "ώρ*"),
    "Arabic": ("آلة مُوسِيقَى هادئة ﻻ", "آلة", "مُوسِيقَى هادئة", "هاد*"),
    "Hindi": ("हिन्दी क़व्वाली ज़िन्दगी", "क़व्वाली", "हिन्दी क़व्वाली", "ज़िन*"),
    "Thai": ("เพลงเปียโนน้ำ", "เปียโน", "เพลงเปีย", "น้ำ*"),
    "Turkish": ("İstanbul GECESİ lofi", "istanbul", "İSTANBUL gecesi", "gece*"),
    "sharps": ("ballad in C♯m, Ｆ＃", "c#m", "in C#m", "bal*"),
    "symbols": ("take ½ at 20℃ № ⅷ 𝐛𝐨𝐥𝐝", "viii", "no viii", "bol*"),
}


def test_any_form_finds_any_form(db: Storage) -> None:
    orders = itertools.cycle(("relevance", "used", "newest"))
    stored = {
        unicodedata.normalize(form, sample[0]): name for name, sample in SAMPLES.items() for form in (*FORMS, "NFC")
    }
    stored |= {sample[0]: name for name, sample in SAMPLES.items()}
    with db.session() as session:
        create_generations(session, [a_request(prompt=prompt) for prompt in [*stored, "another piece"]])
    with db.session(read_only=True) as session:
        for name, (whole, word, phrase, beginning) in SAMPLES.items():
            of_sample = {prompt for prompt, owner in stored.items() if owner == name}
            for form in FORMS:
                for query in (whole, f'"{whole}"', word, f'"{phrase}"', beginning, f"{beginning} {word}"):
                    asked = unicodedata.normalize(form, query)
                    matches = search_prompts(session, asked, 500, order_by=next(orders))  # type: ignore[arg-type]
                    found = {match.prompt.text for match in matches}
                    assert of_sample <= found, (name, form, query)
                    assert all("[" in match.snippet for match in matches), (name, form, query)
                    assert {row.prompt for row in search_generations(session, asked, limit=500).items} == found
                    excluded = search_prompts(session, unicodedata.normalize(form, f'piece -"{phrase}"'), 500)
                    assert [match.prompt.text for match in excluded] == ["another piece"]
                    without = search_prompts(session, unicodedata.normalize(form, f"{word} -{beginning}"), 500)
                    assert not {match.prompt.text for match in without} & of_sample


@pytest.mark.parametrize(
    ("prompt", "query", "snippet"),
    [
        ("e\u0301te\u0301 en ﬁn", "été fin", "[e\u0301te\u0301] en [ﬁn]"),
        ("夜のﾋﾟｱﾉ曲", "ピアノ", "夜の[ﾋﾟｱﾉ]曲"),
        ("ﬁnale", "f*", "[ﬁ]nale"),
        ("조용한 음악", unicodedata.normalize("NFD", "음악"), "조용한 [음악]"),
        ("ＬＯＦＩ beat", "lo-fi", "[ＬＯＦＩ] beat"),
        ("in Ｃ♯ｍ", "c#m", "in [Ｃ♯ｍ]"),
    ],
)
def test_a_match_is_marked_in_the_text_as_it_is_stored(db: Storage, prompt: str, query: str, snippet: str) -> None:
    with db.session() as session:
        assert track_prompt_usage(session, prompt).text == prompt
        [match] = search_prompts(session, query)
        assert match.snippet == snippet
        assert match.prompt.text == prompt


def test_a_word_is_found_beside_text_without_spaces(db: Storage) -> None:
    with db.session() as session:
        track_prompt_usage(session, "夜のlofi音楽")
        for query, found in (("lofi", 1), ("夜 音楽", 1), ('"夜の lofi"', 1), ("の夜", 0), ("夜 -lofi", 0), ("lof", 0)):
            assert len(search_prompts(session, query)) == found, query


@pytest.fixture
def one_of_each(postgresql_server: str, postgresql_template: str, sqlite_url: str) -> Iterator[list[Storage]]:
    """Return a storage on each database system, with the same prompts to come."""
    administer(postgresql_server, f"CREATE DATABASE same_words TEMPLATE {postgresql_template}")
    storages = [Storage(sqlite_url), Storage(database_at(postgresql_server, "same_words"))]
    yield storages
    for storage in storages:
        storage.dispose()
    administer(postgresql_server, "DROP DATABASE same_words WITH (FORCE)")


@pytest.mark.drill
def test_both_databases_answer_alike(one_of_each: list[Storage], scaled: Callable[[int], int]) -> None:
    dice = random.Random(3)
    words = [word for whole, *_ in SAMPLES.values() for word in whole.split()]
    alphabet = "abcxyzABC0189éÉüñçøØßæ жЖйЁ άΩΣσς #&-_/.,'\"♯—“”…½²³№①ﬁǽıİ\u0301\u0308\u3099\u094d夜か가ﾞ🎸\u200b\ufe0f"

    def a_text() -> str:
        pieces = [
            dice.choice(words) if dice.random() < 0.5 else "".join(dice.choices(alphabet, k=dice.randint(1, 6)))
            for _ in range(dice.randint(1, 4))
        ]
        return unicodedata.normalize(dice.choice(FORMS), dice.choice([" ", ""]).join(pieces))

    def a_query() -> str:
        pieces = [
            dice.choice(["", "", "-"])
            + dice.choice(["{}", "{}", '"{}"', "{}*", '"{}"*']).format(
                unicodedata.normalize(dice.choice(FORMS), dice.choice(texts))[: dice.randint(1, 12)]
            )
            for _ in range(dice.randint(1, 3))
        ]
        return " ".join(pieces)

    texts = sorted({made for made in (a_text() for _ in range(400)) if made.strip()})
    queries = [*texts, *(a_query() for _ in range(scaled(10_000)))]
    found: list[list[list[tuple[str, str, float]]]] = []
    for storage in one_of_each:
        with storage.session() as session:
            create_generations(session, [a_request(prompt=prompt) for prompt in texts])
            answers = []
            for query in queries:
                matches = search_prompts(session, query, 500)
                answers.append([(match.prompt.text, match.snippet, match.rank) for match in matches])
                assert {row.prompt for row in search_generations(session, query, limit=500).items} == {
                    match.prompt.text for match in matches
                }
            found.append(answers)
            assert check_search_index(session)
    differing = [query for query, one, other in zip(queries, *found, strict=True) if one != other]
    assert not differing, (len(differing), differing[:5])
    assert sum(map(bool, found[0])) > len(queries) / 3


def test_postgresql_splits_every_character_as_python_does(one_of_each: list[Storage]) -> None:
    # Those that are in the Unicode of Python 3.11; older versions of PostgreSQL know no newer ones either.
    known = [chr(code) for code in range(1, sys.maxunicode + 1) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    # In one text, each between two letters that it may become one with; a prompt has 10,000 characters at most.
    batches = (known[start : start + 2_400] for start in range(0, len(known), 2_400))
    texts = ["".join(f"A{character}b " for character in batch) for batch in batches]
    statement = text("SELECT prompt, prompt_words(prompt)::text FROM unnest(CAST(:texts AS text[])) AS prompt")
    with one_of_each[1].session() as session:
        for prompt, words in session.execute(statement, {"texts": texts}):
            places: dict[str, list[int]] = {}
            for place, word in enumerate(split_words(prompt), 1):
                places.setdefault(word, []).append(place)
            expected = text("SELECT CAST(:words AS tsvector)::text")
            literal = " ".join(f"'{word}':{','.join(map(str, at))}" for word, at in places.items())
            assert words == session.scalar(expected, {"words": literal})


def test_words_do_not_depend_on_the_locale_of_the_database(one_of_each: list[Storage]) -> None:
    """In a Turkish database, lower() and PostgreSQL's own dictionaries turn I into a letter without a dot."""
    with one_of_each[1].session() as session:
        definition = str(session.scalar(text("SELECT pg_get_functiondef('prompt_words(text)'::regprocedure)")))
    assert definition.count("lower(") == definition.count('COLLATE "C"') == 1
    for of_the_locale in ("to_tsvector", "initcap", "upper(", "[:", "\\w", "\\m", "\\y", "~*"):
        assert of_the_locale not in definition


def test_what_other_programs_write_to_a_file_is_found_as_it_is_and_after_a_check_in_every_form(sqlite_url: str) -> None:
    storage = Storage(sqlite_url)
    with storage.session() as session:
        track_prompt_usage(session, "夜の音楽")
    foreign = sqlite3.connect(file_of(sqlite_url))
    now = "2026-11-25 12:00:00.000000"
    rows = [("lofi piano", now, now), ("cafe\u0301 ピアノ lofi", now, now), ("slow C#m lofi", now, now)]
    foreign.executemany("INSERT INTO prompts (text, used_count, first_used_at, last_used_at) VALUES (?, 1, ?, ?)", rows)
    foreign.execute("UPDATE prompts SET text = text || '、ﾋﾟｱﾉ' WHERE text LIKE '夜%'")
    foreign.commit()
    foreign.close()

    def found(query: str) -> set[str]:
        with storage.session(read_only=True) as session:
            return {match.prompt.text for match in search_prompts(session, query)}

    assert found("lofi") == {"lofi piano", "cafe\u0301 ピアノ lofi", "slow C#m lofi"}
    assert found("c#m") == {"slow C#m lofi"}
    assert found("ピアノ") == set()
    [finding] = check_database(fix=True, storage=storage).findings
    assert (finding.subject, finding.fixed) == ("search index", True)
    assert found("ピアノ") == {"cafe\u0301 ピアノ lofi", "夜の音楽、ﾋﾟｱﾉ"}
    assert found("café") == {"cafe\u0301 ピアノ lofi"}
    assert found("c#m") == {"slow C#m lofi"}
    assert check_database(storage=storage).findings == ()
    storage.dispose()


@pytest.mark.parametrize("value", ["x", " x ", 5, 1.5, None, b"x", b" x", ""], ids=repr)
def test_ltrim_is_that_of_sqlite_for_everybody_else(sqlite_url: str, value: object) -> None:
    storage = Storage(sqlite_url)
    with storage.session(read_only=True) as session, sqlite3.connect(":memory:") as plain:
        for characters in (" ", "x", "51", None, *([] if isinstance(value, bytes) else [""])):
            [(expected,)] = plain.execute("SELECT ltrim(?, ?)", (value, characters)).fetchall()
            assert (
                session.scalar(text("SELECT ltrim(:value, :characters)"), {"value": value, "characters": characters})
                == expected
            )
    plain.close()
    storage.dispose()
