"""The JSON columns, parameters and metadata: their members in queries, and that no change of them is lost."""

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import bindparam, func, select, update
from sqlalchemy.orm import Session, aliased

from services.storage import (
    Generation,
    Storage,
    clone_generation,
    get_generation,
    get_session,
    list_generations,
)
from tests.support.databases import is_sqlite, run_script
from tests.support.factories import a_generation, a_request

VALUES: dict[str, Any] = {
    "seven": 7,
    "real": 0.1,
    "text": "7",
    "true": True,
    "false": False,
    "object": {"a": [1]},
    "null": None,
    "2^63": 2**63,
    "2^64-2": 2**64 - 2,
    "2^64-1": 2**64 - 1,
}
NUMBERS = {"seven", "real", "2^63", "2^64-2", "2^64-1"}
seed_member = Generation.parameters["seed"]
MEMBERS = {"parameters": seed_member, "metadata": Generation.metadata_json["seed"]}

CONDITIONS: list[tuple[Callable[[Any], Any], set[str]]] = [
    (lambda seed: seed == 7, {"seven"}),
    (lambda seed: 7 == seed, {"seven"}),  # noqa: SIM300
    (lambda seed: seed == 7.0, {"seven"}),
    (lambda seed: seed == 0.1, {"real"}),
    (lambda seed: seed != 7, NUMBERS - {"seven"}),
    (lambda seed: ~(seed == 7), NUMBERS - {"seven"}),
    (lambda seed: seed < 8, {"seven", "real"}),
    (lambda seed: seed > 2**63, {"2^64-2", "2^64-1"}),
    (lambda seed: seed >= 2**64 - 1, {"2^64-1"}),
    (lambda seed: seed.between(0, 8), {"seven", "real"}),
    (lambda seed: seed.in_([7, 8]), {"seven"}),
    (lambda seed: seed.in_([7, 2**64 - 2]), {"seven", "2^64-2"}),
    (lambda seed: seed.in_(["7"]), {"text"}),
    (lambda seed: seed.in_([]), set()),
    (lambda seed: seed.not_in([7]), NUMBERS - {"seven"}),
    (lambda seed: seed == "7", {"text"}),
    (lambda seed: seed.like("%7"), {"text"}),
    (lambda seed: seed.startswith("7"), {"text"}),
    (lambda seed: seed == True, {"true"}),  # noqa: E712
    (lambda seed: seed == False, {"false"}),  # noqa: E712
    (lambda seed: seed == None, {"null", "missing"}),  # noqa: E711
    (lambda seed: seed.is_(None), {"null", "missing"}),
    (lambda seed: seed.is_not(None), set(VALUES) - {"null"}),
    (lambda seed: seed.as_integer() == 7, {"seven"}),
    (lambda seed: seed.as_integer() == 2**64 - 1, {"2^64-1"}),
    (lambda seed: seed.as_integer() + 1 == 8, {"seven"}),
    (lambda seed: seed.as_integer() == Generation.priority, {"seven"}),
    (lambda seed: seed.as_integer() == bindparam("seven", 7), {"seven"}),
    (lambda seed: seed.as_float() <= 0.1, {"real"}),
    (lambda seed: seed.as_string() == "7", {"text"}),
    (lambda seed: seed.as_string() == bindparam("seven", "7"), {"text"}),
    (lambda seed: seed.as_boolean(), {"true"}),
    (lambda seed: seed.as_boolean().is_(False), {"false"}),
    (lambda seed: seed.as_boolean() == True, {"true"}),  # noqa: E712
]


@pytest.fixture
def session(db: Storage) -> Iterator[Session]:
    """Return a session on a database with one generation for each value, whose id is the value's name."""
    with get_session() as session:
        for name, value in VALUES.items():
            document = {"seed": value, "other": 1}
            a_generation(session, generation_id=name, priority=7, parameters=document, metadata=document)
        a_generation(session, generation_id="missing", priority=7, parameters={}, metadata={})
    with get_session() as session:
        yield session


class TestMembers:
    @pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
    def test_a_condition_finds_members_of_the_kind_it_compares_with(self, session: Session, member: Any) -> None:
        for condition, expected in CONDITIONS:
            query = select(Generation.id).where(condition(member))
            assert set(session.scalars(query)) == expected, str(query)

    @pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
    @pytest.mark.parametrize(
        ("read", "expected"),
        [
            (lambda seed: seed, VALUES),
            (lambda seed: seed.label("seed"), VALUES),
            (lambda seed: seed.as_integer(), {name: VALUES[name] for name in NUMBERS}),
            (lambda seed: seed.as_float(), {name: float(VALUES[name]) for name in NUMBERS}),
            (lambda seed: seed.as_string(), {"text": "7"}),
            (lambda seed: seed.as_boolean(), {"true": True, "false": False}),
        ],
        ids=["value", "label", "integer", "float", "string", "boolean"],
    )
    def test_its_value_can_be_read(
        self, session: Session, member: Any, read: Any, expected: dict[str, Any], db: Storage
    ) -> None:
        found: dict[str, Any] = dict(iter(session.execute(select(Generation.id, read(member)))))
        for name, stored in found.items():
            value = expected.get(name)
            if db.backend.name == "sqlite" and name.startswith("2^6") and value is not None:
                value = float(value)  # SQLite computes with 63 bits
            assert stored == value
            assert type(stored) is type(value)

    def test_it_orders_and_groups(self, session: Session) -> None:
        number = seed_member.as_integer()
        ordered = session.scalars(
            select(Generation.id).where(number.is_not(None)).order_by(number.desc(), Generation.id)
        )
        assert list(ordered)[-2:] == ["seven", "real"]
        # Two expressions that are alike: PostgreSQL compares their texts.
        groups = select(Generation.parameters["other"].as_integer(), func.count())
        groups = groups.where(seed_member.is_not(None)).group_by(Generation.parameters["other"].as_integer())
        assert session.execute(groups).all() == [(1, len(VALUES) - 1)]

    def test_it_belongs_to_an_alias_and_to_the_table_too(self, session: Session) -> None:
        other = aliased(Generation)
        pairs = select(Generation.id, other.id).join(other, Generation.priority == other.priority)
        pairs = pairs.where(seed_member == 7, other.parameters["seed"] == "7")
        assert session.execute(pairs).all() == [("seven", "text")]
        table = Generation.__table__
        assert session.scalars(select(table.c.id).where(table.c.parameters["seed"] == 7)).all() == ["seven"]

    def test_it_selects_the_rows_of_an_update(self, session: Session) -> None:
        session.execute(update(Generation).where(seed_member == 7).values(priority=1))
        assert session.scalars(select(Generation.id).where(Generation.priority == 1)).all() == ["seven"]

    @pytest.mark.parametrize(
        "other",
        [[7], {"a": [1]}, 1j, Generation.priority, bindparam("seed")],
        ids=["list", "dict", "complex", "column", "parameter"],
    )
    def test_what_it_cannot_be_compared_with_is_refused(self, other: Any) -> None:
        with pytest.raises(TypeError, match=r"member .* as_integer\(\)"):
            assert seed_member == other
        with pytest.raises(TypeError, match=r"member .* as_integer\(\)"):
            seed_member.in_([7, "7"])

    def test_a_key_must_be_text(self) -> None:
        with pytest.raises(TypeError, match="text as its key, not int"):
            Generation.parameters[0]

    def test_there_is_no_arithmetic_with_integers_that_sqlite_cannot_compute_with(self) -> None:
        with pytest.raises(TypeError, match="63 bits"):
            seed_member.as_integer() + 2**64

    def test_a_query_can_be_printed_without_an_engine(self) -> None:
        assert "json_member(generations.parameters" in str(select(Generation.id).where(seed_member == 7))

    def test_rows_of_other_programs_have_no_members_if_they_are_not_json(self, db: Storage, database_url: str) -> None:
        if not is_sqlite(database_url):
            return  # JSONB is always JSON
        with get_session() as session:
            a_generation(session)
        for text in ("not json", "[7]", '"seed"', '{"seed": 7'):
            run_script(database_url, f"UPDATE generations SET parameters = '{text}'")
            with get_session() as session:
                assert session.scalars(select(seed_member)).all() == [None]
                assert session.scalars(select(Generation.id).where(seed_member == 7)).all() == []


@pytest.mark.parametrize("key", ['"', "a.b", "$", "[0]", "a'b", "ключ", "", "%s", ":x", "a\\b", 'x"y"z', "%(x)s"])
def test_any_text_can_be_the_key_of_a_member(db: Storage, key: str) -> None:
    with get_session() as session:
        one = a_generation(session, parameters={key: 7})
        a_generation(session, parameters={"other": 7})
        query = select(Generation.id).where(Generation.parameters[key] == 7)
        assert session.scalars(query).all() == [one.id]
        assert session.scalars(select(Generation.parameters[key]).where(Generation.id == one.id)).all() == [7]


DOCUMENT = {"seed": 7, "melody": {"notes": [1, 2, {"pitch": 60}]}}
CHANGES: list[Callable[[Any], Any]] = [
    lambda value: value.__setitem__("seed", 8),
    lambda value: value.__delitem__("seed"),
    lambda value: value.clear(),
    lambda value: value.pop("seed"),
    lambda value: value.popitem(),
    lambda value: value.setdefault("x", 1),
    lambda value: value.update(seed=8),
    lambda value: value["melody"].update(seed=8),
    lambda value: value["melody"]["notes"].append(3),
    lambda value: value["melody"]["notes"].extend([3]),
    lambda value: value["melody"]["notes"].insert(0, 3),
    lambda value: value["melody"]["notes"].remove(1),
    lambda value: value["melody"]["notes"].pop(),
    lambda value: value["melody"]["notes"].clear(),
    lambda value: value["melody"]["notes"].sort(),
    lambda value: value["melody"]["notes"].reverse(),
    lambda value: value["melody"]["notes"].__setitem__(0, 3),
    lambda value: value["melody"]["notes"].__delitem__(0),
    lambda value: value["melody"]["notes"].__iadd__([3]),
    lambda value: value["melody"]["notes"].__imul__(2),
    lambda value: value["melody"]["notes"][2].clear(),
]


class TestChangesInPlace:
    """SQLAlchemy does not notice them, so they must be impossible wherever the object comes from."""

    @pytest.mark.parametrize(
        "read",
        [
            lambda session, key: Generation(**a_request(parameters=DOCUMENT, metadata=DOCUMENT)),
            lambda session, key: session.get_one(Generation, key),
            get_generation,
            lambda session, key: session.scalars(select(Generation)).one(),
            lambda session, key: list_generations(session).items[0],
            lambda session, key: clone_generation(session, key, file_path="b.wav", metadata=DOCUMENT),
            lambda session, key: pickle.loads(pickle.dumps(session.get_one(Generation, key))),
        ],
        ids=["new", "session.get", "get", "query", "page", "clone", "unpickled"],
    )
    def test_they_are_refused(self, db: Storage, read: Any) -> None:
        with get_session() as session:
            key = a_generation(session, parameters=DOCUMENT, metadata=DOCUMENT).id
        with get_session() as session:
            generation = read(session, key)
            for attribute in ("parameters", "metadata_dict"):
                for change in CHANGES:
                    with pytest.raises(TypeError, match="assign"):
                        change(getattr(generation, attribute))
                assert getattr(generation, attribute) == DOCUMENT

    @pytest.mark.parametrize("depth", [100, 450, 700, 900, 970, 990, 5_000])
    def test_a_value_that_is_too_deep_for_python_loads_as_none(
        self, db: Storage, database_url: str, depth: int
    ) -> None:
        with get_session() as session:
            key = a_generation(session).id
        document = '{"a": ' * depth + "1" + "}" * depth
        run_script(database_url, f"UPDATE generations SET parameters = '{document}', metadata = '{document}'")
        with get_session() as session:
            for generation in (get_generation(session, key), session.get(Generation, key)):
                assert generation is not None
                for value in (generation.parameters or {}, generation.metadata_dict):
                    # In between it depends on how deep the caller is.
                    assert len(value) == (1 if depth <= 700 else 0) or 700 < depth < 1_000

    def test_an_assignment_is_stored(self, db: Storage) -> None:
        with get_session() as session:
            generation = a_generation(session, parameters=DOCUMENT)
            changed = copy.deepcopy(dict(generation.parameters or {}))
            changed["melody"]["notes"].append(3)
            generation.parameters = changed
            generation.parameters |= {"seed": 8}
            key = generation.id
        with get_session() as session:
            assert session.get_one(Generation, key).parameters == changed | {"seed": 8}

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, dict, lambda value: value | {}])
    def test_a_copy_can_be_changed(self, copied: Any) -> None:
        stored = Generation(**a_request(parameters=DOCUMENT)).parameters
        changed = copied(stored)
        changed["seed"] = 8
        assert stored == DOCUMENT
        deep = copy.deepcopy(stored)
        deep["melody"]["notes"].append(3)
        assert stored == DOCUMENT

    def test_they_are_what_json_and_others_take(self) -> None:
        stored = Generation(**a_request(parameters=DOCUMENT)).parameters
        assert isinstance(stored, dict)
        assert json.loads(json.dumps(stored)) == stored == DOCUMENT
        assert type(Generation(**a_request(parameters=DOCUMENT)).to_dict()["parameters"]) is dict
