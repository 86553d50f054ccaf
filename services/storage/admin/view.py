"""One request as the templates see it: its address, its links, and whether it hides prompts."""

from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.requests import Request

from ..engine import Storage
from ..models import Generation
from ..search_query import Query
from .charts import draw_waveform

# Control characters that prompts normally do not contain. In a prompt that does, only the marked parts are wrong.
MARKS: Final = ("\x02", "\x03")


class Missing(Exception):  # noqa: N818 - an answer, not an error
    """There is no such page or generation."""

    def __init__(self, title: str, text: str) -> None:
        super().__init__(text)
        self.title = title


class View:
    """One request; `afterwards` is called once it is answered."""

    afterwards: Callable[[], None] | None = None

    def __init__(self, request: Request, storage: Storage, *, can_play: bool, always_hides: bool) -> None:
        self.base = request.scope.get("root_path", "").rstrip("/")
        self.path = request.scope["path"].removeprefix(self.base) or "/"
        self.asked = request.query_params
        self.storage = storage
        self.can_play = can_play
        self.always_hides = always_hides
        self.hides = always_hides or self.asked.get("prompts") == "hidden"

    def href(self, path: str, **parameters: Any) -> str:
        """Return a link to a page; parameters without a value are left out, and the switch for prompts is kept."""
        if self.hides and not self.always_hides:
            parameters = {"prompts": "hidden"} | parameters
        given = {name: value for name, value in parameters.items() if value}
        return f"{self.base}{path}{'?' if given else ''}{urlencode(given)}"

    def of(self, generation: Generation) -> str:
        """Return a link to the page of a generation. Its id is a parameter because it may contain any character."""
        return self.href("/generation", id=generation.id)

    def same(self, **changes: Any) -> str:
        """Return a link to this page with some parameters changed, or left out if they are None."""
        return self.href(self.path, **(dict(self.asked) | changes))

    def without(self, *names: str) -> str:
        """Return a link to this page without some parameters; a new set of filters starts at its first page."""
        kept = {name: value for name, value in self.asked.items() if name not in (*names, "after")}
        return self.href(self.path, **kept)

    def switched(self) -> str:
        """Return a link to this page with prompts hidden if they are shown, else shown."""
        kept = {name: value for name, value in self.asked.items() if name != "prompts"}
        if not self.hides:
            return self.href(self.path, **kept, prompts="hidden")
        return f"{self.base}{self.path}{'?' if kept else ''}{urlencode(kept)}"

    def pieces(self, generation: Generation, query: Query | None = None) -> Iterator[tuple[str, bool]]:
        """Yield the prompt in pieces, each with whether the search found it."""
        if query is None:
            yield generation.prompt, False
            return
        for number, piece in enumerate(query.snippet(generation.prompt, MARKS).split(MARKS[0])):
            found, _, rest = piece.partition(MARKS[1]) if number else ("", "", piece)
            yield from ((text, is_found) for text, is_found in ((found, True), (rest, False)) if text)

    def waveform(self, generation: Generation) -> Markup | None:
        """Return the waveform of a generation whose metadata has peaks."""
        return draw_waveform(generation.get_metadata())

    def can_hear(self, generation: Generation) -> bool:
        """Return whether the page offers to play the file."""
        return self.can_play and generation.is_complete and generation.file_missing_since is None
