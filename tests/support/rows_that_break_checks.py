"""Rows that break the CHECK constraints, as older databases and other programs have them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, text

from services.storage import Storage

CHECKS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE contype = 'c' AND connamespace = 'public'::regnamespace
"""


@contextmanager
def unchecked(storage: Storage) -> Iterator[Connection]:
    """Open a transaction that no CHECK stops; afterwards the CHECKs hold for what is written from then on."""
    with storage.engine.begin() as connection:
        if storage.backend.name == "sqlite":
            connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
            try:
                yield connection
            finally:
                connection.exec_driver_sql("PRAGMA ignore_check_constraints = OFF")
            return
        checks = connection.execute(text(CHECKS)).all()
        for table, name, _ in checks:
            connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
        yield connection
        for table, name, rule in checks:
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD CONSTRAINT {name} {rule} NOT VALID")


def break_row(storage: Storage, generation_id: str, **values: Any) -> None:
    """Write values into a generation that its CHECKs would refuse; a text in PostgreSQL's syntax there."""
    assignments = ", ".join(f"{column} = :{column}" for column in values)
    with unchecked(storage) as connection:
        if storage.backend.name == "postgresql":
            assignments = ", ".join(f"{column} = {value!r}" for column, value in values.items())
            values = {}
        change = text(f"UPDATE generations SET {assignments} WHERE id = :id").bindparams(id=generation_id, **values)
        connection.execute(change)
