"""Databases in memory, which the threads of this process share."""

import gc
from pathlib import Path

import pytest

from services.storage import (
    Storage,
    count_generations,
    get_database_stats,
    get_engine,
    get_session,
    get_storage,
    init_db,
    reset_database,
)
from tests.support.factories import a_generation
from tests.support.sessions import at_once, undone, used_count

URLS = [
    "sqlite://",
    "sqlite:///:memory:",
    "sqlite:///file::memory:?cache=shared&uri=true",
    "sqlite:///file:name?mode=memory&cache=shared&uri=true",
]


@pytest.mark.parametrize("url", URLS)
def test_every_usual_url_of_a_memory_database_is_accepted(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    init_db(url)
    with get_session() as session:
        a_generation(session)
    with get_session() as session:
        assert count_generations(session) == 1
    assert get_storage().is_memory
    assert list(tmp_path.iterdir()) == []


def test_eight_threads_share_a_memory_database_and_lose_no_row() -> None:
    init_db("sqlite:///:memory:")

    def work(number: int) -> None:
        for turn in range(30):
            if turn % 3:
                with get_session() as session:
                    a_generation(session)
                    get_database_stats(session)
                continue
            with undone(get_session()) as session:
                a_generation(session, prompt="never mind")
                session.flush()

    at_once(8, work)
    with get_session() as session:
        assert count_generations(session) == 160
    assert used_count("trap beat 140 BPM") == 160
    assert used_count("never mind") == 0


def test_uncommitted_rows_are_invisible_to_other_threads() -> None:
    init_db("sqlite:///:memory:")
    seen: list[int] = []

    def look(number: int) -> None:
        with get_session() as session:
            seen.append(count_generations(session))

    with undone(get_session()) as session:
        session.connection()
    with get_session() as session:
        a_generation(session)
    with get_session() as session:
        count_generations(session)
        at_once(2, look)
    assert seen == [1, 1]


def test_init_db_with_the_url_creates_a_new_memory_database_and_without_it_keeps_the_old_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///:memory:")
    init_db()
    with get_session() as session:
        a_generation(session)
    init_db()
    with get_session() as session:
        assert count_generations(session) == 1
    init_db("sqlite:///:memory:")
    with get_session() as session:
        assert count_generations(session) == 0


def test_two_memory_databases_share_no_rows() -> None:
    init_db("sqlite:///:memory:")
    first = get_storage()
    with first.session() as session:
        a_generation(session)
    init_db("sqlite:///:memory:")
    with get_session() as session:
        assert count_generations(session) == 0
    with first.session() as session:
        assert count_generations(session) == 1
    assert not first.is_same(get_storage()) or first.url != get_storage().url


def test_a_memory_database_lives_as_long_as_its_storage() -> None:
    init_db("sqlite:///:memory:")
    with get_session() as session:
        a_generation(session)
    get_engine().dispose()
    gc.collect()
    with get_session() as session:
        assert count_generations(session) == 1


def test_a_memory_database_can_be_reset() -> None:
    init_db("sqlite:///:memory:")
    with get_session() as session:
        a_generation(session)
    reset_database()
    with get_session() as session:
        assert count_generations(session) == 0


def test_a_memory_database_without_tables_is_not_initialized() -> None:
    from services.storage import NotInitializedError

    with pytest.raises(NotInitializedError), Storage("sqlite:///:memory:").session():
        pass
