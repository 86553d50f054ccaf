"""The tools that people use with SQLAlchemy, as they are, on our models and sessions."""

import asyncio
import json
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Annotated, Any

import fastapi
import httpx
import pydantic
import pytest
import sqladmin
from marshmallow_sqlalchemy import SQLAlchemyAutoSchema
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from sqlalchemy import Double
from sqlalchemy.orm import Session
from wtforms import FloatField

from services.storage import (
    Attempt,
    DatabaseURLError,
    Generation,
    Prompt,
    Storage,
    Worker,
    count_generations,
    create_generation,
    get_all_prompts,
    get_generation,
    get_session,
    list_generations,
    set_favorite,
)
from services.storage.worker import Result
from tests.support.factories import REQUEST, a_generation, a_request


def request(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    """Send one request to an ASGI application."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", follow_redirects=True) as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


class TestFastAPI:
    @pytest.fixture
    def app(self, db: Storage) -> fastapi.FastAPI:
        app = fastapi.FastAPI()
        Database = Annotated[Session, fastapi.Depends(get_session)]  # noqa: N806

        @app.post("/generations")
        def submit(prompt: str, session: Database) -> dict[str, Any]:
            return create_generation(session, **REQUEST | {"prompt": prompt}).to_dict()

        @app.post("/broken")
        def broken(session: Database) -> None:
            a_generation(session)
            raise fastapi.HTTPException(418)

        @app.get("/generations/{generation_id}")
        def show(generation_id: str, session: Database) -> dict[str, Any]:
            found = get_generation(session, generation_id)
            if found is None:
                raise fastapi.HTTPException(404)
            return found.to_dict()

        return app

    def test_get_session_is_a_dependency(self, app: fastapi.FastAPI) -> None:
        submitted = request(app, "POST", "/generations", params={"prompt": "slow waltz"})
        assert submitted.status_code == 200
        shown = request(app, "GET", f"/generations/{submitted.json()['id']}")
        assert shown.json() == submitted.json()

    def test_an_error_of_the_endpoint_rolls_back(self, app: fastapi.FastAPI) -> None:
        assert request(app, "POST", "/broken").status_code == 418
        with get_session() as session:
            assert count_generations(session) == 0

    def test_no_option_of_the_session_is_published(self, app: fastapi.FastAPI) -> None:
        assert "read_only" not in json.dumps(app.openapi())
        shown = request(app, "POST", "/generations", params={"prompt": "x", "read_only": "true"})
        assert shown.status_code == 200


class TestPydantic:
    def test_attributes_become_a_model(self, db: Storage) -> None:
        class Out(pydantic.BaseModel):
            model_config = pydantic.ConfigDict(from_attributes=True)
            id: str
            status: str
            metadata: dict[str, Any] = pydantic.Field(validation_alias="metadata_dict")
            parameters: dict[str, Any] | None

        with get_session() as session:
            generation = a_generation(session, metadata={"bpm": 140}, parameters={"seed": 7})
        out = Out.model_validate(generation)
        assert out.metadata == {"bpm": 140}
        assert json.loads(out.model_dump_json())["parameters"] == {"seed": 7}


class FormReader(HTMLParser):
    """Reads what a browser would submit if the person changed nothing."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.values: dict[str, str] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        name = given.get("name") or ""
        if tag == "input" and given.get("type") != "submit" and (given.get("type") != "checkbox" or "checked" in given):
            self.values[name] = given.get("value") or ""
        elif tag in ("select", "textarea"):
            self._open = name
            if tag == "textarea":
                self.values[name] = ""
        elif tag == "option" and "selected" in given:
            self.values[self._open] = given.get("value") or ""

    def handle_data(self, data: str) -> None:
        if self._open in self.values and self.lasttag == "textarea":
            self.values[self._open] += data.removeprefix("\r\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("select", "textarea"):
            self._open = ""


class TestSQLAdmin:
    """Forms of all columns and relationships, submitted over HTTP."""

    @pytest.fixture
    def app(self, db: Storage) -> fastapi.FastAPI:
        app = fastapi.FastAPI()
        admin = sqladmin.Admin(app, db.engine)
        for model in (Generation, Prompt):
            # sqladmin has no field for the numbers of SQLAlchemy 2.1.
            numbers = {column.name: FloatField for column in model.__table__.columns if isinstance(column.type, Double)}
            options = {"column_list": "__all__", "form_overrides": numbers}
            admin.add_view(type(f"{model.__name__}Admin", (sqladmin.ModelView,), options, model=model))
        return app

    def submit(self, app: fastapi.FastAPI, path: str, **changes: str) -> httpx.Response:
        shown = request(app, "GET", path)
        assert shown.status_code == 200, path
        return request(app, "POST", path, data=FormReader(shown.text).values | changes | {"save": "Save"})

    def test_every_page_opens(self, app: fastapi.FastAPI) -> None:
        with get_session() as session:
            generation = a_generation(session, metadata={"bpm": 140})
        for name, key in (("generation", generation.id), ("prompt", generation.prompt_id)):
            for page in ("list", f"details/{key}"):
                assert request(app, "GET", f"/admin/{name}/{page}").status_code == 200, page

    def test_a_form_creates_a_row(self, app: fastapi.FastAPI) -> None:
        given = {name: str(value) for name, value in REQUEST.items()} | {"prompt": "slow waltz"}
        given |= {"metadata_json": '{"bpm": 140}', "parameters": '{"seed": 7}'}
        assert self.submit(app, "/admin/generation/create", **given).url.path == "/admin/generation/list"
        with get_session() as session:
            (stored,) = list_generations(session, prompt="slow waltz").items
            assert (stored.get_metadata(), stored.parameters) == ({"bpm": 140}, {"seed": 7})
            assert (stored.status, stored.version, stored.duration_seconds) == (
                "pending",
                1,
                REQUEST["duration_seconds"],
            )
            assert stored.prompt_record is not None
            assert stored.prompt_record.used_count == 1

    def test_a_form_changes_only_what_the_person_changed(self, app: fastapi.FastAPI) -> None:
        whole_second = datetime(2026, 1, 1, tzinfo=UTC)  # the form has no fractions
        with get_session() as session:
            generation = Generation(**a_request(metadata={"bpm": 140}, parameters={"seed": 7}, created_at=whole_second))
            generation.scheduled_at = whole_second
            session.add(generation)
        before = generation.to_dict()
        assert self.submit(app, f"/admin/generation/edit/{generation.id}", priority="7").url.path.endswith("/list")
        with get_session() as session:
            after = session.get_one(Generation, generation.id)
            assert after.to_dict() == before | {"priority": 7, "version": 2}
            assert after.prompt_record is not None
            assert after.prompt_record.used_count == 1

    def test_a_mistake_or_a_stale_form_is_refused_with_a_reason(self, app: fastapi.FastAPI) -> None:
        with get_session() as session:
            generation = a_generation(session)
            set_favorite(session, generation.id)
        for changes, reason in (
            ({"channels": "3"}, "channels must be 1"),
            ({"metadata_json": "[1]"}, "metadata must be the text of a JSON object"),
            ({"prompt": "other"}, "prompt of a stored generation cannot change"),
            ({"version": "1"}, "version of the stored row is 2"),
        ):
            refused = self.submit(app, f"/admin/generation/edit/{generation.id}", **changes)
            assert refused.status_code == 400
            assert reason in refused.text
        with get_session() as session:
            assert session.get_one(Generation, generation.id).version == 2

    def test_prompts_are_created_edited_and_deleted(self, app: fastapi.FastAPI) -> None:
        assert self.submit(app, "/admin/prompt/create", text="slow waltz").status_code == 200
        with get_session() as session:
            generation = a_generation(session, prompt="slow waltz")
        edit = f"/admin/prompt/edit/{generation.prompt_id}"
        assert "cannot change" in self.submit(app, edit, text="fast polka").text
        assert self.submit(app, edit, used_count="5").status_code == 200
        with get_session() as session:
            assert [(row.text, row.used_count) for row in get_all_prompts(session)] == [("slow waltz", 5)]
        deleted = request(app, "DELETE", "/admin/prompt/delete", params={"pks": str(generation.prompt_id)})
        assert deleted.status_code == 200
        with get_session() as session:
            assert count_generations(session) == 0


class TestMarshmallow:
    def test_a_schema_writes_and_reads_a_row(self, db: Storage) -> None:
        class Schema(SQLAlchemyAutoSchema):  # type: ignore[misc]
            class Meta:
                model = Generation
                load_instance = True

        with get_session() as session:
            generation = a_generation(session, metadata={"bpm": 140}, parameters={"seed": 7})
            written = json.loads(Schema().dumps(generation))
            assert (written["metadata_json"], written["parameters"]) == ('{"bpm": 140}', {"seed": 7})
        with get_session() as session:
            changed = Schema().load(written | {"priority": 3}, session=session)
            assert changed.id == generation.id
            session.flush()
            del written["id"]
            session.add(Schema().load(written, session=session))
        with get_session() as session:
            copies = {row.id: row for row in list_generations(session).items}
            assert copies.pop(generation.id).priority == 3
            (other,) = copies.values()
            assert (other.get_metadata(), other.parameters) == ({"bpm": 140}, {"seed": 7})


@pytest.mark.parametrize("model", [Generation, Prompt, Attempt])
def test_every_column_says_its_python_type(model: Any) -> None:
    for column in model.__table__.columns:
        assert column.type.python_type in (str, int, float, bool, dict, datetime)


class TestOpenTelemetry:
    @pytest.mark.parametrize("is_readable", [True, False])
    def test_comments_on_statements_change_nothing(self, db: Storage, is_readable: bool) -> None:
        instrumentor = SQLAlchemyInstrumentor()
        instrumentor.instrument(engine=db.engine, enable_commenter=True, commenter_options={})
        try:
            with get_session() as session:
                generation = a_generation(session)
            assert Worker(lambda job: Result(1)).run(until_empty=True) == 1
            with get_session(read_only=is_readable) as session:
                found = get_generation(session, generation.id)
                assert found is not None
                assert found.is_complete
        finally:
            instrumentor.uninstrument()


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "postgresql+asyncpg", "postgresql+psycopg_async"])
def test_an_async_driver_is_refused_by_name(driver: str) -> None:
    with pytest.raises(DatabaseURLError, match=driver.partition("+")[2]):
        Storage(f"{driver}:///x")
