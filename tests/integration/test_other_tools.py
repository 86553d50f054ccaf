"""The tools that people use with SQLAlchemy, as they are, on our models and sessions."""

import asyncio
import json
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

from services.storage import (
    DatabaseURLError,
    Generation,
    Prompt,
    Storage,
    Worker,
    count_generations,
    create_generation,
    get_generation,
    get_session,
)
from services.storage.types import JSONObject
from services.storage.worker import Result
from tests.support.factories import REQUEST, a_generation


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


class TestSQLAdmin:
    @pytest.mark.parametrize("model", [Generation, Prompt])
    def test_every_page_opens(self, db: Storage, model: Any) -> None:
        with get_session() as session:
            generation = a_generation(session, metadata={"bpm": 140})
        key = generation.id if model is Generation else generation.prompt_id
        name = model.__name__.lower()
        app = fastapi.FastAPI()
        admin = sqladmin.Admin(app, db.engine)
        # sqladmin has no field for the numbers of SQLAlchemy 2.1, nor for a JSON object.
        options = {
            "column_list": "__all__",
            "form_excluded_columns": [
                column.name for column in model.__table__.columns if isinstance(column.type, (Double, JSONObject))
            ],
        }
        admin.add_view(type(f"{name}Admin", (sqladmin.ModelView,), options, model=model))
        for path in ("list", f"details/{key}", f"edit/{key}", "create"):
            shown = request(app, "GET", f"/admin/{name}/{path}")
            assert shown.status_code == 200, path


class TestMarshmallow:
    def test_a_schema_is_made_from_the_model(self, db: Storage) -> None:
        class Schema(SQLAlchemyAutoSchema):  # type: ignore[misc]
            class Meta:
                model = Generation

        with get_session() as session:
            generation = a_generation(session)
            assert Schema().dump(generation)["id"] == generation.id


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
