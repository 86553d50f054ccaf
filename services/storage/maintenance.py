"""What an operator does to a whole database. Owns its transactions; never prints."""

from .copying import copy_database
from .inspection import Finding, check_database

__all__ = ["Finding", "check_database", "copy_database"]
