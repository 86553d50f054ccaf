"""The page History: all generations, newest first, with every filter in the address."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy.orm import Session

from ..generations import list_generations
from ..lifecycle import GenerationStatus
from ..search_query import parse_query
from .view import View

PAGE_ROWS: Final = 25
STATUSES: Final = tuple(status.value for status in GenerationStatus)
# The parameters of the address, and what list_generations() calls them.
TEXTS: Final = {"q": "search", "status": "status", "model": "model_name", "prompt": "prompt", "batch": "batch_id",
                "parent": "parent_id"}  # fmt: skip
TIMES: Final = {"from": "created_after", "before": "created_before"}


@dataclass(frozen=True)
class Filter:
    """One filter that is set: its words, and its parameters in the address."""

    label: str
    parameter: str


def read_history(session: Session, view: View) -> dict[str, Any]:
    """Return what the template shows. Three statements with a search and the check of the schema, else two."""
    asked = {name: value for name, value in view.asked.items() if value}
    wanted, problems = parse_filters(asked)
    search = wanted.get("search")
    page = None
    if not problems:
        page = list_generations(session, limit=PAGE_ROWS, after=asked.get("after"), **wanted)
    return {
        "now": datetime.now(UTC),
        "page": page,
        "problems": problems,
        "query": parse_query(search) if search else None,
        "filters": _describe(asked, view),
        "statuses": STATUSES,
        "has_more_filters": bool(asked.keys() & {"prompt", "batch", "parent", "from", "before", "metadata"}),
    }


def parse_filters(asked: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arguments of list_generations(), and what is wrong with each parameter that cannot be used."""
    wanted: dict[str, Any] = {argument: asked[name] for name, argument in TEXTS.items() if name in asked}
    problems = {}
    if asked.get("status", STATUSES[0]) not in STATUSES:
        problems["status"] = f"is one of {', '.join(STATUSES)}"
    if "favorite" in asked:
        wanted["favorite"] = True
    for name, argument in TIMES.items():
        if name in asked:
            try:
                moment = datetime.fromisoformat(asked[name])
                wanted[argument] = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            except ValueError:
                problems[name] = "is a date such as 2026-11-25"
    if "metadata" in asked:
        try:
            wanted["metadata"] = dict(_parse_member(text) for text in asked["metadata"].split(";"))
        except ValueError as error:
            problems["metadata"] = str(error)
    return wanted, problems


def _parse_member(text: str) -> tuple[str, Any]:
    key, separator, value = text.strip().partition("=")
    if not separator or not key:
        raise ValueError("is written genre=trap or bpm=120..140, with ; between several")
    low, dots, high = value.partition("..")
    if dots:
        try:
            return key, tuple(float(bound) if bound else None for bound in (low, high))
        except ValueError:
            return key, value
    try:
        wanted = json.loads(value)
    except (ValueError, RecursionError):
        return key, value
    return key, value if isinstance(wanted, (dict, list)) else wanted


def _describe(asked: Mapping[str, str], view: View) -> list[Filter]:
    words = {
        "q": "matches “{}”", "status": "{}", "model": "model {}", "prompt": "prompt is “{}”", "batch": "batch {}",
        "parent": "variation of {}", "favorite": "favorites", "from": "from {}", "before": "before {}",
        "metadata": "{}",
    }  # fmt: skip
    hidden = {"q", "prompt", "metadata"} if view.hides else set()
    filters = []
    for name, form in words.items():
        if name in asked:
            value = "hidden" if name in hidden else asked[name]
            filters.append(Filter(form.format(value if len(value) <= 40 else f"{value[:39]}…"), name))
    return filters
