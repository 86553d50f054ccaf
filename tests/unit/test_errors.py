"""The error types: their default messages and their base classes."""

import inspect
import pickle
from typing import Any

import pytest

import services.storage
from services.storage import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
CAUGHT_AS = {
    "DatabaseURLError": ValueError,
    "NotInitializedError": RuntimeError,
    "IllegalTransitionError": ValueError,
    "ConstraintError": ValueError,
    "InvalidCursorError": ValueError,
    "DriverMissingError": ImportError,
    "PoolTimeoutError": TimeoutError,
    "StatementTimeoutError": TimeoutError,
    "BusyError": errors.RetryableError,
    "SerializationError": errors.RetryableError,
    "DisconnectedError": errors.RetryableError,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_a_storage_error_with_a_default_message(kind: type[errors.StorageError]) -> None:
    assert issubclass(kind, errors.StorageError)
    message = str(kind())
    assert message == (kind.__doc__ or "").strip()
    assert message.endswith(".")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (errors.StorageError, errors.ConstraintError)])
def test_every_message_ends_with_a_hint(kind: type[errors.StorageError]) -> None:
    assert any(mark in str(kind()) for mark in (":", ";"))


@pytest.mark.parametrize(("name", "base"), CAUGHT_AS.items())
def test_an_error_is_also_the_matching_built_in_error(name: str, base: type[BaseException]) -> None:
    assert issubclass(getattr(errors, name), base)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not errors.IllegalTransitionError])
def test_a_message_and_the_original_error_are_kept(kind: Any) -> None:
    original = OSError("disk on fire")
    error = kind("something else", orig=original)
    assert str(error) == "something else"
    assert error.orig is original
    assert kind().orig is None


def test_an_illegal_transition_names_both_statuses() -> None:
    error = errors.IllegalTransitionError("completed", "pending")
    assert (error.current, error.target) == ("completed", "pending")
    assert "'completed'" in str(error)
    assert "'pending'" in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_can_be_pickled(kind: type[errors.StorageError]) -> None:
    copy = pickle.loads(pickle.dumps(kind()))
    assert type(copy) is kind
    assert str(copy) == str(kind())


def test_an_illegal_transition_can_be_pickled_with_its_statuses() -> None:
    copy = pickle.loads(pickle.dumps(errors.IllegalTransitionError("failed", "completed")))
    assert (copy.current, copy.target) == ("failed", "completed")
    assert str(copy) == str(errors.IllegalTransitionError("failed", "completed"))


def test_every_error_that_leaves_the_library_is_public() -> None:
    not_yet = {"InvalidCursorError"}  # pages come with list_generations
    assert {kind.__name__ for kind in KINDS} - set(services.storage.__all__) <= not_yet
