"""What an operator does to a whole database. Owns its transactions; never prints."""

from .check import Finding, check_database
from .copy import copy_database

__all__ = ["Finding", "check_database", "copy_database"]
