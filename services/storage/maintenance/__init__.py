"""Operations on a whole database. They manage their own transactions and never print."""

from .check import Finding, check_database
from .copy import copy_database

__all__ = ["Finding", "check_database", "copy_database"]
