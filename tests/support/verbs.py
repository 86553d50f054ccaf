"""A small database with files, and the arguments with which each verb of the command line works on it."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import socket

from services.storage import Storage, backup_database, create_generations, export_database
from services.storage.audio_files import describe_file
from services.storage.demo import MODEL_NAME
from services.storage.lifecycle import FINISHED, GenerationStatus
from tests.support.factories import a_request

# {words} are fields of a Scene. A verb that is not here fails test_every_verb_has_arguments().
ARGUMENTS = {
    "admin": "--port {port} --outputs {folder}",
    "backup": "{folder}/backups",
    "cancel": "--status pending --yes",
    "check": "--outputs {folder}",
    "copy": "{url} sqlite:///{folder}/copy.db",
    "delete": "--status cancelled --yes",
    "demo": "--database-url {url} --prompts {prompts} --outputs {folder}/demo --seconds 0.05",
    "export": "{folder}/new.jsonl",
    "favorite": "{generation_id}",
    "files": "{folder} --relink",
    "health": "",
    "import": "{export}",
    "init": "",
    "list": "--json",
    "metrics": "",
    "migrate": "",
    "optimize": "--full",
    "pause": "--reason tests",
    "prune": "--older-than 1d --delete-files-under {folder} --force --yes",
    "reset": "--yes",
    "restore": "{backup} --yes",
    "resume": "",
    "retry": "--status failed --yes",
    "rollback": "--yes",
    "search": "lofi",
    "show": "{generation_id}",
    "stats": "",
    "top": "",
    "submit": "lofi --model m --seconds 1",
    "verify": "{backup}",
    "why": "{generation_id}",
    "worker": "--until-empty --outputs {folder}",
    "workers": "",
    "zip": "{finished_id} {folder}/new.zip --outputs {folder}",
}
READERS = frozenset("check export files health list metrics search show stats top verify why workers zip".split())
REPLACERS = frozenset({"reset", "restore"})
# Other exit codes than 0: with findings, and after Ctrl-C.
EXIT_CODES = {"admin": (130,), "check": (0, 1), "health": (0, 1)}


@dataclass(frozen=True)
class Scene:
    """The database, a backup and an export of it, a file with prompts and a generation, below `folder`; a free port."""

    folder: Path
    generation_id: str
    finished_id: str  # has a file
    port: int

    @property
    def database(self) -> Path:
        return self.folder / "generations.db"

    @property
    def url(self) -> str:
        return f"sqlite:///{self.database}"

    @property
    def backup(self) -> Path:
        return self.folder / "scene.db"

    @property
    def export(self) -> Path:
        return self.folder / "scene.jsonl"

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.txt"

    def arguments(self, verb: str) -> list[str]:
        """Return the arguments of a verb, or of a line that begins with one."""
        name, _, rest = verb.partition(" ")
        words = (rest or ARGUMENTS[name]).split()
        names = ("folder", "generation_id", "finished_id", "port", "database", "url", "backup", "export", "prompts")
        values = {name: getattr(self, name) for name in names}
        return [name, *(word.format(**values) for word in words)]


def make_scene(database: Path) -> Scene:
    """Store generations of every status in a migrated, empty database, with files, one of them moved."""
    folder = database.parent
    storage = Storage(f"sqlite:///{database}")
    with storage.session() as session:
        requests = [
            a_request(model_name=MODEL_NAME, duration_seconds=0.05, file_path=f"{folder}/{status.value}.wav")
            for status in GenerationStatus
        ]
        rows = create_generations(session, requests)
        for row, status in zip(rows, GenerationStatus, strict=True):
            row.status = status
            if status in FINISHED:
                Path(row.file_path).write_bytes(status.value.encode())
                row.completed_at = datetime.now(UTC) - timedelta(days=3)
                row.file_size_bytes = os.path.getsize(row.file_path)
                row.file_sha256 = describe_file(row.file_path).sha256
    (folder / "completed.wav").rename(folder / "moved.wav")
    (folder / "prompts.txt").write_text("lofi piano\n")
    backup_database(folder / "scene.db", storage=storage)
    export_database(folder / "scene.jsonl", storage=storage)
    storage.dispose()
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        failed = next(row for row in rows if row.status == GenerationStatus.FAILED)
        return Scene(folder, rows[0].id, failed.id, free.getsockname()[1])
