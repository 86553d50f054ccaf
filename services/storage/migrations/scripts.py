"""Where the revisions are, and how to run them on a connection."""

from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from ..errors import ForeignDatabaseError, MigrationsMissingError
from ..schema import REVISIONS, get_schema_version


def script_location() -> Path:
    """Return the folder of the migrations: in the installed package, or in a checkout the folder alembic/.

    Raises MigrationsMissingError if it does not have the revisions of this release.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / "_alembic"
    folder = installed if installed.is_dir() else package.parents[1] / "alembic"
    if not any((folder / "versions").glob(f"{get_schema_version()}_*.py")):
        raise MigrationsMissingError(f"{MigrationsMissingError.__doc__} ({folder})")
    return folder


def load_scripts() -> ScriptDirectory:
    """Return the revisions as Alembic reads them."""
    return ScriptDirectory.from_config(_config())


def run(operation: Any, connection: Connection, revision: str) -> None:
    """Run `operation`, one of Alembic's commands, in the transaction of `connection`.

    Raises ValueError for an unknown revision, and ForeignDatabaseError if a revision refuses what it finds.
    """
    if revision.isdecimal() and revision not in REVISIONS:
        raise ValueError(f"there is no revision {revision}: the revisions are {REVISIONS[0]} to {REVISIONS[-1]}")
    config = _config()
    config.attributes["connection"] = connection
    try:
        operation(config, revision)
    except CommandError as error:
        if error.__cause__ is None and ":" not in revision:  # raised by a revision, not about its name
            raise ForeignDatabaseError(f"The migration was refused: {error}") from error
        raise ValueError(f"cannot migrate to revision {revision!r}: {error}") from error


def _config() -> Config:
    config = Config()
    # configparser interpolates %, which a folder name may contain.
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
