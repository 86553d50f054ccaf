"""The command line. Only this package prints or exits: results go to stdout, messages to stderr.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted. Alembic, rich and the demo are imported when used.
"""

from . import (
    admin,
    backup,
    check,
    database,
    demo,
    export_import,
    files,
    generations,
    history,
    monitoring,
    queue,
    retention,
    top,
    worker,
)
from .app import commands

__all__ = [
    "admin",
    "backup",
    "check",
    "commands",
    "database",
    "demo",
    "export_import",
    "files",
    "generations",
    "history",
    "monitoring",
    "queue",
    "retention",
    "top",
    "worker",
]
