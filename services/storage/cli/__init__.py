"""The command line, the only place that prints or exits: results go to stdout, messages to stderr.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Alembic, rich and the demo load when they are used.
"""

from . import database, history, run
from .app import commands

__all__ = ["commands", "database", "history", "run"]
