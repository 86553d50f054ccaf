"""Run the Python blocks of each Markdown file as a test: in order, in an empty folder, with a new database.

`<!-- skip: next -->` skips the next block; an `<!-- invisible-code-block: python … -->` runs but is not displayed.
"""

from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from services.storage import engine


def open_document(namespace: dict[str, Any]) -> None:
    patch, folder = pytest.MonkeyPatch(), TemporaryDirectory()
    patch.chdir(folder.name)
    for name in ("DATABASE_URL", "DATABASE_REPLICA_URLS"):
        patch.delenv(name, raising=False)
    patch.setattr(engine, "_default", None)
    namespace["_cleanup"] = (patch, folder)


def close_document(namespace: dict[str, Any]) -> None:
    patch, folder = namespace["_cleanup"]
    if engine._default is not None:
        engine._default.dispose()
    patch.undo()
    folder.cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["*.md"],
    setup=open_document,
    teardown=close_document,
).pytest()
