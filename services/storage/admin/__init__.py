"""A read-only page of the queue, the history and the numbers, for a browser. Needs the extra `admin`."""

from .app import create_app

__all__ = ["create_app"]
