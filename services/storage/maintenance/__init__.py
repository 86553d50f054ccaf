"""Operations on a whole database. They manage their own transactions and never print."""

from .backup import Backup, backup_database, restore_database, verify_backup
from .bulk_changes import cancel_generations, delete_generations, retry_generations, set_favorites
from .check import check_database
from .check_report import DatabaseReport, Finding
from .copy import copy_database
from .export import ExportReport, export_database
from .find_files import FileReport, MissingFile, MovedFile, find_files
from .health import Health, check_health
from .import_rows import ImportReport, import_database
from .metrics import get_metrics
from .optimize import Optimization, optimize_database
from .prune import PrunedGeneration, PruneReport, prune_generations
from .zip_generation import ZipReport, zip_generation

__all__ = [
    "Backup",
    "DatabaseReport",
    "ExportReport",
    "FileReport",
    "Finding",
    "Health",
    "ImportReport",
    "MissingFile",
    "MovedFile",
    "Optimization",
    "PruneReport",
    "PrunedGeneration",
    "ZipReport",
    "backup_database",
    "cancel_generations",
    "check_database",
    "check_health",
    "copy_database",
    "delete_generations",
    "export_database",
    "find_files",
    "get_metrics",
    "import_database",
    "optimize_database",
    "prune_generations",
    "restore_database",
    "retry_generations",
    "set_favorites",
    "verify_backup",
    "zip_generation",
]
