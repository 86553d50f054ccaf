"""The state of the database and its queue as text for Prometheus, in the format OpenMetrics 1.0. See ADR 34.

https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ..analytics import get_database_stats, get_queue_stats
from ..analytics.duration_histograms import Distribution, LastHour, read_last_hour
from ..engine import Storage, get_storage
from ..errors import StorageError
from ..lifecycle import FINISHED, GenerationStatus, WorkerState
from ..queue import get_workers
from ..schema import get_schema_version
from ..version import __version__

PREFIX: Final = "dgx_storage"
MODEL_LIMIT: Final = 100  # models that have metrics of their own; the others share those with an empty model

# name: type, unit, and what it is.
METRICS: Final[Mapping[str, tuple[str, str, str]]] = {
    "up": ("gauge", "", "Whether the database answers (1) or not (0); without an answer there is no other metric."),
    "build": ("info", "", "The version of the library, and the revision of the schema that it works with."),
    "generations": ("gauge", "", "Stored generations, by status."),
    "backlog": ("gauge", "", "Generations that are due."),
    "backlog_age_seconds": ("gauge", "seconds", "How long the oldest due generation has been due; 0 if none is."),
    "scheduled": ("gauge", "", "Pending generations that are not due yet."),
    "expired_leases": ("gauge", "", "Generations whose lease has expired and that are not reclaimed yet."),
    "paused": ("gauge", "", "Whether claims are stopped (1) or not (0)."),
    "workers": ("gauge", "", "Live workers, by what they are doing."),
    "finished_last_hour": ("gauge", "", "Generations that finished in the last hour, by model and status."),
    "claim_wait_seconds": (
        "gaugehistogram",
        "seconds",
        "Time from being due to the start of the last attempt, of what finished in the last hour.",
    ),
    "render_seconds": ("gaugehistogram", "seconds", "Reported rendering time of what completed in the last hour."),
    "database_bytes": ("gauge", "bytes", "Size of the database, without its log."),
    "unused_bytes": ("gauge", "bytes", "Space inside the database that is not used."),
    "log_bytes": ("gauge", "bytes", "Size of the write-ahead log, where the user may see it."),
    "replica_up": ("gauge", "", "Whether a replica answers (1) or not (0); replicas are numbered from 1."),
    "replica_lag_bytes": ("gauge", "bytes", "Log of the primary that a replica has not replayed yet."),
}


@dataclass
class _Family:
    """The samples of one metric: suffix of the name, labels, value."""

    name: str
    samples: list[tuple[str, Mapping[str, str], float]] = field(default_factory=list)

    def add(self, value: float, suffix: str = "", **labels: str) -> None:
        self.samples.append((suffix, labels, value))

    def add_distribution(self, model: str, times: Distribution) -> None:
        for bound, count in zip(times.bounds, times.at_most, strict=True):
            self.add(count, "_bucket", model=model, le=repr(bound))
        self.add(times.count, "_bucket", model=model, le="+Inf")
        self.add(times.count, "_gcount", model=model)
        self.add(times.total, "_gsum", model=model)

    def lines(self) -> Iterable[str]:
        kind, unit, text = METRICS[self.name]
        name = f"{PREFIX}_{self.name}"
        yield f"# TYPE {name} {kind}"
        if unit:
            yield f"# UNIT {name} {unit}"
        yield f"# HELP {name} {text}"
        for suffix, labels, value in self.samples:
            given = ",".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
            yield f"{name}{suffix}{{{given}}} {value!r}" if given else f"{name}{suffix} {value!r}"


def get_metrics(*, storage: Storage | None = None) -> str:
    """Return the metrics as OpenMetrics text; serve it as application/openmetrics-text; version=1.0.0; charset=utf-8.

    The only text of users in it are the names of models, at most 100 of them. Counts every stored generation, which
    takes 0.1 s for a million. If the database does not answer, the text says so (`dgx_storage_up 0`). Never raises
    because of the database; ValueError for an invalid DATABASE_URL.
    """
    storage = storage or get_storage()
    up = _Family("up")
    try:
        families = [up, *storage.run_in_transaction(partial(_collect, storage), attempts=1), *_replicas(storage)]
        up.add(1)
    except (StorageError, SQLAlchemyError, OSError):
        up.add(0)
        families = [up]
    return "".join(f"{line}\n" for family in families for line in family.lines()) + "# EOF\n"


def _collect(storage: Storage, session: Session) -> list[_Family]:
    counts, queue = get_database_stats(session), get_queue_stats(session)
    workers, models = get_workers(session), _limit_models(read_last_hour(session))
    connection = session.connection()
    size, unused = storage.backend.measure_space(connection)
    families = [
        _family("build", 1, "_info", version=__version__, revision=get_schema_version()),
        _by("generations", "status", {status: counts[f"{status}_generations"] for status in GenerationStatus}),
        _family("backlog", queue.backlog),
        _family("backlog_age_seconds", queue.oldest_seconds or 0.0),
        _family("scheduled", queue.scheduled),
        _family("expired_leases", queue.expired),
        _family("paused", int(queue.is_paused)),
        _by("workers", "state", {state: sum(worker.state == state for worker in workers) for state in WorkerState}),
        *_last_hour(models),
        _family("database_bytes", size),
        _family("unused_bytes", unused),
    ]
    log_size = storage.backend.measure_log(connection)
    return families if log_size is None else [*families, _family("log_bytes", log_size)]


def _last_hour(models: Mapping[str, LastHour]) -> list[_Family]:
    finished, waits, renders = map(_Family, ("finished_last_hour", "claim_wait_seconds", "render_seconds"))
    for model, hour in models.items():
        for status in sorted(FINISHED):
            finished.add(hour.finished.get(status, 0), model=model, status=status)
        waits.add_distribution(model, hour.wait)
        renders.add_distribution(model, hour.render)
    return [finished, waits, renders]


def _limit_models(models: Mapping[str, LastHour]) -> Mapping[str, LastHour]:
    """Return the models with the most finished generations, and the sum of all others under the name ""."""
    ordered = sorted(models, key=lambda name: (-sum(models[name].finished.values()), name))
    limited = {name: models[name] for name in ordered[:MODEL_LIMIT]}
    for name in ordered[MODEL_LIMIT:]:
        one, rest = models[name], limited.get("")
        if rest is not None:
            statuses = one.finished.keys() | rest.finished.keys()
            finished = {status: one.finished.get(status, 0) + rest.finished.get(status, 0) for status in statuses}
            one = LastHour(finished, one.wait + rest.wait, one.render + rest.render)
        limited[""] = one
    return limited


def _replicas(storage: Storage) -> list[_Family]:
    if storage.replicas is None:
        return []
    up, lag = _Family("replica_up"), _Family("replica_lag_bytes")
    for number, bytes_behind in enumerate(storage.replicas.measure_lag(), 1):
        up.add(int(bytes_behind is not None), replica=str(number))
        if bytes_behind is not None:
            lag.add(bytes_behind, replica=str(number))
    return [up, lag]


def _family(name: str, value: float, suffix: str = "", **labels: str) -> _Family:
    family = _Family(name)
    family.add(value, suffix, **labels)
    return family


def _by(name: str, label: str, values: Mapping[Any, float]) -> _Family:
    family = _Family(name)
    for word, value in values.items():
        family.add(value, **{label: str(word)})
    return family


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
