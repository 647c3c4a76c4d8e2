"""The application: a JSON API over an index, the files of its videos by id, and the page."""

from __future__ import annotations

import mimetypes
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as AnyHTTPException

from teachclip import __version__
from teachclip.errors import DataError, TeachclipError, VideoError
from teachclip.search.index import VideoIndex
from teachclip.search.results import Found, Part, Video
from teachclip.server.access import Access
from teachclip.server.pictures import Pictures

STATIC = Path(__file__).parent / "static"
KEPT_QUERIES = 512
"""Query vectors that are kept: the grid and the time lines of one search share one."""

VideoId = Annotated[str, PathParameter(pattern="^[0-9a-f]{16}$", description="the id of a video")]
Text = Annotated[str | None, Query(description="what to search", max_length=1000)]
Minus = Annotated[str | None, Query(description="a text to turn away from", max_length=1000)]
Like = Annotated[
    str | None, Query(pattern=r"^[0-9a-f]{16}(-\d{1,9})?$", description="the id of a video or part to resemble")
]
Filters = Annotated[list[str], Query(alias="filter", description="such as length>=60; all must hold", max_length=20)]


@dataclass(frozen=True)
class About:
    """What is in an index. `videos`: how many. `unreadable`: files that could not be read, `incomplete`: in part."""

    videos: int
    columns: list[str]
    student: str
    unreadable: int
    incomplete: int


@dataclass(frozen=True)
class Answer:
    """What a search found, best first, and how many milliseconds it took."""

    results: list[Found]
    milliseconds: float


@dataclass(frozen=True)
class Timeline:
    """A video with all its parts in the order of time; with a query each has a score."""

    video: Video
    parts: list[Part]


def create_app(index: VideoIndex, *, token: str | None = None, picture_workers: int = 2) -> FastAPI:
    """Return the ASGI application of an index.

    `token`: what requests must carry; None if the server can be reached from this machine alone, and then only
    requests that call it localhost are answered. `picture_workers`: processes that decode thumbnails.
    """
    pictures = Pictures(picture_workers)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        pictures.close()
        index.close()

    app = FastAPI(
        title="teachclip", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        openapi_url="/api/openapi.json", description="Search in an index of videos.",
    )  # fmt: skip
    app.add_middleware(Access, token=token)
    for kind in (TeachclipError, AnyHTTPException, RequestValidationError):
        app.add_exception_handler(kind, _refused)
    _add_search(app, index)
    _add_files(app, index, pictures)
    app.mount("/", StaticFiles(directory=STATIC, html=True), name="page")
    return app


async def _refused(_: Request, error: Exception) -> Response:
    """Answer a request that cannot be understood, or that names what is not there, in one line."""
    if isinstance(error, AnyHTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    if isinstance(error, RequestValidationError):
        problems = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
        return JSONResponse({"error": "; ".join(problems)}, 422)
    return JSONResponse({"error": str(error)}, 502 if isinstance(error, VideoError) else 400)


def _add_search(app: FastAPI, index: VideoIndex) -> None:
    vectors = _QueryVectors(index)

    @app.get("/api/index")
    def about() -> About:
        """Say what is in the index."""
        unreadable, incomplete = index.problems()
        student = Path(str(index.settings.model)).name
        return About(len(index.ids()), index.columns, student, len(unreadable), len(incomplete))

    @app.get("/api/search")
    def search(
        text: Text = None,
        like: Like = None,
        minus: Minus = None,
        filters: Filters = [],  # noqa: B006 - FastAPI copies it
        limit: Annotated[int, Query(ge=1, le=200)] = 24,
    ) -> Answer:
        """Search by a text, by an example from the index, or both."""
        started = time.perf_counter()
        vector = vectors.get(text, like, minus)
        videos = index.ids(filters) if filters else None
        found = index.nearest(vector, limit=limit, videos=videos, filters=filters)
        return Answer(found, 1000 * (time.perf_counter() - started))

    @app.get("/api/videos")
    def videos(
        filters: Filters = [],  # noqa: B006
        limit: Annotated[int, Query(ge=1, le=200)] = 24,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> list[Video]:
        """Return the videos by path."""
        return index.videos(filters, limit=limit, offset=offset)

    @app.get("/api/videos/{video}")
    def timeline(video: VideoId, text: Text = None, like: Like = None, minus: Minus = None) -> Timeline:
        """Return one video and its parts, with a score each if there is a query: that of the nearest of its rows."""
        entry = _video(index, video)
        parts = index.parts(video)
        if text is not None or like is not None:
            vector, rows = vectors.get(text, like, minus), index.vectors([video])
            parts = [replace(part, score=float(rows[part.id] @ vector)) for part in parts if part.id in rows]
        best: dict[tuple[float, float], Part] = {}
        for part in parts:
            known = best.setdefault((part.start, part.end), part)
            if (part.score or 0.0) > (known.score or 0.0):
                best[part.start, part.end] = part
        return Timeline(entry, list(best.values()))


def _add_files(app: FastAPI, index: VideoIndex, pictures: Pictures) -> None:
    @app.get("/api/videos/{video}/picture.jpg", response_class=Response)
    def picture(
        video: VideoId,
        seconds: Annotated[float, Query(ge=0, le=1e6)] = 0.0,
        width: Annotated[int, Query(ge=32, le=1280)] = 320,
    ) -> Response:
        """Return the frame that is shown at some second as a JPEG."""
        data = pictures.get(video, _file(index, video), seconds, width)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    @app.head("/api/videos/{video}/file", include_in_schema=False)
    @app.get("/api/videos/{video}/file", response_class=FileResponse)
    def file(video: VideoId) -> FileResponse:
        """Return the file of a video, or the ranges of it that a browser asks for."""
        path = _file(index, video)
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        safe = kind if kind.startswith(("video/", "image/")) and "svg" not in kind else "application/octet-stream"
        return FileResponse(path, media_type=safe)


def _video(index: VideoIndex, video: str) -> Video:
    try:
        return index.video(video)
    except DataError as error:
        raise HTTPException(404, f"the index has no video {video}") from error


def _file(index: VideoIndex, video: str) -> str:
    """Return the file of a video that is in the index now, the first of its paths that exists."""
    for path in _video(index, video).paths:
        if Path(path).is_file():
            return path
    raise HTTPException(404, "the file is not there any more; bring the index up to date")


class _QueryVectors:
    """The vectors of the last queries; one is encoded at a time, as one uses all cores."""

    def __init__(self, index: VideoIndex) -> None:
        self._index = index
        self._kept: OrderedDict[Any, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str | None, like: str | None, minus: str | None) -> np.ndarray:
        """Return the vector of a query. Raises DataError if there is none, or it cannot be understood."""
        text, minus = (value if value and value.strip() else None for value in (text, minus))
        key = (self._index.settings.fingerprint, text, like, minus)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._index.query_vector(text, like=like, minus=minus)
                while len(self._kept) > KEPT_QUERIES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]
