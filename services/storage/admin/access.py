"""Which requests are answered, and the headers of every answer.

A page on another site can make the browser ask 127.0.0.1 under a name of its own (DNS rebinding), so a Host header must
be an IP address or a known name. A rebound name can never be an address. Nothing is loaded from other sites and no
script or style may be inline, so text that should become HTML by mistake could still not run.
"""

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from hashlib import sha256
from ipaddress import ip_address
from secrets import compare_digest
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE: Final = "dgx_storage_admin"
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Access:
    """Middleware that refuses unknown hosts and requests without the token, and adds the headers."""

    def __init__(self, app: App, *, allowed_hosts: Collection[str], token: str | None) -> None:
        self.app = app
        self.allowed_hosts = {"localhost", *(name.lower() for name in allowed_hosts)}
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refuse(scope)
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refuse(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._is_known_host(headers.get("host", "")):
            text = "This host name is unknown here: open the page by its IP address, or pass --allow-host NAME."
            return PlainTextResponse(text, 400)
        if self.token is None:
            return None
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token")
        if given is not None and _is_same(given, self.token):
            return self._remember(scope)
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if _is_same(bearer, self.token) or _is_same(cookie, _digest(self.token)):
            return None
        return PlainTextResponse("This page needs its token: open the address that was printed when it started.", 401)

    def _is_known_host(self, host: str) -> bool:
        name = host.lower()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        if name in self.allowed_hosts or "*" in self.allowed_hosts:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True

    def _remember(self, scope: Scope) -> Response:
        """Redirect to the address without the token, which the browser keeps as a cookie from now on."""
        rest = [pair for pair in parse_qsl(scope["query_string"].decode("latin-1")) if pair[0] != "token"]
        path = "/" + scope["path"].lstrip("/")  # "//name" would be another site
        answer = RedirectResponse(f"{path}?{urlencode(rest)}" if rest else path, 303)
        path = scope.get("root_path", "") or "/"
        answer.set_cookie(COOKIE, _digest(self.token or ""), path=path, httponly=True, samesite="strict")
        return answer


def _is_same(given: str, wanted: str) -> bool:
    return compare_digest(given.encode(), wanted.encode())


def _digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()
