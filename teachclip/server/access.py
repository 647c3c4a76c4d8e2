"""Who may ask: this machine alone, or whoever has the token; and what the browser may do with an answer."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders, QueryParams
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response

from teachclip.server.network import is_local

COOKIE = "teachclip-token"
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
"""Names that a browser may call this machine by. Others are refused: a foreign page could point its name here."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Access:
    """ASGI middleware: with a `token` it asks for it, without one it takes local names alone. Adds `HEADERS`.

    The token comes as a cookie, as `Authorization: Bearer`, or once as `?token=`, which sets the cookie.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refusal(HTTPConnection(scope))
        await (refusal or self.app)(scope, receive, with_headers)

    def _refusal(self, request: HTTPConnection) -> Response | None:
        """Return why a request is not answered, or the answer that gives it its cookie; None if it may pass."""
        if self.token is None:
            host = request.headers.get("host", "")
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if name in LOCAL_NAMES or is_local(name):  # a name may be pointed here from elsewhere, a number may not
                return None
            return JSONResponse({"error": f"unknown host {name!r}; allowed: {', '.join(LOCAL_NAMES)}"}, 400)
        given = request.query_params.get("token")
        if given is not None and _same(given, self.token):
            kept = [(key, value) for key, value in request.query_params.multi_items() if key != "token"]
            query = str(QueryParams(kept))
            answer = RedirectResponse(f"/{request.url.path.lstrip('/')}{f'?{query}' if query else ''}", 303)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", max_age=30 * 86400)
            return answer
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        offered = [request.cookies.get(COOKIE, ""), bearer if scheme.lower() == "bearer" else ""]
        if any(_same(value, self.token) for value in offered):
            return None
        hint = "open the address that the server printed, or send Authorization: Bearer TOKEN"
        return JSONResponse({"error": f"this index needs its token: {hint}"}, 401)


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())
