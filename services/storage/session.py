"""The session class of the library, and the conflict check for any session on its engines."""

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy import Connection, event
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


def raise_conflicts(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
) -> None:
    """Raise ConflictError if an UPDATE or DELETE of a flush did not find the row in the version that was read.

    A flush would raise StaleDataError; here, users of another Session class get the error of this library too.
    """
    if context is None or not (context.isupdate or context.isdelete):
        return
    # The unit of work names its parameters so; in a statement of a user they have other names, such as version_1.
    name = f"{context.compiled.statement.table.name}_version" if context.isupdate else "version"
    if name in context.compiled.binds and cursor.rowcount < (len(parameters) if many else 1):
        raise ConflictError(orig=StaleDataError("the row is gone or has another version"))
