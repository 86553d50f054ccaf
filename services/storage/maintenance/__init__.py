"""Operations on a whole database. They manage their own transactions and never print."""

from .backup import Backup, backup_database, restore_database, verify_backup
from .check import Finding, check_database
from .copy import copy_database

__all__ = [
    "Backup",
    "Finding",
    "backup_database",
    "check_database",
    "copy_database",
    "restore_database",
    "verify_backup",
]
