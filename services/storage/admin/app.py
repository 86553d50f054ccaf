"""The ASGI application: its routes, one read-only session for each page, and pages for what goes wrong."""

import json
import os
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from anyio import CapacityLimiter, to_thread
from jinja2 import Environment, PackageLoader
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from .. import __version__
from ..engine import Storage, get_storage
from ..errors import BusyError, CorruptError, InvalidCursorError, SchemaOutdatedError, SchemaTooNewError, StorageError
from ..generations import get_generation
from .access import Access
from .audio import AudioResponse, open_audio
from .formatting import FILTERS, write_band
from .generation import read_generation
from .history import read_history
from .now import Now
from .numbers import Numbers
from .view import Missing, View

# Pages that are read at the same time, so that many readers leave connections and processors to the writers.
PAGES_AT_ONCE: Final = 2
RETRY_SECONDS: Final = 3
HERE: Final = Path(__file__).parent
TITLES: Final[Mapping[type[StorageError], str]] = {
    BusyError: "The database is locked",
    CorruptError: "The database is damaged",
    SchemaOutdatedError: "The database has an older schema",
    SchemaTooNewError: "The database has a newer schema",
}

Read = Callable[[Session, View], dict[str, Any]]


def create_app(
    storage: Storage | None = None,
    *,
    outputs: str | os.PathLike[str] | None = None,
    token: str | None = None,
    allowed_hosts: Collection[str] = (),
    hide_prompts: bool = False,
) -> Starlette:
    """Return the page as an ASGI application, to run by itself or to mount into another one. It only reads.

    Without `storage` it uses the default one. `outputs` is the folder below which files of generations may be played;
    without it nothing is. With a `token`, a browser must open the page once with ?token=…, and a program must send it
    as a bearer token. The Host of a request must be an IP address, localhost, one of `allowed_hosts`, or anything if
    these contain "*". `hide_prompts` hides prompts and whatever may quote them, for every visitor.
    """
    site = Site(storage, outputs, hide_prompts)
    routes = [
        Route("/", site.page("now", Now().read)),
        Route("/history", site.page("history", read_history)),
        Route("/generation", site.page("generation", read_generation)),
        Route("/audio", site.play),
        Route("/numbers", site.page("numbers", Numbers().read, checks_schema=True)),
        Mount("/static", StaticFiles(directory=HERE / "static")),
        Route("/{path:path}", site.page("missing", _refuse)),
    ]
    guard = Middleware(Access, allowed_hosts=allowed_hosts, token=token)
    return Starlette(routes=routes, middleware=[guard])


class Site:
    """What all pages share: the database, the folder of files, the templates."""

    def __init__(self, storage: Storage | None, outputs: str | os.PathLike[str] | None, hide_prompts: bool) -> None:
        self._storage = storage
        self.outputs = outputs
        self.hide_prompts = hide_prompts
        self.limiter = CapacityLimiter(PAGES_AT_ONCE)
        self._file: object = None
        self.templates = Environment(
            loader=PackageLoader("services.storage.admin"), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        self.templates.filters |= FILTERS | {"tojson_text": lambda value: json.dumps(value, ensure_ascii=False)}
        self.templates.globals |= {"band": write_band, "version": __version__}

    @property
    def storage(self) -> Storage:
        """The given database, or the default one."""
        return self._storage or get_storage()

    def page(self, name: str, read: Read, *, checks_schema: bool = False) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint that renders the template `name` with what `read` returns.

        `checks_schema` says that `read` finds out itself whether another process has changed the schema meanwhile.
        """

        async def answer(request: Request) -> Response:
            return await to_thread.run_sync(
                partial(self._render, request, name, read, checks_schema), limiter=self.limiter
            )

        return answer

    async def play(self, request: Request) -> Response:
        """Answer with the audio file of one generation, or with a part of it."""
        return await to_thread.run_sync(partial(self._play, request), limiter=self.limiter)

    def _play(self, request: Request) -> Response:
        view = self._view(request)
        try:
            with self.storage.session(read_only=True) as session:
                generation = get_generation(session, view.asked.get("id", ""))
        except StorageError as error:
            return self._explain(view, error)
        file = None
        if generation is not None and self.outputs is not None:
            file = open_audio(self.outputs, generation, self.storage)
        return PlainTextResponse("There is no such file.", 404) if file is None else AudioResponse(file)

    def _view(self, request: Request) -> View:
        return View(request, self.storage, can_play=self.outputs is not None, always_hides=self.hide_prompts)

    def _render(self, request: Request, name: str, read: Read, checks_schema: bool) -> Response:
        view = self._view(request)
        try:
            self._notice_replacement()
            if self.storage.replicas is None and not checks_schema:
                self.storage.require_schema(refresh=True)  # another process may have changed it meanwhile
            with self.storage.session(read_only=True) as session:
                content = read(session, view)
        except Missing as missing:
            return self._respond(view, "message", 404, title=missing.title, text=str(missing))
        except InvalidCursorError as error:
            return self._respond(view, "message", 400, title="This address does not work", text=str(error))
        except StorageError as error:
            return self._explain(view, error)
        return self._respond(view, name, 200, **content)

    def _explain(self, view: View, error: StorageError) -> Response:
        # Connections to a file that was replaced or repaired meanwhile must not be used again.
        self.storage.dispose()
        titles = (title for kind, title in TITLES.items() if isinstance(error, kind))
        title = next(titles, "The database cannot be read")
        return self._respond(view, "message", 503, title=title, text=str(error), refresh=RETRY_SECONDS)

    def _respond(self, view: View, name: str, status: int, **content: Any) -> Response:
        template = self.templates.get_template(f"{name}.html")
        text = template.render(view=view, database=self.storage.display_url, **content)
        headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
        background = BackgroundTask(view.afterwards) if view.afterwards else None
        return HTMLResponse(text, status, headers, background=background)

    def _notice_replacement(self) -> None:
        """Close idle connections if the database file is another one than before: they would read the old one."""
        try:
            found = os.stat(self.storage.url.database or "")
        except (OSError, ValueError):
            return
        file = (found.st_dev, found.st_ino)
        if self._file not in (None, file):
            self.storage.dispose()
        self._file = file


def _refuse(session: Session, view: View) -> dict[str, Any]:
    raise Missing("There is no such page", "The address may have a typing error in it.")
