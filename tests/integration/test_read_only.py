"""Read-only sessions: one snapshot, no wait for writers, and every write refused."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import column, delete, event, insert, select, text, update
from sqlalchemy.orm import Session

from services.storage import (
    Generation,
    NotInitializedError,
    Prompt,
    ReadOnlyError,
    Storage,
    Worker,
    check_database,
    complete_generation,
    count_generations,
    create_generations,
    delete_generation,
    delete_prompt,
    get_all_generations,
    get_database_stats,
    get_generation,
    get_most_used_prompts,
    get_prompt_by_text,
    get_session,
    init_db,
    run_in_transaction,
    search_generations,
    set_favorite,
    track_prompt_usage,
    update_generation_status,
)
from tests.support.factories import a_generation, a_request

RETURNING = "WITH one AS (SELECT 1) UPDATE prompts SET used_count = 9 RETURNING id, text"

WRITES: dict[str, Callable[[Session], Any]] = {
    "create": a_generation,
    "create with a savepoint": lambda session: a_generation(session, idempotency_key="key"),
    "create many": lambda session: create_generations(session, [a_request()]),
    "track": lambda session: track_prompt_usage(session, "lo-fi"),
    "favourite": lambda session: set_favorite(session, "abc-123"),
    "delete": lambda session: delete_generation(session, "abc-123"),
    "delete a prompt": lambda session: delete_prompt(session, 1),
    "update": lambda session: update_generation_status(session, "abc-123", "processing"),
    "complete": lambda session: complete_generation(session, "abc-123", 1.0, 1),
    "ORM update": lambda session: session.execute(update(Prompt).values(used_count=9)),
    "ORM delete": lambda session: session.execute(delete(Generation)),
    "ORM insert": lambda session: session.execute(insert(Prompt), [{"text": "x"}]),
    "update led by a CTE": lambda session: session.execute(
        update(Prompt).values(used_count=9).where(Prompt.id.in_(select(select(Prompt.id).cte("some").c.id)))
    ),
    "text": lambda session: session.execute(text("DELETE FROM prompts")),
    "text after a comment": lambda session: session.execute(text("/* why */ DELETE FROM prompts")),
    "text after a line of comment": lambda session: session.execute(text("-- why\nDELETE FROM prompts")),
    "text in small letters": lambda session: session.execute(text("  delete from prompts")),
    "text led by a CTE": lambda session: session.execute(text("WITH one AS (SELECT 1) DELETE FROM prompts")),
    "text with columns": lambda session: session.execute(text(RETURNING).columns(column("id"), column("text"))),
    "text as rows": lambda session: session.scalars(select(Prompt).from_statement(text(RETURNING))),
    "text as typed rows": lambda session: session.scalars(
        select(Prompt).from_statement(text(RETURNING).columns(Prompt.id, Prompt.text))
    ),
    "driver": lambda session: session.connection().exec_driver_sql("DELETE FROM prompts"),
    "driver led by a CTE": lambda session: session.connection().exec_driver_sql(RETURNING),
    "schema": lambda session: session.execute(text("DROP TABLE attempts")),
    "savepoint": lambda session: session.execute(text("SAVEPOINT here")),
    "vacuum": lambda session: session.execute(text("VACUUM")),
    "two statements": lambda session: session.connection().exec_driver_sql("SELECT 1; DELETE FROM prompts"),
    "the end of the transaction": lambda session: session.execute(text("COMMIT")),
}


def refuse_every_write() -> None:
    with get_session() as session:
        a_generation(session, generation_id="abc-123")
    for name, write in WRITES.items():
        with get_session(read_only=True) as session:
            with pytest.raises(ReadOnlyError) as refusal:
                write(session)
            assert refusal.value.orig is None, name  # raised by the library, not by the driver
            session.rollback()
            assert get_database_stats(session)["total_generations"] == 1, name
    with get_session() as session:
        stored = get_generation(session, "abc-123")
        assert stored is not None
        assert stored.is_pending
        prompt = get_prompt_by_text(session, stored.prompt)
        assert prompt is not None
        assert prompt.used_count == 1


def test_every_kind_of_write_is_refused_before_it_reaches_the_driver(db: Storage) -> None:
    refuse_every_write()


def test_every_kind_of_write_to_a_memory_database_is_refused() -> None:
    init_db("sqlite:///:memory:")
    refuse_every_write()


def test_an_unflushed_change_is_refused_at_the_end_of_the_session(db: Storage) -> None:
    with get_session() as session:
        a_generation(session, generation_id="abc-123")
    with get_session(read_only=True) as session:
        generation = get_generation(session, "abc-123")
        assert generation is not None
        generation.mark_processing()
        with pytest.raises(ReadOnlyError):
            session.commit()
        session.rollback()
    with get_session() as session:
        generation = get_generation(session, "abc-123")
        assert generation is not None
        assert generation.is_pending


@pytest.mark.parametrize("reads_first", [False, True])
@pytest.mark.parametrize(
    "statement",
    [
        *("PRAGMA user_version = 7", "PRAGMA user_version(7)", "pragma main.user_version (7)", "ATTACH 'x.db' AS x"),
        *("pragma journal_mode=DELETE", "PRAGMA journal_mode(delete)", "PRAGMA synchronous(0)", "PRAGMA query_only(1)"),
        *("PRAGMA /* why */ busy_timeout(0)", "/* why */ PRAGMA busy_timeout(0)", 'PRAGMA "user_version"(7)'),
        *(
            "PRAGMA foreign_keys(0)",
            "PRAGMA cache_size(1)",
            "PRAGMA optimize",
            "PRAGMA wal_checkpoint",
            "BEGIN IMMEDIATE",
        ),
        *("COMMIT", "-- why\nVACUUM", "PRAGMA user_version -- = 1\n (7)"),
    ],
)
def test_a_refused_write_changes_neither_the_file_nor_the_connection(
    sqlite_url: str, statement: str, reads_first: bool
) -> None:
    init_db(sqlite_url)
    with get_session(read_only=True) as session:
        before = settings_of(session)
    with get_session(read_only=True) as session:
        if reads_first:
            assert count_generations(session) == 0
        with pytest.raises(ReadOnlyError):
            session.connection().exec_driver_sql(statement)
    with get_session(read_only=True) as session:
        assert settings_of(session) == before


def settings_of(session: Session) -> list[Any]:
    names = ("user_version", "journal_mode", "synchronous", "query_only", "busy_timeout", "foreign_keys", "cache_size")
    return [session.scalar(text(f"PRAGMA {name}")) for name in names]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    "statement",
    [
        *("SET TRANSACTION READ WRITE", "set transaction_read_only = off", "BEGIN READ WRITE", "COMMIT", "RESET ALL"),
        *("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE", "/* why */ SET search_path TO x", "DISCARD ALL"),
        *("SELECT 1; COMMIT; DELETE FROM prompts", "SELECT ';'; DELETE FROM prompts", "SELECT 1 /*;*/; COMMIT"),
        *(r"SELECT E'\'', 1; DELETE FROM prompts --'", "SELECT $$'$$; DELETE FROM prompts --'"),
        "/* /* */ SELECT */ DELETE FROM prompts",
    ],
)
def test_a_read_only_session_of_postgresql_stays_one(db: Storage, statement: str) -> None:
    with get_session() as session:
        a_generation(session)
    with get_session(read_only=True) as session:
        with pytest.raises(ReadOnlyError) as refusal:
            session.connection().exec_driver_sql(statement)
        assert refusal.value.orig is None  # raised by the library, not by the server
        assert session.scalar(text("SHOW transaction_read_only")) == "on"
    with get_session() as session:
        assert count_generations(session) == len(get_most_used_prompts(session)) == 1


COMMENTS = {
    "before": lambda statement: f"/* traceparent='00-1=2;3' */ {statement}",
    "lines before": lambda statement: f"-- app=api; a 'quote\n--\n  /* two */\n{statement}",
    "after": lambda statement: f"{statement} /*traceparent='00-1=2',db_driver='x;y'*/",
    "line after": lambda statement: f'{statement} -- route=/music; a "quote',
}


@pytest.mark.parametrize("place", COMMENTS)
def test_comments_of_tracing_tools_change_nothing(db: Storage, place: str) -> None:
    """As the sqlcommenter of OpenTelemetry and others write them."""

    @event.listens_for(db.engine, "before_cursor_execute", retval=True, insert=True)
    def comment(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> tuple[str, Any]:
        return COMMENTS[place](statement), parameters

    with get_session() as session:
        ids = [row.id for row in create_generations(session, [a_request() for _ in range(3)])]
    assert Worker(lambda job: None).run(until_empty=True) == 3
    with get_session(read_only=True) as session:
        assert [get_generation(session, one).is_complete for one in ids] == [True] * 3  # type: ignore[union-attr]
        assert get_database_stats(session)["completed_generations"] == 3
        with pytest.raises(ReadOnlyError):
            session.execute(text("DELETE FROM prompts"))
    with db.session() as session:
        assert len(search_generations(session, "trap").items) == 3
    assert check_database(storage=db).findings == ()


def test_a_commented_read_takes_no_write_lock(sqlite_url: str) -> None:
    storage = Storage(sqlite_url, busy_timeout=0.05)
    with storage.session() as reader:
        assert reader.scalar(text("/* why */ SELECT count(*) FROM prompts")) == 0
        with storage.session() as writer:
            a_generation(writer)
    storage.dispose()


def test_every_kind_of_read_works(db: Storage) -> None:
    with get_session() as session:
        a_generation(session)
    with get_session(read_only=True) as session:
        assert count_generations(session) == len(get_all_generations(session)) == 1
        assert len(get_most_used_prompts(session)) == 1
        newest = select(Generation.id).order_by(Generation.created_at.desc()).cte("newest")
        assert len(session.execute(select(newest)).all()) == 1
        assert len(session.execute(select(Prompt.id).union(select(Prompt.used_count))).all()) == 1
        assert session.scalar(text("SELECT count(*) FROM prompts")) == 1


def test_a_read_only_session_sees_one_snapshot(db: Storage) -> None:
    with get_session() as session:
        a_generation(session)
    with get_session(read_only=True) as reader:
        assert count_generations(reader) == 1
        with get_session() as writer:
            a_generation(writer, prompt="later")
        assert count_generations(reader) == 1
        assert get_prompt_by_text(reader, "later") is None
        assert get_database_stats(reader)["total_generations"] == 1
        reader.rollback()
        assert count_generations(reader) == 2
    with get_session(read_only=True) as reader:
        assert count_generations(reader) == 2


def test_a_read_only_session_restores_the_connection(db: Storage) -> None:
    for _ in range(20):  # more than the size of the pool
        with get_session(read_only=True) as session:
            count_generations(session)
        with get_session() as session:
            a_generation(session)
    with get_session() as session:
        assert count_generations(session) == 20


def test_run_in_transaction_can_be_read_only(db: Storage) -> None:
    assert run_in_transaction(count_generations, read_only=True) == 0
    with pytest.raises(ReadOnlyError):
        run_in_transaction(a_generation, read_only=True)


def test_a_file_opened_read_only_is_read_and_refuses_writes(sqlite_url: str) -> None:
    init_db(sqlite_url)
    with get_session() as session:
        a_generation(session)
    init_db(sqlite_url.replace("sqlite:///", "sqlite:///file:") + "?mode=ro&uri=true")
    for read_only in (False, True):
        with get_session(read_only=read_only) as session:
            assert count_generations(session) == 1
    with pytest.raises(ReadOnlyError) as refusal, get_session() as session:
        a_generation(session, prompt="a secret prompt")
    assert "secret" not in f"{refusal.value}{refusal.value.orig}"
    with get_session() as session:
        assert count_generations(session) == 1


def test_a_missing_or_empty_file_opened_read_only_is_not_changed(tmp_path: Any) -> None:
    empty = tmp_path / "empty.db"
    empty.touch()
    url = f"sqlite:///file:{empty}?mode=ro&uri=true"
    with pytest.raises(ReadOnlyError):
        init_db(url)
    with pytest.raises(NotInitializedError), Storage(url).session():
        pass
    assert empty.stat().st_size == 0
