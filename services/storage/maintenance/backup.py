"""Backups: written from one consistent moment, compared with it, verified, kept in number, and restored.

A backup gets its name only once it was opened and compared, so a kill leaves nothing under a final name.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ..backends import BackupDialect, Contents, backups_of
from ..durable_files import delete_partials, partial_path, publish
from ..engine import Storage, get_storage
from ..errors import BackupError, NotInitializedError, SchemaTooNewError, UnreachableError
from ..schema import REVISIONS
from ..serialization import Report
from ..validation import validate_count

NAME: Final = "generations-%Y%m%dT%H%M%S%fZ"  # of a backup in a folder, without the suffix
OUR_TABLES: Final = frozenset({"alembic_version", "generations", "prompts"})


@dataclass(frozen=True)
class Backup(Report):
    """What a backup holds, and the older backups that were deleted for it.

    `row_counts` has every table, `checksum` covers every value of every row. `moved_aside` is set by a restore over a
    database that was too damaged to be opened: the folder that has its files now.
    """

    path: Path
    revision: str
    row_counts: Mapping[str, int]
    size_bytes: int
    checksum: str
    deleted: tuple[Path, ...] = ()
    moved_aside: Path | None = None


def backup_database(
    path: str | os.PathLike[str] = "backups",
    *,
    overwrite: bool = False,
    keep: int | None = None,
    storage: Storage | None = None,
) -> Backup:
    """Write the database, as it is at one moment, to `path` while others read and write; return what it holds.

    A `path` with a suffix is a file; one without, or that exists as a folder, is a folder, created when missing, in
    which the backup is named after the time (UTC). With `keep` only the newest `keep` of these stay in the folder. The
    file is private (mode 0600), and complete and flushed to the disk before it gets its name. Raises BackupError for a
    path that exists (with `overwrite` only for one that is no backup of this library), that is the database itself, or
    that cannot be written; NotInitializedError without tables, SchemaTooNewError for a database of a newer release.
    """
    storage = storage or get_storage()
    backups = storage.backend.backups
    keep = None if keep is None else validate_count("keep", keep, minimum=1)
    _require_known_revision(storage)
    folder, name = _split(Path(path), backups.suffix, keep)
    target = folder / name
    _require_free(storage, backups, target, overwrite)
    partial = partial_path(target)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        delete_partials(folder)
        try:
            contents = backups.write(storage.engine, partial)
            if backups.read(partial) != contents:
                raise BackupError(f"{target} was not written: the copy differs from the database. Try again")
            publish(partial, target, overwrite=overwrite)
        except FileExistsError as error:
            raise _exists(target) from error
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UnreachableError(f"{target} cannot be written: {error.strerror}", orig=error) from error
    deleted = () if keep is None else _delete_oldest(folder, backups.suffix, keep)
    return _describe(target, contents, deleted=deleted)


def verify_backup(path: str | os.PathLike[str]) -> Backup:
    """Open a backup and read all of it; return what it holds.

    Checks the structure of the file, foreign keys, every row, the revision and the tables. Raises BackupError naming
    what is wrong, SchemaTooNewError for a backup of a newer release.
    """
    path = Path(path)
    contents = _dialect_of(path).read(path)
    if not {table.rpartition(".")[2] for table in contents.row_counts} >= OUR_TABLES:
        raise BackupError(f"{path} holds the tables of another program")
    if contents.revision not in REVISIONS:
        raise SchemaTooNewError(
            f"{path} is at revision {contents.revision}, which this release does not know: upgrade dgx-music-storage."
        )
    return _describe(path, contents)


def restore_database(path: str | os.PathLike[str], *, storage: Storage | None = None) -> Backup:
    """Replace everything in the database with a backup, after verifying it; return what the database holds now.

    All or nothing, in one transaction; other processes may keep the database open and go on with the restored rows. An
    SQLite file that is too damaged to be opened is moved into a folder beside it. A backup of an older revision stays
    at it: run `just db-migrate` next. Raises what verify_backup() raises, BackupError for a backup of another database
    system, BusyError when others hold the database for too long.
    """
    storage = storage or get_storage()
    try:
        backup = verify_backup(path)
    except (BackupError, SchemaTooNewError) as error:
        error.args = (f"{str(error).removesuffix('.')}. Nothing was changed.",)
        raise
    if _dialect_of(backup.path).suffix != storage.backend.backups.suffix:
        raise BackupError(f"{path} is the backup of another database system than {storage.display_url}: use copy")
    if _is_live(storage, backup.path):
        raise BackupError(f"{path} is the database itself")
    storage.backend.create_database(storage.url)
    moved_aside = storage.backend.backups.restore(storage.engine, backup.path)
    storage.forget_schema()
    with storage.engine.connect() as connection:
        storage.backend.prepare_file(connection)
    return replace(backup, moved_aside=moved_aside)


def _require_known_revision(storage: Storage) -> None:
    """Refuse what is not there and what a newer release made; an older revision may be backed up before an upgrade."""
    revision = storage.read_revision()
    if revision is None:
        raise NotInitializedError(
            f"The database {storage.display_url} is not initialized, so there is nothing to back up: check its URL."
        )
    if revision not in REVISIONS:
        raise SchemaTooNewError


def _split(path: Path, suffix: str, keep: int | None) -> tuple[Path, str]:
    """Return the folder and the file name of a new backup."""
    if path.is_dir() or not path.suffix:
        return path, f"{datetime.now(UTC):{NAME}}{suffix}"
    if keep is not None:
        raise ValueError(f"keep counts the backups of a folder, and {path} is a file: name its folder")
    return path.parent, path.name


def _require_free(storage: Storage, backups: BackupDialect, target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if _is_live(storage, target):
        raise BackupError(f"{target} is the database itself: name another file")
    if not overwrite:
        raise _exists(target)
    try:
        contents = backups.read(target)
    except (BackupError, OSError):
        contents = None
    if contents is None or not {table.rpartition(".")[2] for table in contents.row_counts} >= OUR_TABLES:
        raise BackupError(f"{target} is not a backup of this library, so it is not overwritten: name another file")


def _is_live(storage: Storage, path: Path) -> bool:
    live = Path(str(storage.url.database))
    return live.exists() and path.exists() and os.path.samefile(live, path)


def _exists(target: Path) -> BackupError:
    return BackupError(f"{target} exists: name another file, or pass overwrite=True or --force to replace it")


def _is_backup_name(stem: str) -> bool:
    try:
        return f"{datetime.strptime(stem, NAME).replace(tzinfo=UTC):{NAME}}" == stem
    except ValueError:
        return False


def _delete_oldest(folder: Path, suffix: str, keep: int) -> tuple[Path, ...]:
    """Delete all but the newest `keep` of the backups in a folder that have names of ours; return what was deleted."""
    ours = sorted(path for path in folder.iterdir() if path.suffix == suffix and _is_backup_name(path.stem))
    deleted = []
    for path in ours[:-keep]:
        with suppress(FileNotFoundError):
            path.unlink()
            deleted.append(path)
    return tuple(deleted)


def _dialect_of(path: Path) -> BackupDialect:
    if not path.is_file():
        if path.is_dir():
            raise BackupError(f"{path} is a folder: name one of its files")
        raise BackupError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    return backups_of(path)


def _describe(path: Path, contents: Contents, *, deleted: tuple[Path, ...] = ()) -> Backup:
    size = path.stat().st_size
    return Backup(path, str(contents.revision), contents.row_counts, size, contents.checksum, deleted)
