"""The fixtures for users' own suites, run in a suite of a user."""

import pytest

from services.storage import engine

pytest_plugins = ["pytester"]

SUITE = """
import os, subprocess, sys
from threading import Thread
import pytest
from services.storage import count_generations, create_generation, get_session, get_storage
from services.storage.testing import memory_storage, storage

def submit():
    with get_session() as session:
        create_generation(session, "swing", "m", 1.0, 32000, 1, "swing.wav")

@pytest.mark.parametrize("number", [1, 2])
def test_a_file_is_new_for_each_test(storage, number):
    submit()
    read = "from services.storage import *; s = get_session(); print(count_generations(s.__enter__()))"
    assert subprocess.check_output([sys.executable, "-c", read], text=True).strip() == "1"
    assert get_storage() is storage and not storage.is_memory

@pytest.mark.parametrize("number", [1, 2])
def test_memory_is_new_for_each_test_and_shared_by_threads(memory_storage, number):
    thread = Thread(target=submit)
    thread.start()
    thread.join()
    with get_session() as session:
        assert count_generations(session) == 1
    assert get_storage() is memory_storage and memory_storage.is_memory
"""


def test_the_fixtures_work_in_the_suite_of_a_user(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    before = engine._default
    pytester.runpytest("-p", "no:pytest_alembic", "-W", "error").assert_outcomes(passed=4)
    assert engine._default is before
