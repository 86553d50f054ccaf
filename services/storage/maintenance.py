"""What an operator does to a whole database. Owns its transactions; never prints."""

from .copying import copy_database

__all__ = ["copy_database"]
