"""The supported database systems: all code that differs between them. See Backend for what each provides."""

from .backup_dialect import BackupDialect, Contents
from .base import Backend, LogPosition, Phase, Replication, StatementClock
from .read_only import is_refused_when_reading, is_write
from .registry import backend_for, backups_of
from .wakeup import ChangeSource

__all__ = [
    "Backend",
    "BackupDialect",
    "ChangeSource",
    "Contents",
    "LogPosition",
    "Phase",
    "Replication",
    "StatementClock",
    "backend_for",
    "backups_of",
    "is_refused_when_reading",
    "is_write",
]
