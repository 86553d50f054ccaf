"""Options and arguments that several verbs share: filters of generations, ids and their prefixes, times, questions."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from ..engine import Storage
from ..generations import find_generation_ids
from ..lifecycle import GenerationStatus
from ..limits import SHORTEST_ID_PREFIX
from .output import sanitize, shorten

UNITS: Final = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds", "w": "weeks"}

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only print how many generations it would change.")


class Moment(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A time: ISO 8601 (UTC unless it has an offset), or an age such as 90d, 12h or 30m."""

    name = "time"
    direction = -1
    span = "an age such as 90d"
    too_large = "too long ago"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time as an aware datetime."""
        text = str(value)
        if text[-1:] in UNITS and text[:-1].isdecimal():
            try:
                return datetime.now(UTC) + self.direction * timedelta(**{UNITS[text[-1]]: int(text[:-1])})
            except OverflowError:
                self.fail(f"{text!r} is {self.too_large}", param, ctx)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text!r} is not a time: use 2026-11-25, 2026-11-25T12:00 or {self.span}", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class DueTime(Moment):
    """A time: ISO 8601 as for Moment, or a delay from now such as 2h."""

    direction = 1
    span = "a delay such as 2h"
    too_large = "too far in the future"


class Member(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A condition on the metadata: KEY=VALUE, where VALUE is JSON or plain text, or KEY=LOW..HIGH."""

    name = "member"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Return the key and what list_generations() expects for it."""
        key, separator, text = str(value).partition("=")
        if not separator:
            self.fail(f"{value!r} has no =: use KEY=VALUE or KEY=LOW..HIGH", param, ctx)
        low, dots, high = text.partition("..")
        if dots:
            try:
                return key, tuple(float(bound) if bound else None for bound in (low, high))
            except ValueError:
                pass
        try:
            wanted = json.loads(text)
        except ValueError:
            wanted = text
        return key, text if isinstance(wanted, (dict, list)) else wanted


def filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters of list_generations() to a verb, which gets them as keyword arguments of these names."""
    statuses = click.Choice([status.value for status in GenerationStatus])
    for option in reversed(
        [
            click.option("--status", type=statuses, help="Only this status."),
            click.option("--model", "model_name", metavar="NAME", help="Only this model."),
            click.option("--prompt", metavar="TEXT", help="Only exactly this prompt."),
            click.option("--search", metavar="QUERY", help="Only prompts that match, as in the verb search."),
            click.option("--batch", "batch_id", metavar="ID", help="Only this batch."),
            click.option("--favorites", "favorite", is_flag=True, default=None, help="Only favorites."),
            click.option("--since", "created_after", metavar="TIME", type=Moment(), help="Only created since TIME."),
            click.option("--until", "created_before", metavar="TIME", type=Moment(), help="Only created before TIME."),
            click.option(
                "--metadata", metavar="KEY=VALUE", type=Member(), multiple=True,
                help="Only this metadata; KEY=LOW..HIGH is a range. May be repeated.",
            ),
        ]
    ):  # fmt: skip
        function = option(function)
    return function


def given_filters(options: dict[str, Any]) -> dict[str, Any]:
    """Return the filters that were given, as keyword arguments of list_generations()."""
    filters = {name: value for name, value in options.items() if value not in (None, ())}
    if "metadata" in filters:
        filters["metadata"] = dict(filters["metadata"])
    return filters


def name_options(message: str) -> str:
    """Return the message of an error with the options of this verb in place of the arguments that it names."""
    options = {one.name: one.opts[0] for one in click.get_current_context().command.params if one.name}
    return re.sub(r"\w+", lambda word: options.get(word[0], word[0]) if "_" in word[0] else word[0], message)


def resolve_ids(storage: Storage, given: Sequence[str]) -> list[str]:
    """Return the whole ids of ids that may be shortened. Ends the program for one that is unknown or ambiguous."""
    with storage.session(read_only=True) as session:
        ids = []
        for text in given:
            try:
                found = find_generation_ids(session, text, limit=4)
            except ValueError as error:
                least = f"a shortened id has at least {SHORTEST_ID_PREFIX} characters"
                raise click.ClickException(f"no generation has the id {shorten(text)}: {least}") from error
            if not found:
                raise click.ClickException(f"no generation has the id {shorten(text)}")
            if len(found) > 1:
                some = ", ".join(map(sanitize, found[:3])) + (", …" if len(found) > 3 else "")
                raise click.ClickException(
                    f"several generations have ids that begin with {shorten(text)}: type more characters ({some})"
                )
            ids.append(found[0])
        return ids


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone. Ends the program unless the answer is yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.ClickException(f"{sanitize(question)} Nobody can answer without a terminal: pass --yes")
    if not click.confirm(sanitize(question), err=True):
        raise click.ClickException("not confirmed; nothing was changed")
