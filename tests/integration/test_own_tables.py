"""Tables and revisions of users beside those of the library, and other tools that run its migrations."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from pytest_alembic import Config, runner
from pytest_alembic.tests import default as pytest_alembic_tests
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.storage import (
    Base,
    ConstraintError,
    Generation,
    MigrationsMissingError,
    Storage,
    count_generations,
    get_session,
    init_db,
    migrations,
    reset_database,
)
from services.storage.migrations import scripts
from tests.support.databases import make_old_database
from tests.support.factories import a_generation


@pytest.fixture
def rating() -> Iterator[type[Base]]:
    """Return a model of a user, which refers to generations."""

    class Rating(Base):
        __tablename__ = "ratings"
        id: Mapped[int] = mapped_column(primary_key=True)
        generation_id: Mapped[str] = mapped_column(sa.ForeignKey("generations.id"))
        created_at: Mapped[str] = mapped_column(server_default=sa.text("CURRENT_TIMESTAMP"))
        stars: Mapped[int] = mapped_column(default=lambda context: len(context.get_current_parameters()))

    yield Rating
    Base.metadata.remove(Rating.__table__)  # type: ignore[arg-type]
    Base.registry._dispose_cls(Rating)


class TestTablesOfUsers:
    def test_they_work_beside_ours(self, db: Storage, rating: type[Base]) -> None:
        Base.metadata.create_all(db.engine)
        with get_session() as session:
            row = rating(generation_id=a_generation(session).id)
            session.add(row)
            session.flush()
            session.refresh(row)
            assert row.created_at  # type: ignore[attr-defined]
            assert row.stars >= 1  # type: ignore[attr-defined]
        assert migrations.check(db) == []

    def test_one_that_is_not_created_yet_is_no_difference(self, db: Storage, rating: type[Base]) -> None:
        assert migrations.check(db) == []

    def test_a_reset_keeps_them_and_their_rows(self, db: Storage, rating: type[Base]) -> None:
        Base.metadata.create_all(db.engine)
        with get_session() as session:
            session.add(rating(generation_id=a_generation(session).id, stars=5))
        reset_database()
        with get_session() as session:
            assert count_generations(session) == 0
            assert session.scalar(sa.select(sa.func.count()).select_from(rating)) == 1
        (key,) = sa.inspect(db.engine).get_foreign_keys("ratings")
        assert key["referred_table"] == "generations"
        with Session(db.engine) as session:
            session.add(rating(generation_id="unknown", stars=5))
            with pytest.raises(ConstraintError):
                session.flush()
        assert migrations.check(db) == []

    def test_they_do_not_stop_an_adoption(self, empty_database_url: str, rating: type[Base]) -> None:
        make_old_database(empty_database_url, "original")
        engine = sa.create_engine(Storage(empty_database_url).url)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE ratings (id INTEGER PRIMARY KEY, stars INTEGER)")
        engine.dispose()
        init_db(empty_database_url)
        with get_session() as session:
            assert count_generations(session) > 0


@pytest.mark.parametrize("test", [name for name in dir(pytest_alembic_tests) if name.startswith("test_")])
def test_pytest_alembic_passes(empty_database_url: str, test: str) -> None:
    storage = Storage(empty_database_url)
    storage.backend.create_database(storage.url)
    engine = storage.backend.create_migration_engine(storage.url, storage.options)
    options = {"script_location": str(migrations.script_location()), "path_separator": "os"}
    with runner(Config(config_options=options), engine=engine) as context:
        getattr(pytest_alembic_tests, test)(context)
    engine.dispose()
    storage.dispose()


def test_migrations_of_another_release_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(migrations.__file__).parents[1]
    shutil.copytree(
        package, tmp_path / "services" / "storage", ignore=shutil.ignore_patterns("__pycache__", "_alembic")
    )
    (tmp_path / "alembic" / "versions").mkdir(parents=True)
    (tmp_path / "alembic" / "env.py").write_text("config.get_main_option('url')")
    monkeypatch.setattr(scripts, "__file__", str(tmp_path / "services/storage/migrations/scripts.py"))
    with pytest.raises(MigrationsMissingError, match="alembic"):
        init_db(f"sqlite:///{tmp_path}/new.db")


def test_a_generation_is_not_a_table_of_a_user() -> None:
    from services.storage.models import TABLES

    assert Generation.__table__ in TABLES
