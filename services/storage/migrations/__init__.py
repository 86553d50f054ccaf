"""Create, upgrade, adopt, check, repair and reset the schema with Alembic. See ADR 1.

No other package imports Alembic, and this one is imported only where the schema may have to change. Every change is one
transaction under one lock: many processes may start at once, and a killed process leaves the old schema or the new one.
"""

from .autogenerate import check, options, reflection
from .connections import connect, exclusive
from .drift import find_differences, find_drift, is_head_without_version, repair
from .recognition import BASELINE_COLUMNS, is_empty
from .scripts import script_location
from .upgrade import BASELINE, adopt, downgrade, reset, upgrade

__all__ = [
    "BASELINE",
    "BASELINE_COLUMNS",
    "adopt",
    "check",
    "connect",
    "downgrade",
    "exclusive",
    "find_differences",
    "find_drift",
    "is_empty",
    "is_head_without_version",
    "options",
    "reflection",
    "repair",
    "reset",
    "script_location",
    "upgrade",
]
