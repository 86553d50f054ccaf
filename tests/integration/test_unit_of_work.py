"""Rows in sessions as SQLAlchemy's users expect them: add, merge, copies, versions, relationships."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event, insert, inspect, select, update
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import (
    ORMExecuteState,
    Session,
    joinedload,
    make_transient,
    scoped_session,
    selectinload,
    sessionmaker,
)

from services.storage import (
    Attempt,
    ConflictError,
    Generation,
    IllegalTransitionError,
    Prompt,
    RetryPolicy,
    Storage,
    Worker,
    cancel_generation,
    check_database,
    claim_generation,
    clone_generation,
    complete_generation,
    create_generation,
    create_generations,
    delete_generation,
    delete_prompt,
    explain_wait,
    fail_generation,
    get_all_generations,
    get_generation,
    get_prompt_by_text,
    get_session,
    heartbeat_generation,
    list_generations,
    search_generations,
    search_prompts,
    set_favorite,
    track_prompt_usage,
    update_generation_status,
)
from services.storage.worker import Result
from tests.support.factories import a_generation, a_request
from tests.support.sessions import used_count

NO_DELAY = RetryPolicy(base_seconds=0)


@contextmanager
def statements_of(storage: Storage) -> Iterator[list[str]]:
    """Collect the SQL that is executed in the block."""
    seen: list[str] = []

    def record(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    event.listen(storage.engine, "before_cursor_execute", record)
    try:
        yield seen
    finally:
        event.remove(storage.engine, "before_cursor_execute", record)


class TestMerge:
    @pytest.mark.parametrize("is_loaded", [True, False])
    @pytest.mark.parametrize("is_read_before", [True, False])
    def test_it_changes_only_the_attributes_that_were_given(
        self, db: Storage, is_loaded: bool, is_read_before: bool
    ) -> None:
        for _ in range(5):
            with get_session() as session:
                prompt_id = track_prompt_usage(session, "x").id
        with get_session() as session:
            before = create_generation(
                session, **a_request(prompt="x", metadata={"bpm": 1}, parameters={"seed": 1}, priority=3)
            ).to_dict()
        prompt = Prompt(id=prompt_id, text="x")
        generation = Generation(id=before["id"], is_favorite=True)
        if is_read_before:
            assert (prompt.used_count, generation.priority, generation.metadata) == (1, 0, None)
            repr(prompt), repr(generation), generation.to_dict()
        with get_session() as session:
            if is_loaded:
                session.get(Prompt, prompt_id), session.get(Generation, before["id"])
            session.merge(prompt)
            session.merge(generation)
        with get_session() as session:
            assert session.get_one(Prompt, prompt_id).used_count == 6
            after = session.get_one(Generation, before["id"]).to_dict()
        assert after == before | {"is_favorite": True, "version": 2}

    def test_an_unknown_row_is_inserted_with_its_defaults(self, db: Storage) -> None:
        with get_session() as session:
            merged = session.merge(Generation(**a_request(), id="mine"))
            assert (merged.status, merged.priority) == ("pending", 0)
            created_at = merged.created_at
        assert merged.created_at == created_at
        assert merged.scheduled_at == created_at or db.backend.has_own_clock  # due by the clock of the server
        assert (merged.version, merged.metadata, merged.attempt) == (1, None, 0)
        assert used_count("trap beat 140 BPM") == 1

    def test_a_detached_row_that_was_changed_in_the_meantime_is_a_conflict(self, db: Storage) -> None:
        with get_session() as session:
            stale = a_generation(session)
        with get_session() as session:
            set_favorite(session, stale.id)
        stale.priority = 5
        with pytest.raises(ConflictError), get_session() as session:
            session.merge(stale)


class TestDefaults:
    def test_those_that_were_read_before_are_stored(self, db: Storage) -> None:
        generation = Generation(**a_request(), id="mine")
        created_at = generation.created_at
        assert generation.created_at == created_at
        with get_session() as session:
            session.add(generation)
        assert generation.created_at == created_at
        assert generation.scheduled_at == created_at or db.backend.has_own_clock  # due by the clock of the server
        with get_session() as session:
            assert session.get_one(Generation, "mine").created_at == created_at

    def test_all_attributes_can_be_read_after_the_session(self, db: Storage) -> None:
        rows = [Generation(**a_request()), Generation(**a_request(), id="mine"), Prompt(text="other")]
        with get_session() as session:
            session.add_all(rows)
        for row in rows:
            row.to_dict()

    def test_tools_may_ask_for_them_without_a_row(self) -> None:
        for model in (Generation, Prompt, Attempt):
            for column in model.__table__.columns:
                if column.default is not None and column.default.is_callable:
                    assert column.default.arg(None) is not None

    def test_a_row_without_its_id_is_stored_again_as_a_copy(self, db: Storage) -> None:
        with get_session() as session:
            first = a_generation(session, metadata={"bpm": 1})
            copied = first.id
            session.flush()
            session.expunge(first)
            make_transient(first)
            first.id = None  # type: ignore[assignment]
            session.add(first)
        assert first.id != copied
        with get_session() as session:
            assert (
                session.get_one(Generation, copied).get_metadata()
                == session.get_one(Generation, first.id).get_metadata()
            )
        assert used_count(first.prompt) == 2

    def test_a_stored_row_keeps_its_id(self, db: Storage) -> None:
        with get_session() as session, pytest.raises(TypeError, match="id"):
            a_generation(session).id = None  # type: ignore[assignment]


class TestAdd:
    def test_it_counts_and_links_the_prompt_as_create_generation_does(self, db: Storage) -> None:
        with get_session() as session:
            a_generation(session, prompt="slow waltz")
        with get_session() as session:
            prompt = get_prompt_by_text(session, "slow waltz")
            added = [Generation(**a_request(prompt="slow waltz")) for _ in range(3)]
            other = Generation(**a_request(prompt="fast polka"))
            session.add_all([*added, other])
            session.flush()
            assert prompt is not None
            assert prompt.used_count == 4
            assert {row.prompt_id for row in added} == {prompt.id}
            assert len(list_generations(session, prompt="slow waltz").items) == 4
            assert [row.id for row in search_generations(session, "polka").items] == [other.id]
            assert other.prompt_record is not None
        assert check_database().findings == ()

    @pytest.mark.parametrize("first", ["prompt", "generation"])
    def test_a_prompt_and_its_generation_can_be_added_together(self, db: Storage, first: str) -> None:
        rows: list[Any] = [Prompt(text="slow waltz"), Generation(**a_request(prompt="slow waltz"))]
        with get_session() as session:
            session.add_all(rows if first == "prompt" else rows[::-1])
        assert rows[1].prompt_id == rows[0].id
        assert used_count("slow waltz") == 2

    def test_a_parent_and_its_variation_can_be_added_together(self, db: Storage) -> None:
        parent = Generation(**a_request())
        with get_session() as session:
            session.add(Generation(**a_request(), id="variation", parent=parent))
        with get_session() as session:
            assert session.get_one(Generation, "variation").parent_id == parent.id

    def test_what_others_insert_without_a_prompt_is_reported(self, db: Storage) -> None:
        with get_session() as session:
            session.execute(insert(Generation), [a_request(id="bulk")])
        (finding,) = check_database().findings
        assert finding.subject == "generations bulk"
        assert "prompt_id" in finding.problem


class TestFixedAttributes:
    def test_the_text_of_a_stored_prompt_cannot_change(self, db: Storage) -> None:
        with get_session() as session:
            prompt = track_prompt_usage(session, "slow waltz")
            prompt.text = "slow waltz"
            with pytest.raises(ValueError, match="text of a stored prompt"):
                prompt.text = "fast polka"

    def test_a_stale_version_is_a_conflict_and_the_right_one_is_accepted(self, db: Storage) -> None:
        with get_session() as session:
            generation = a_generation(session)
            generation.priority = 1
            session.flush()
            generation.version = 2
            for wrong in (1, 3):
                with pytest.raises(ConflictError, match="version"):
                    generation.version = wrong
        assert generation.version == 2

    def test_the_record_of_the_prompt_cannot_be_assigned(self, db: Storage) -> None:
        with get_session() as session, pytest.raises(ValueError, match="prompt_record"):
            a_generation(session).prompt_record = track_prompt_usage(session, "other")


class TestRelationships:
    @pytest.fixture
    def family(self, db: Storage) -> dict[str, str]:
        with get_session() as session:
            parent = a_generation(session)
            for number in (1, 2):
                lease = claim_generation(session, f"worker-{number}").lease  # type: ignore[union-attr]
                assert lease is not None
                fail_generation(session, parent.id, "out of memory", lease=lease, retry_policy=NO_DELAY)
            first = clone_generation(session, parent.id, file_path="a.wav")
            second = clone_generation(session, parent.id, file_path="b.wav")
            assert first is not None
            assert second is not None
            return {"parent": parent.id, "first": first.id, "second": second.id}

    def test_they_follow_the_foreign_keys(self, family: dict[str, str]) -> None:
        with get_session(read_only=True) as session:
            parent = session.get_one(Generation, family["parent"])
            assert [row.id for row in parent.variations] == [family["first"], family["second"]]
            assert {row.parent for row in parent.variations} == {parent}
            assert parent.prompt_record is not None
            assert parent.prompt_record.text == parent.prompt
            assert {row.id for row in parent.prompt_record.generations} == set(family.values())
            assert [attempt.number for attempt in parent.attempts] == [1, 2]

    @pytest.mark.parametrize("load", [joinedload, selectinload])
    def test_they_load_eagerly(self, family: dict[str, str], db: Storage, load: Any) -> None:
        paths = (Generation.prompt_record, Generation.parent, Generation.variations, Generation.attempts)
        with get_session(read_only=True) as session:
            query = select(Generation).options(*(load(path) for path in paths))
            rows = session.scalars(query).unique().all()
            with statements_of(db) as statements:
                for row in rows:
                    assert row.prompt_record is not None
                    repr((row.parent, row.variations, row.attempts))
            assert statements == []

    @pytest.mark.parametrize("is_loaded", [True, False])
    def test_the_database_applies_the_cascades(self, family: dict[str, str], is_loaded: bool) -> None:
        with get_session() as session:
            parent = session.get_one(Generation, family["parent"])
            if is_loaded:
                len(parent.attempts), len(parent.variations), parent.prompt_record
            session.delete(parent)
        with get_session() as session:
            assert session.scalars(select(Attempt)).all() == []
            assert session.get_one(Generation, family["first"]).parent_id is None
            prompt = session.scalars(select(Prompt)).one()
            if is_loaded:
                assert len(prompt.generations) == 2
            session.delete(prompt)
        with get_session() as session:
            assert session.scalars(select(Generation)).all() == []

    def test_the_library_itself_never_loads_one(self, db: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(state: ORMExecuteState) -> None:
            assert not state.is_relationship_load, state.statement

        event.listen(Session, "do_orm_execute", refuse)
        try:
            self.use_everything()
        finally:
            event.remove(Session, "do_orm_execute", refuse)

    def use_everything(self) -> None:
        with get_session() as session:
            first = a_generation(session)
            create_generations(session, [a_request(), a_request(idempotency_key="k")])
            clone = clone_generation(session, first.id, file_path="b.wav")
            assert clone is not None
            claimed = claim_generation(session, "w")
            assert claimed is not None
            assert claimed.lease is not None
            heartbeat_generation(session, claimed.lease, progress=0.5)
            complete_generation(session, claimed.id, 1.0, 1, {"a": 1}, lease=claimed.lease)
            update_generation_status(session, clone.id, "processing")
            complete_generation(session, clone.id, 1.0, 1)
            session.add(Generation(**a_request(parent_id=first.id)))
        assert Worker(lambda job: Result(1)).run(max_jobs=1) == 1
        with get_session() as session:
            for row in get_all_generations(session):
                row.to_dict(), repr(row)
            search_prompts(session, "trap"), search_generations(session, "trap")
            explain_wait(session, first.id)
            pending = list_generations(session, status="pending").items[0]
            cancel_generation(session, pending.id)
            delete_generation(session, pending.id)
            prompt = get_prompt_by_text(session, first.prompt)
            assert prompt is not None
            delete_prompt(session, prompt.id)

    def test_they_cost_no_statement(self, db: Storage) -> None:
        with get_session() as session:
            a_generation(session)
        counts = {}
        with get_session() as session:
            for name, action in {
                "create": lambda: a_generation(session),
                "page": lambda: list_generations(session, limit=100),
                "get": lambda: get_generation(session, "unknown"),
                "claim": lambda: claim_generation(session, "w"),
            }.items():
                with statements_of(db) as statements:
                    action()
                counts[name] = len([text for text in statements if not text.startswith("BEGIN")])
        create = 1 if db.backend.name == "postgresql" else 2
        assert counts == {"create": create, "page": 1, "get": 1, "claim": 1}


class TestStatusPredicates:
    def test_they_are_conditions_on_the_class(self, db: Storage) -> None:
        checks = ("is_pending", "is_processing", "is_complete", "is_failed", "is_cancelled", "is_finished")
        with get_session() as session:
            for status in ("pending", "processing", "completed", "failed", "cancelled"):
                session.add(Generation(**a_request(status=status), id=status))
        with get_session() as session:
            rows = session.scalars(select(Generation)).all()
            for check in checks:
                found = session.scalars(select(Generation).where(getattr(Generation, check))).all()
                assert {row.id for row in found} == {row.id for row in rows if getattr(row, check)}
                assert found


class TestShowing:
    def test_a_repr_never_raises_and_never_queries(self, db: Storage) -> None:
        with get_session() as session:
            generation_id = a_generation(session).id
        with get_session() as session:
            expired = session.get_one(Generation, generation_id)
            session.expire(expired)
            with statements_of(db) as statements:
                assert "Generation" in repr(expired)
            assert statements == []
            session.expunge(expired)
        assert "Generation" in repr(expired)
        assert inspect(expired).detached
        for model in (Generation, Prompt, Attempt):
            assert model.__name__ in repr(model.__new__(model))  # as debuggers show a half-made object
            assert model.__name__ in repr(model())


INSERTS: list[Any] = [
    lambda session, row: session.execute(insert(Generation).values(**row)),
    lambda session, row: session.execute(insert(Generation).values([row])),
    lambda session, row: session.execute(insert(Generation), row),
    lambda session, row: session.execute(insert(Generation), [row]),
    lambda session, row: session.scalars(insert(Generation).returning(Generation.id), [row]).all(),
    lambda session, row: session.execute(insert(Generation.__table__), [row]),
    lambda session, row: session.bulk_insert_mappings(Generation, [row]),
    lambda session, row: session.bulk_save_objects([Generation(**row)]),
    lambda session, row: session.add(Generation(**row)),
    lambda session, row: session.merge(Generation(**row)),
]
UPDATES: list[Any] = [
    lambda session, row: session.execute(update(Generation), [row]),
    lambda session, row: session.bulk_update_mappings(Generation, [row]),
    lambda session, row: session.merge(Generation(**row)),
]


class TestTheNameMetadata:
    """The column's name, which SQLAlchemy would ignore in mappings because the attribute is metadata_json."""

    @pytest.fixture(params=["get_session", "Session"])
    def open_session(self, request: pytest.FixtureRequest, db: Storage) -> Any:
        return get_session if request.param == "get_session" else sessionmaker(db.engine).begin

    @pytest.mark.parametrize("store", INSERTS, ids=range(len(INSERTS)))
    def test_it_is_stored_however_a_row_is_inserted(self, db: Storage, open_session: Any, store: Any) -> None:
        with open_session() as session:
            store(session, a_request(id="mine", metadata={"bpm": 140}))
        with get_session() as session:
            generation = session.get_one(Generation, "mine")
            assert generation.get_metadata() == {"bpm": 140}
            # session.add() and merge() take the time of the server's clock.
            assert generation.scheduled_at == generation.created_at or db.backend.has_own_clock

    @pytest.mark.parametrize("name", ["metadata", "metadata_json"])
    def test_it_is_stored_however_a_row_is_updated(self, open_session: Any, name: str) -> None:
        with get_session() as session:
            a_generation(session, generation_id="mine", metadata={"bpm": 0})
        for bpm, store in enumerate(UPDATES, start=1):
            with open_session() as session:
                store(session, {"id": "mine", "version": bpm, name: {"bpm": bpm}})
            with get_session() as session:
                assert session.get_one(Generation, "mine").get_metadata() == {"bpm": bpm}
        with get_session() as session:
            session.execute(update(Generation).values(metadata_json={"bpm": 7}))
            assert session.get_one(Generation, "mine").get_metadata() == {"bpm": 7}

    def test_a_later_relationship_of_a_user_changes_nothing(self, db: Storage) -> None:
        Generation.__mapper__._expire_memoizations()  # as adding an attribute to the mapper does
        with get_session() as session:
            session.execute(insert(Generation), [a_request(id="mine", metadata={"bpm": 140})])
        with get_session() as session:
            assert session.get_one(Generation, "mine").get_metadata() == {"bpm": 140}


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"metadata": [1]}, TypeError, "metadata must be a JSON object .* not list"),
        ({"metadata_json": 7}, TypeError, "metadata must be a JSON object .* not int"),
        ({"metadata": {"a": object()}}, TypeError, "object is not JSON"),
        ({"metadata": {"a": float("nan")}}, ValueError, "not JSON"),
        ({"parameters": [1]}, TypeError, "parameters must be a JSON object .* not list"),
        ({"parameters": '{"seed": 7}'}, TypeError, "parameters must be a JSON object .* not str"),
    ],
    ids=range(6),
)
@pytest.mark.parametrize("is_plain", [False, True])
def test_json_that_a_statement_cannot_store_is_our_error(
    db: Storage, is_plain: bool, values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with Session(db.engine) if is_plain else get_session() as session:
        for statement in (insert(Generation).values(**a_request(), **values), update(Generation).values(**values)):
            with pytest.raises(error, match=message) as refusal:
                session.execute(statement, execution_options={"synchronize_session": False})
            assert type(refusal.value) is error


def test_the_name_metadata_in_an_update_is_stored_or_refused(db: Storage) -> None:
    change = update(Generation).values(metadata={"bpm": 7})
    with get_session() as session:
        generation_id = a_generation(session, metadata={"bpm": 140}).id
    with pytest.raises(InvalidRequestError, match="'metadata'"), get_session() as session:
        session.execute(change)  # SQLAlchemy looks for the attribute of the objects that the session holds
    with get_session() as session:
        assert session.get_one(Generation, generation_id).get_metadata() == {"bpm": 140}
        session.execute(change, execution_options={"synchronize_session": False})
    with get_session() as session:
        assert session.get_one(Generation, generation_id).get_metadata() == {"bpm": 7}


def test_many_rows_of_values_have_their_own_times(db: Storage) -> None:
    times = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
    rows = [a_request(id=str(at), created_at=at) for at in times]
    with get_session() as session:
        session.execute(insert(Generation).values(rows))
    with get_session() as session:
        assert session.scalars(select(Generation.scheduled_at).order_by(Generation.scheduled_at)).all() == times


class TestConflicts:
    @pytest.mark.parametrize("is_plain", [False, True])
    @pytest.mark.parametrize("act", ["flush", "commit", "begin_nested", "query", "delete", "many"])
    def test_a_row_that_another_session_changed_is_a_conflict(self, db: Storage, act: str, is_plain: bool) -> None:
        with get_session() as session:
            rows = [a_generation(session) for _ in range(2)]
        with Session(db.engine, expire_on_commit=False) if is_plain else get_session() as session:
            mine = [session.get_one(Generation, row.id) for row in rows]
            session.commit()
            with get_session() as other:
                set_favorite(other, rows[0].id)
            if act == "delete":
                session.delete(mine[0])
            else:
                for row in mine[: 2 if act == "many" else 1]:
                    row.priority = 7
            write = {
                "commit": session.commit,
                "begin_nested": session.begin_nested,
                "query": lambda: session.scalars(select(Prompt)).all(),
            }.get(act, session.flush)
            with pytest.raises(ConflictError):
                write()  # type: ignore[operator]
            session.rollback()
        with get_session() as session:
            assert session.get_one(Generation, rows[1].id).priority == 0

    def test_refreshing_a_row_that_another_session_deleted_is_a_conflict(self, db: Storage) -> None:
        with get_session() as session:
            mine = a_generation(session)
            session.commit()
            with get_session() as other:
                delete_generation(other, mine.id)
            with pytest.raises(ConflictError):
                session.refresh(mine)
            with pytest.raises(InvalidRequestError, match="not persistent"):
                session.refresh(Generation())


def complete_claimed(session: Session) -> None:
    claimed = claim_generation(session, "w")
    assert claimed is not None
    complete_generation(session, claimed.id, 1.0, 1, lease=claimed.lease)


INSERTED, UPDATED, DELETED = ({f"before_{kind}", f"after_{kind}"} for kind in ("insert", "update", "delete"))


class TestEvents:
    """The table of the manual: what fires where."""

    @pytest.fixture
    def events(self) -> Iterator[set[str]]:
        """Return the names of the events that have fired."""
        fired: set[str] = set()
        listeners: list[tuple[Any, str, Any]] = []
        for target, names in (
            (Generation, [*INSERTED, *UPDATED, *DELETED, "init", "load"]),
            (Generation.status, ["set"]),
            (Session, ["after_commit"]),
        ):
            for name in names:
                listeners.append((target, name, lambda *args, name=name: fired.add(name)))
                event.listen(*listeners[-1])
        yield fired
        for listener in listeners:
            event.remove(*listener)

    @pytest.mark.parametrize(
        ("act", "expected"),
        [
            (lambda session, row: session.add(Generation(**a_request())), INSERTED | {"init"}),
            (lambda session, row: session.merge(Generation(**a_request())), INSERTED | {"init", "set", "load"}),
            (lambda session, row: a_generation(session), set()),
            (lambda session, row: create_generations(session, [a_request()]), set()),
            (lambda session, row: clone_generation(session, row.id, file_path="b.wav"), set()),
            (lambda session, row: row.mark_processing(), UPDATED | {"set"}),
            (lambda session, row: update_generation_status(session, row.id, "processing"), UPDATED | {"set"}),
            (lambda session, row: claim_generation(session, "w"), set()),
            (lambda session, row: complete_generation(session, row.id, 1.0, 1), UPDATED | {"set"}),
            (lambda session, row: complete_claimed(session), set()),
            (lambda session, row: cancel_generation(session, row.id), set()),
            (lambda session, row: set_favorite(session, row.id), set()),
            (lambda session, row: session.delete(row), DELETED),
            (lambda session, row: delete_generation(session, row.id), set()),
            (lambda session, row: session.expunge_all() or session.get(Generation, row.id), {"load"}),
            (lambda session, row: session.expunge_all() or list_generations(session), {"load"}),
            (lambda session, row: session.expunge_all() or get_generation(session, row.id), set()),
        ],
        ids=range(17),
    )
    def test_they_fire_where_the_manual_says(self, db: Storage, events: set[str], act: Any, expected: set[str]) -> None:
        with get_session() as session:
            row = a_generation(session)
            session.commit()
            events.clear()
            act(session, row)
        assert events == expected | {"after_commit"}


def test_a_scoped_session_works(db: Storage) -> None:
    scoped = scoped_session(sessionmaker(db.engine))
    generation_id = a_generation(scoped()).id
    scoped.commit()
    scoped.remove()
    assert scoped.get(Generation, generation_id) is not None
    scoped.remove()


class TestResultsOfCompletedGenerations:
    def test_a_result_is_filled_in_once(self, db: Storage) -> None:
        with get_session() as session:
            generation = a_generation(session, metadata={"bpm": 140})
            update_generation_status(session, generation.id, "completed")
            completed_at = generation.completed_at
            complete_generation(session, generation.id, 18.5, 5_000, {"key": "Cm"})
        with get_session() as session:
            stored = session.get_one(Generation, generation.id)
            assert (stored.generation_time_seconds, stored.file_size_bytes) == (18.5, 5_000)
            assert stored.get_metadata() == {"bpm": 140, "key": "Cm"}
            assert stored.completed_at == completed_at
            with pytest.raises(IllegalTransitionError, match="already completed"):
                complete_generation(session, generation.id, 1.0, 1)

    @pytest.mark.parametrize("status", ["failed", "cancelled"])
    def test_another_end_is_final(self, db: Storage, status: str) -> None:
        with get_session() as session:
            generation = a_generation(session)
            update_generation_status(session, generation.id, status)
            with pytest.raises(IllegalTransitionError, match=f"'{status}' to 'completed'"):
                complete_generation(session, generation.id, 1.0, 1)
