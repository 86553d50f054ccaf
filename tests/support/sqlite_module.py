"""The SQLite module that the tests use, the same as the library: two copies of SQLite drop each other's locks."""

import os
from importlib import import_module
from typing import Any

sqlite3: Any = import_module(os.environ.get("DATABASE_SQLITE_MODULE", "sqlite3") + ".dbapi2")
