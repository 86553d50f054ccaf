"""The query language: required and excluded terms, snippets and relevance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage.limits import QUERY_TERMS_LIMIT
from services.storage.search_query import SNIPPET_LENGTH, Query, Term, parse_query

MARKS = ("<", ">")


@pytest.mark.parametrize(
    ("text", "wanted", "excluded"),
    [
        ("slow piano", [Term(("slow",)), Term(("piano",))], []),
        ('"slow piano"', [Term(("slow piano",))], []),
        ("“slow piano”", [Term(("slow piano",))], []),
        ('"slow piano', [Term(("slow piano",))], []),
        ("pia*", [Term(("pia",), is_prefix=True)], []),
        ("piano -drums", [Term(("piano",))], [Term(("drums",))]),
        ('piano -"no drums"', [Term(("piano",))], [Term(("no drums",))]),
        ("lo-fi", [Term(("lo fi", "lofi"))], []),
        ("hip hop", [Term(("hip hop", "hiphop"))], []),
        ("drum & bass", [Term(("drum bass", "dnb", "drum n bass", "drum and bass"))], []),
        ("drum bass", [Term(("drum",)), Term(("bass",))], []),
        ("140 BPM", [Term(("140 bpm", "140bpm"))], []),
        ("C#m", [Term(("c sharp m",))], []),
        ("#lofi", [Term(("lofi", "lo fi"))], []),
        ("AND OR NOT NEAR(a)", [Term(("and",)), Term(("or",)), Term(("not",)), Term(("near a",))], []),
        ("夜 lofi", [Term(("夜",)), Term(("lofi", "lo fi"))], []),
        ("piano piano", [Term(("piano",))], []),
        ("-drums", [], [Term(("drums",))]),
        (" \0 \ud800 - * \" '' ? &", [], []),
    ],
)
def test_a_query_is_parsed_into_terms(text: str, wanted: list[Term], excluded: list[Term]) -> None:
    assert parse_query(text) == Query(tuple(wanted), tuple(excluded))


def test_a_query_must_be_text() -> None:
    with pytest.raises(TypeError, match="query must be text, not NoneType"):
        parse_query(None)  # type: ignore[arg-type]


def test_only_the_first_terms_of_a_long_query_are_used() -> None:
    assert len(parse_query(" ".join(f"word{n}" for n in range(1_000))).wanted) == QUERY_TERMS_LIMIT


def test_a_word_longer_than_the_index_stores_finds_nothing() -> None:
    assert parse_query(f"piano {'x' * 300}").wanted == ()


@given(st.text(), st.text())
def test_every_string_is_a_valid_query_and_gives_a_snippet_of_every_text(query: str, text: str) -> None:
    parsed = parse_query(query)
    shown = parsed.snippet(text, ("", ""))
    assert shown.strip("…") in " ".join(text.split()) or len(text) > SNIPPET_LENGTH
    assert parsed.rank([text])[0] >= 0


@pytest.mark.parametrize(
    ("query", "text", "snippet"),
    [
        ("lofi", "A Lo-Fi beat, lofi", "A <Lo-Fi> beat, <lofi>"),
        ("cafe", "Café  in\nParis", "<Café> in Paris"),
        ("cafe", "Cafe\u0301 in Paris", "<Cafe\u0301> in Paris"),
        ("C#m", "song in C♯m", "song in <C♯m>"),
        ("gui*", "two guitars", "two <gui>tars"),
        ("音楽", "夜の音楽", "夜の<音楽>"),
        ("beat", "offbeat beat", "offbeat <beat>"),
        ("nothing", "a text", "a text"),
    ],
)
def test_a_snippet_marks_every_match(query: str, text: str, snippet: str) -> None:
    assert parse_query(query).snippet(text, MARKS) == snippet


def test_a_snippet_of_a_long_text_is_cut_at_word_boundaries_around_the_first_match() -> None:
    text = "quiet " * 200 + "then a piano enters " + "and stays " * 200
    shown = parse_query("piano").snippet(text, MARKS)
    assert "then a <piano> enters" in shown
    assert shown.startswith("…quiet ")
    assert shown.endswith("…")
    assert len(shown) <= SNIPPET_LENGTH + len("…<>…")


def test_relevance_rises_with_frequency_and_word_order_and_falls_with_length() -> None:
    together, apart, long, often = parse_query("dark piano").rank(
        ["dark piano", "piano dark", "dark piano " + "and more " * 30, "dark piano dark piano"]
    )
    assert often > together > apart > 0
    assert together > long
