"""The session class of the library, and the conflict check for any session on its engines."""

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from .errors import ConflictError

Row = TypeVar("Row")


class SessionBlock(AbstractContextManager[Session], Iterator[Session]):
    """A `with` block around a session; also a generator that yields it once, as FastAPI expects of a dependency."""

    def __init__(self, block: AbstractContextManager[Session]) -> None:
        self._block = block
        self._steps: Generator[Session] | None = None

    def __enter__(self) -> Session:
        return self._block.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._block.__exit__(kind, error, traceback)

    def __next__(self) -> Session:
        if self._steps is None:
            self._steps = self._generate()
        return next(self._steps)

    def throw(self, *error: Any) -> Session:
        """Raise an error in the block, which rolls the session back."""
        assert self._steps is not None, "throw() follows next()"
        return self._steps.throw(*error)

    def close(self) -> None:
        """End the block without a commit."""
        if self._steps is not None:
            self._steps.close()

    def _generate(self) -> Generator[Session]:
        with self._block as session:
            yield session


class StorageSession(Session):
    """A session that raises ConflictError instead of StaleDataError."""

    def flush(self, objects: Any = None) -> None:
        """Write pending changes. Raises ConflictError if another writer changed or deleted one of the rows first."""
        try:
            super().flush(objects)
        except StaleDataError as error:
            raise ConflictError(orig=error) from error

    def merge(self, instance: Row, **options: Any) -> Row:
        """Copy the given attributes of `instance` to the stored row. Raises ConflictError if its version is older."""
        try:
            return super().merge(instance, **options)
        except StaleDataError as error:
            raise ConflictError(orig=error) from error

    def refresh(self, instance: object, *args: Any, **options: Any) -> None:
        """Read the row of `instance` again. Raises ConflictError if another writer deleted it."""
        try:
            super().refresh(instance, *args, **options)
        except InvalidRequestError as error:
            if str(error).startswith("Could not refresh"):
                raise ConflictError(orig=error) from error
            raise


@event.listens_for(StorageSession, "after_commit")
def _note_commit(session: Session) -> None:
    if not session.in_nested_transaction():  # it is still in the savepoint that it releases
        session.info["committed"] = True


def raise_conflicts(engine: Engine) -> None:
    """Raise ConflictError if an UPDATE or DELETE of a flush does not find the row in the version that was read.

    A flush would raise StaleDataError; so users of another Session class get the error of this library too.
    """

    @event.listens_for(engine, "do_execute")
    def execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        if not _is_of_flush(context):
            return False
        context.dialect.do_execute(cursor, statement, parameters, context)
        _require_rows(cursor, 1)
        return True

    @event.listens_for(engine, "do_executemany")
    def execute_many(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        if not _is_of_flush(context):
            return False
        context.dialect.do_executemany(cursor, statement, parameters, context)
        _require_rows(cursor, len(parameters))
        return True


def _is_of_flush(context: Any) -> bool:
    """Return whether a statement is an UPDATE or DELETE of the unit of work, of a row in the version that was read."""
    if not (context.isupdate or context.isdelete):
        return False
    # The unit of work names its parameters so; in a statement of a user they have other names, such as version_1.
    name = f"{context.compiled.statement.table.name}_version" if context.isupdate else "version"
    return name in context.compiled.binds


def _require_rows(cursor: Any, count: int) -> None:
    if cursor.rowcount < count:
        raise ConflictError(orig=StaleDataError("the row is gone or has another version"))
