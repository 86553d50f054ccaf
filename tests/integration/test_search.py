"""Search, and its index, which always matches the prompts."""

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select, text, update

from services.storage import (
    Generation,
    InvalidCursorError,
    Prompt,
    Storage,
    check_search_index,
    create_generations,
    delete_prompt,
    get_prompt_by_text,
    get_session,
    migrations,
    rebuild_search_index,
    reset_database,
    search_generations,
    search_prompts,
    track_prompt_usage,
)
from services.storage.backends import postgresql_search, sqlite_search
from tests.conftest import administer, database_at
from tests.support.factories import a_generation, a_request
from tests.support.plans import explain

PROMPTS = {
    "lo-fi": "lo-fi beat at 90 BPM",
    "lofi": "Lofi hip-hop, rainy",
    "hash": "#lofi #chill",
    "C#m": "ambient in C#m",
    "C♯m": "song in C♯m slow",
    "Cm": "C minor ballad",
    "R&B": "smooth R&B groove",
    "808": "808 trap 140 BPM",
    "140bpm": "techno 140bpm",
    "140": "140 strings, BPM unknown",
    "夜": "夜のlofi音楽",
    "kana": "ジャズピアノ",
    "한국": "한국의 음악을 조용히",
    "café": "Café chanson à la Édith",
    "decomposed": "cafe\u0301 noir",
    "cyrillic": "ГИТАРА соло",
    "greek": "ΜΟΥΣΙΚΗ τώρα",
    "dnb": "liquid drum & bass",
    "hindi": "हिन्दी गाना",
    "percent": "100% pure_tone",
}


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("lo-fi", "lo-fi lofi hash 夜"),
        ("lofi", "lo-fi lofi hash 夜"),
        ("LO FI", "lo-fi lofi hash 夜"),
        ("#lofi", "lo-fi lofi hash 夜"),
        ("C#m", "C#m C♯m"),
        ("C♯", "C#m C♯m"),
        ("c", "C#m C♯m Cm"),
        ("R&B", "R&B"),
        ("r & b", "R&B"),
        ("rnb", "R&B"),
        ("808", "808"),
        ("140 BPM", "808 140bpm"),
        ("140bpm", "808 140bpm"),
        ("140 strings", "140"),
        ("140", "808 140"),
        ("140*", "808 140 140bpm"),
        ("夜", "夜"),
        ("音楽", "夜"),
        ("音楽 lofi", "夜"),
        ("ピアノ", "kana"),
        ("음악", "한국"),
        ("cafe", "café decomposed"),
        ("CAFÉ edith", "café"),
        ("гитара", "cyrillic"),
        ("Μουσικη", "greek"),
        ("हिन्दी", "hindi"),
        ("hip hop", "lofi"),
        ("hiphop", "lofi"),
        ("hip-hop -rainy", ""),
        ("lofi -rainy", "lo-fi hash 夜"),
        ('lofi -"hip hop"', "lo-fi hash 夜"),
        ("lofi -chi*", "lo-fi lofi 夜"),
        ("ambient -C#m", ""),
        ("lofi -夜", "lo-fi lofi hash"),
        ("夜 -lofi", ""),
        ('"at 90"', "lo-fi"),
        ('"90 at"', ""),
        ('"at 9"*', "lo-fi"),
        ("90 at beat", "lo-fi"),
        ("dnb", "dnb"),
        ("drum and bass", "dnb"),
        ("bass drum", "dnb"),
        ("100%", "percent"),
        ("pure tone", "percent"),
        ("%", ""),
        ("_", ""),
        ("trap strings", ""),
        ("-trap", ""),
        ("", ""),
    ],
)
@pytest.mark.parametrize("order", ["relevance", "used", "newest"])
def test_a_search_finds_the_expected_prompts(library: Storage, query: str, found: str, order: Any) -> None:
    expected = {PROMPTS[name] for name in found.split()}
    with library.session(read_only=True) as session:
        assert {match.prompt.text for match in search_prompts(session, query, order_by=order)} == expected
        assert {row.prompt for row in search_generations(session, query).items} == expected


def test_the_plans_for_frequent_and_rare_words_find_the_same(db: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frequent words are searched along the history, rare words by collecting the matches first."""
    generator = random.Random(6)
    words = "lofi lo-fi LoFi hip-hop hiphop 140 140bpm bpm gui guitar _guitar guitars C#m café 夜の Ж & , / -".split()
    texts = [" ".join(generator.choices(words, k=generator.randint(1, 5))) for _ in range(300)]
    queries = {" ".join(generator.choices(["-", "*", '"', *words], k=generator.randint(1, 3))) for _ in range(120)}
    queries |= {f"{word}*" for word in words} | {f'"{first} {second}"' for first in words for second in ("140", "gui")}
    with db.session() as session:
        rows = create_generations(session, [a_request(prompt=prompt) for prompt in texts + texts[:50]])
        # Rows of other programs: the prompt that a row refers to counts, not its text.
        session.execute(update(Generation).where(Generation.id == rows[-1].id).values(prompt="guitar lofi 140"))
        session.execute(update(Generation).where(Generation.id == rows[-2].id).values(prompt_id=None))
    with db.session(read_only=True) as session:
        for query in sorted(queries):
            found = []
            for often in (0, 1_000_000):
                for module in (sqlite_search, postgresql_search):
                    monkeypatch.setattr(module, "COMMON_MATCHES", often)
                orders: Any = ("newest", "used", "relevance")
                prompts = [[m.prompt.id for m in search_prompts(session, query, 30, order_by=one)] for one in orders]
                pages = [search_generations(session, query, status=status, limit=30) for status in (None, "pending")]
                found.append((prompts, [[row.id for row in page.items] for page in pages]))
            assert found[0] == found[1], query


def test_a_frequently_used_prompt_shows_its_newest_generations_without_reading_all(db: Storage) -> None:
    with db.session() as session:
        create_generations(session, [a_request(prompt=f"waterphone {number % 100 == 0}") for number in range(3_000)])
        session.execute(update(Generation).values(created_at=datetime(2026, 11, 22, tzinfo=UTC)))
        newest = a_generation(session, prompt="waterphone False")
    with db.session() as session:
        plans = explain(session, lambda: search_generations(session, "waterphone", limit=7))
        bound = {"sqlite": "(prompt_id=? AND created_at>?)", "postgresql": "created_at >= COALESCE("}[db.backend.name]
        assert any(bound in plan for plan in plans), plans
        found, cursor = [], None
        for _ in range(3):
            page = search_generations(session, "waterphone", limit=7, after=cursor)
            found, cursor = [*found, *(row.id for row in page.items)], page.next
        rest = select(Generation.id).order_by(Generation.created_at.desc(), Generation.id.desc()).limit(21)
        assert found == session.scalars(rest).all()
        assert found[0] == newest.id


@pytest.fixture
def library(db: Storage) -> Storage:
    with db.session() as session:
        create_generations(session, [a_request(prompt=prompt) for prompt in PROMPTS.values()])
    return db


def test_orders_are_by_relevance_by_use_and_by_age(db: Storage) -> None:
    with get_session() as session:
        for prompt, uses in (("piano", 2), ("a long text about a piano and other things", 3), ("piano piano", 1)):
            for _ in range(uses):
                track_prompt_usage(session, prompt)

        def texts(order: Any) -> list[str]:
            return [match.prompt.text for match in search_prompts(session, "piano", order_by=order)]

        assert texts("relevance") == ["piano piano", "piano", "a long text about a piano and other things"]
        assert texts("used") == ["a long text about a piano and other things", "piano", "piano piano"]
        assert texts("newest") == ["piano piano", "a long text about a piano and other things", "piano"]
        ranks = [match.rank for match in search_prompts(session, "piano")]
        assert ranks == sorted(ranks, reverse=True)
        assert ranks[-1] > 0


def test_case_and_sharps_are_ignored_next_to_text_without_spaces(db: Storage) -> None:
    with db.session() as session:
        create_generations(session, [a_request(prompt="夜のДождь"), a_request(prompt="夜 C# É")])
        for query, found in (("夜 дождь", "夜のДождь"), ("夜ДОЖДЬ", ""), ("夜 é", "夜 C# É"), ("夜 C♯", "夜 C# É")):
            assert [match.prompt.text for match in search_prompts(session, query)] == ([found] if found else []), query


@pytest.mark.parametrize(
    "query", ["C#" * 2_000, '"' + "C#m " * 1_000 + '"', " ".join(f"{n} C#{n}" for n in range(2_000))]
)
def test_no_query_is_too_long_for_the_database(library: Storage, query: str) -> None:
    with library.session(read_only=True) as session:
        assert search_prompts(session, query) == []
        assert search_generations(session, query, limit=2**63 - 1).items == []


def test_a_match_shows_where_it_matches(library: Storage) -> None:
    with get_session() as session:
        [match] = search_prompts(session, "trap")
        assert match.snippet == "808 [trap] 140 BPM"
        [match] = search_prompts(session, "trap", marks=("<b>", "</b>"))
        assert match.snippet == "808 <b>trap</b> 140 BPM"


def test_search_obeys_its_limit_and_names_bad_arguments(library: Storage) -> None:
    with get_session() as session:
        assert len(search_prompts(session, "lofi", 1)) == 1
        assert search_prompts(session, "lofi", 0) == []
        with pytest.raises(ValueError, match="limit"):
            search_prompts(session, "lofi", -1)
        with pytest.raises(ValueError, match="order_by must be one of relevance, used, newest"):
            search_prompts(session, "lofi", order_by="best")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="query must be text"):
            search_prompts(session, 5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="status"):
            search_generations(session, "lofi", status="done")


def test_found_generations_are_paged_newest_first(db: Storage) -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    with get_session() as session:
        for number in range(9):
            row = a_generation(session, prompt="lofi one" if number % 2 else f"lofi {number}")
            row.created_at = now - timedelta(seconds=number // 2)
            if number == 4:
                row.mark_failed("no")
        a_generation(session, prompt="other")
    with get_session() as session:
        whole = [row.id for row in search_generations(session, "lofi").items]
        rows = session.scalars(select(Generation).where(Generation.prompt != "other")).all()
        assert whole == [r.id for r in sorted(rows, key=lambda row: (row.created_at, row.id), reverse=True)]
        paged, cursor = [], None
        while True:
            page = search_generations(session, "lofi", limit=2, after=cursor)
            paged += [row.id for row in page.items]
            if (cursor := page.next) is None:
                break
        assert paged == whole
        assert [row.error_message for row in search_generations(session, "lofi", status="failed").items] == ["no"]
        first = search_generations(session, "lofi", limit=1)
        with pytest.raises(InvalidCursorError):
            search_generations(session, "lo-fi", after=first.next)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["create", "bulk", "reuse", "edit", "delete", "cascade", "renumber", "undo"]),
        st.integers(0, 9),
        st.text(alphabet="ab é#Дñ夜-&'\\", min_size=1, max_size=12).filter(lambda text: text.strip()),
    ),
    max_size=25,
)


@given(CHANGES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_index_follows_every_change_exactly(db: Storage, changes: list[tuple[str, int, str]]) -> None:
    with get_session() as session:
        session.execute(delete(Generation))
        session.execute(delete(Prompt))
        for change, number, words in changes:
            ids = list(session.scalars(select(Prompt.id).order_by(Prompt.id)))
            victim = ids[number % len(ids)] if ids else 0
            if change == "create":
                a_generation(session, prompt=words)
            elif change == "bulk":
                create_generations(session, [a_request(prompt=f"{words} {n % 3}") for n in range(number)])
            elif change == "reuse" and ids:
                track_prompt_usage(session, session.get_one(Prompt, victim).text)
            elif change == "edit" and get_prompt_by_text(session, words) is None:
                session.execute(update(Prompt).where(Prompt.id == victim).values(text=words))
            elif change == "delete":
                session.execute(delete(Prompt).where(Prompt.id == victim))
            elif change == "cascade":
                delete_prompt(session, victim)
            elif change == "renumber":
                session.execute(delete(Generation))
                free = max([1_000_000, *ids]) + 1
                session.execute(update(Prompt).where(Prompt.id == victim).values(id=free))
            elif change == "undo":
                savepoint = session.begin_nested()
                a_generation(session, prompt=f"undone {words}")
                savepoint.rollback()
            session.expire_all()
        assert check_search_index(session)
        for prompt in list(session.scalars(select(Prompt))):
            found = search_prompts(session, f'"{prompt.text}"', limit=1_000)
            if any(character.isalnum() for character in prompt.text):
                assert prompt.id in [match.prompt.id for match in found]
        session.rollback()


def test_drift_is_detected_and_rebuilding_repairs_it(sqlite_url: str) -> None:
    storage = Storage(sqlite_url)
    with storage.session() as session:
        a_generation(session, prompt="slow piano")
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER prompts_fts_update")
        connection.exec_driver_sql("UPDATE prompts SET text = 'fast guitar'")
    with storage.session() as session:
        assert not check_search_index(session)
        assert search_prompts(session, "guitar") == []
        rebuild_search_index(session)
        assert check_search_index(session)
        assert [match.prompt.text for match in search_prompts(session, "guitar")] == ["fast guitar"]
    storage.dispose()


def test_rebuilding_a_correct_index_keeps_it_correct(library: Storage) -> None:
    with get_session() as session:
        assert check_search_index(session)
        rebuild_search_index(session)
        assert check_search_index(session)
        assert search_prompts(session, "trap")


def test_downgrade_and_upgrade_keep_every_prompt_and_index_it_again(library: Storage) -> None:
    migrations.downgrade(library, "007")
    migrations.upgrade(library)
    assert migrations.check(library) == []
    with library.session() as session:
        assert len(session.scalars(select(Prompt)).all()) == len(PROMPTS)
        assert check_search_index(session)
        assert len(search_prompts(session, "lofi")) == 4


def test_a_reset_empties_the_index_too(library: Storage) -> None:
    reset_database()
    with get_session() as session:
        assert search_prompts(session, "lofi") == []
        a_generation(session, prompt="new lofi")
        assert check_search_index(session)
        assert len(search_prompts(session, "lofi")) == 1


def test_the_index_is_an_external_content_table(sqlite_url: str) -> None:
    storage = Storage(sqlite_url)
    with storage.engine.connect() as connection:
        sql = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'prompts_fts'").scalar_one()
    assert 'content="prompts"' in sql
    storage.dispose()


def test_prompts_of_any_length_from_other_programs_are_indexed(db: Storage) -> None:
    now = datetime.now(UTC)
    with get_session() as session:
        long = "slow piano " + "é word " * 400_000
        values = {"text": long, "used_count": 1, "first_used_at": now, "last_used_at": now}
        session.execute(insert(Prompt.__table__), [values])  # type: ignore[arg-type]
        assert len(search_prompts(session, "slow piano")) == 1


def test_both_databases_find_the_same_prompts(one_postgresql: str, sqlite_url: str) -> None:
    """Text in Latin, Greek and Cyrillic with any punctuation, without fractions such as ½: only SQLite indexes them."""
    generator = random.Random(3)
    alphabet = "abcxyzABC0189éÉüñçøØßæ жЖйёЁ αάΩΣσς #&-_/.,'\"♯—“”…"
    texts = {"".join(generator.choices(alphabet, k=generator.randint(1, 14))).strip() for _ in range(400)} - {""}
    found: dict[str, dict[str, set[str]]] = {}
    for name, url in (("sqlite", sqlite_url), ("postgresql", one_postgresql)):
        storage = Storage(url)
        with storage.session() as session:
            create_generations(session, [a_request(prompt=prompt) for prompt in sorted(texts)])
            found[name] = {
                query: {match.prompt.text for match in search_prompts(session, query, 500, order_by="newest")}
                for query in sorted(texts)
            }
        storage.dispose()
    differing = {query for query in texts if found["sqlite"][query] != found["postgresql"][query]}
    assert not {query: found["sqlite"][query] ^ found["postgresql"][query] for query in differing}


@pytest.fixture
def one_postgresql(postgresql_server: str, postgresql_template: str) -> Iterator[str]:
    administer(postgresql_server, f"CREATE DATABASE same_words TEMPLATE {postgresql_template}")
    yield database_at(postgresql_server, "same_words")
    administer(postgresql_server, "DROP DATABASE same_words WITH (FORCE)")


@pytest.mark.drill
def test_every_string_is_a_valid_query(library: Storage, scaled: Callable[[int], int]) -> None:
    generator = random.Random(4)
    pieces = [
        *PROMPTS.values(),
        *"\"'*-+()[]{}:^~!&|<>\\/%_;,.#♯ \t\n\0\x1b",
        *("AND", "OR", "NOT", "NEAR", "NEAR(", "rowid:", "text:", "prompts_fts", "NULL", "--", "/*", ":*", "<->", "&&"),
        *("\ud800", "\U0010ffff", "\ufdd0", "\u200b", "\u202e", "é", "e\u0301", "夜", "ﬁ", "İ", "ß", "𝄞", "👩‍🎤"),
        "x" * 300,
        "a " * 200,
    ]
    with library.session(read_only=True) as session:
        for _ in range(scaled(10_000)):
            query = generator.choice(["", " "]).join(generator.choices(pieces, k=generator.randint(0, 6)))
            if generator.random() < 0.3:
                query += "".join(chr(generator.randrange(0x110000)) for _ in range(generator.randint(1, 5)))
            order: Any = generator.choice(["relevance", "used", "newest"])
            for match in search_prompts(session, query, 3, order_by=order):
                assert match.snippet
            search_generations(session, query, limit=2)
        assert session.scalar(text("SELECT 1")) == 1
