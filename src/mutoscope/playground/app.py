"""The server: the page, the sockets of worlds and clips, and the interfaces that other programs speak."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING

from mutoscope import __version__
from mutoscope.errors import UserError
from mutoscope.model_index import Json
from mutoscope.playground.described import describe
from mutoscope.playground.guard import COOKIE, Guard
from mutoscope.playground.images import encoded
from mutoscope.playground.kept import NotHere
from mutoscope.playground.limits import Limits
from mutoscope.playground.memory import give_back_memory, short_collections
from mutoscope.playground.messages import json_object
from mutoscope.playground.metrics import exposition
from mutoscope.playground.play import PlaySession
from mutoscope.playground.realtime import RealtimeSession
from mutoscope.playground.session import Shared
from mutoscope.playground.shelf import Shelf
from mutoscope.playground.uploads import TooLarge, read_upload
from mutoscope.playground.videos import Jobs, router
from mutoscope.playground.watching import WatchSession
from mutoscope.writing import REFUSED_WRITES, WriteError, write_problem

if TYPE_CHECKING:
    from fastapi import FastAPI, WebSocket

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# The page loads nothing from elsewhere; the last two let browsers give it threads for WebAssembly.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "style-src 'self'; script-src 'self'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
POLICY_VIOLATION, BAD_DATA, OUR_FAULT = 1008, 1007, 1011  # codes of closed sockets
HOUSEKEEPING_SECONDS = 15.0
logger = logging.getLogger("mutoscope.playground")


@dataclass(frozen=True)
class Problem:
    """What is wrong, in one sentence."""

    detail: str


@dataclass(frozen=True)
class Uploaded:
    """A file that was read, by the name that calls give for it."""

    upload: str
    frames: int
    width: int
    height: int


@dataclass(frozen=True)
class ServedModel:
    """A model as clients of OpenAI's interface list it."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "mutoscope"


@dataclass(frozen=True)
class ServedModels:
    object: str = "list"
    data: list[ServedModel] = field(default_factory=list)


class Server(Shared):
    """Everything that the requests of one server share."""

    def __init__(self, shelf: Shelf, guard: Guard, limits: Limits, opening: str | None = None) -> None:
        """opening: a model that is loaded before anyone wants it, because the page opens with it."""
        super().__init__(shelf, limits)
        self.guard, self.opening = guard, opening
        self.reading = asyncio.Semaphore(1)
        self.jobs = Jobs(self)
        self.has_worlds = find_spec("vizdoom") is not None

    @cached_property
    def described(self) -> list[dict[str, object]]:
        """The models as the page lists them; their folders are read once."""
        names = self.shelf.names
        return [
            dict(describe(name, self.shelf.folder(name), self.shelf.actions[name], self.has_worlds)) for name in names
        ]

    def gauges(self) -> dict[str, float]:
        return {
            "sessions_active": self.turns.taken,
            "sessions_waiting": self.turns.queued,
            "models_loaded": len(self.shelf.loaded),
            "uploads_kept": len(self.uploads),
            "results_kept": len(self.results),
        }

    async def keep_house(self) -> None:
        """Drop unused models and give back the memory of ended sessions, for ever."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            await self.tidy()

    async def load_opening(self) -> None:
        """Load the model with which the page opens; one that cannot be loaded is reported to whoever wants it."""
        if (name := self.opening) is not None:
            with suppress(UserError):
                await self.turns.do(lambda: self.shelf.get(name))

    async def tidy(self) -> None:
        """One round of housekeeping, in a turn of its own, so that no frame is being drawn."""
        ended, self.turns.ended = self.turns.ended, 0
        if self.shelf.drop_unused() or ended:
            await self.turns.do(give_back_memory)

    @asynccontextmanager
    async def lifespan(self, app: "FastAPI") -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work) for work in (self.keep_house(), self.load_opening())]
        with short_collections():
            yield
        for task in tasks:
            task.cancel()
        self.turns.close()


def create_app(server: Server) -> "FastAPI":
    """The application for uvicorn, or for a test client. Needs the extra [playground]."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

    app = FastAPI(
        title="Mutoscope",
        version=__version__,
        lifespan=server.lifespan,
        docs_url=None,
        redoc_url=None,
        responses={status: {"model": Problem} for status in (400, 403, 404, 413, 507)},
    )
    _add_guard(app, server)
    _add_page(app)
    _add_status(app, server)
    _add_models(app, server)
    _add_files(app, server)
    _add_sockets(app, server)
    app.include_router(router(server.jobs, server.reading))

    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError) -> JSONResponse:
        server.metrics.refused += 1
        status = {TooLarge: 413, NotHere: 404, WriteError: 507}.get(type(error), 400)
        return JSONResponse({"detail": str(error), "error": {"message": str(error), "code": status}}, status)

    @app.exception_handler(OSError)
    async def full(request: Request, error: OSError) -> JSONResponse:
        """A disk that is full, also in the middle of a form, whose files the web framework stores."""
        if error.errno not in REFUSED_WRITES:
            raise error
        return await refused(request, write_problem(error.filename or gettempdir(), error, name="the upload"))

    return app


def _add_guard(app: "FastAPI", server: Server) -> None:
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse

    @app.middleware("http")
    async def guarded(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        problem = server.guard.problem(request.headers, request.query_params, request.cookies)
        if problem is not None and request.url.path != "/healthz":
            server.metrics.refused += 1
            return JSONResponse({"detail": problem}, 403)
        response = await handle(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if server.guard.token is not None and request.query_params.get("token"):
            response.set_cookie(COOKIE, server.guard.token, httponly=True, samesite="strict")
        return response


def _add_page(app: "FastAPI") -> None:
    from fastapi import Response
    from fastapi.responses import JSONResponse

    files = {file.name: file for file in STATIC.iterdir() if file.suffix in MEDIA_TYPES}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(files["index.html"].read_bytes(), media_type="text/html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            return JSONResponse({"detail": "There is no such file."}, 404)
        return Response(files[name].read_bytes(), media_type=MEDIA_TYPES[files[name].suffix])

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(files["icon.svg"].read_bytes(), media_type="image/svg+xml")


def _add_status(app: "FastAPI", server: Server) -> None:
    from fastapi.responses import PlainTextResponse

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok", "version": __version__}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Counters in the format of Prometheus."""
        return exposition(server.metrics, server.gauges())


def _add_models(app: "FastAPI", server: Server) -> None:
    from fastapi import Response

    @app.get("/v1/models")
    async def models() -> ServedModels:
        """The models that calls can name."""
        return ServedModels(data=[ServedModel(id=name) for name in server.shelf.names])

    @app.get("/api/models")
    async def listed() -> list[dict[str, object]]:
        """The models with their classes, keys, first frames and options."""
        return server.described

    @app.get("/api/models/{model}/first-frames/{name}", response_class=Response)
    async def first_frame(model: str, name: str) -> Response:
        """One of a model's own first frames, as a PNG image."""
        from mutoscope.families.first_frames import FirstFrames

        folder = server.shelf.folder(model)
        frames = FirstFrames(folder.path, folder.index.first_frames)
        if name not in frames.names:
            raise NotHere("This model has no such first frame.")
        return Response(encoded(frames.read(name)[0].numpy(), "png"), media_type="image/png")


def _add_files(app: "FastAPI", server: Server) -> None:
    from fastapi import Request, Response

    @app.post("/api/uploads")
    async def upload(request: Request) -> Uploaded:
        """Read a picture or a video from the body of the request."""
        frames = await read_upload(request.stream(), server.limits, server.reading)
        server.metrics.uploads += 1
        name = server.uploads.add(frames, frames.nbytes)
        return Uploaded(upload=name, frames=len(frames), height=frames.shape[1], width=frames.shape[2])

    @app.get("/api/uploads/{name}/first-frame/{model}", response_class=Response)
    async def seen(name: str, model: str) -> Response:
        """The first frame of an upload as a PNG image, cut to the size and the aspect of a model's frames."""
        from mutoscope.data.fit import fit_frames

        index = server.shelf.folder(model).index
        frame = fit_frames(server.uploads.get(name)[:1], index.height, index.width)
        return Response(encoded(frame[0], "png"), media_type="image/png")

    @app.get("/api/files/{name}", response_class=Response)
    async def result(name: str) -> Response:
        """A film, picture or episode that was made."""
        found = server.results.get(name)
        disposition = {"Content-Disposition": f'attachment; filename="{found.name}"'}
        return Response(found.content, media_type=found.media_type, headers=disposition)


def _add_sockets(app: "FastAPI", server: Server) -> None:
    from fastapi import WebSocket

    @app.websocket("/play")
    async def play(socket: WebSocket) -> None:
        await served(socket, server, lambda: PlaySession(Texts(socket), server).run())

    @app.websocket("/watch")
    async def watch(socket: WebSocket) -> None:
        await served(socket, server, lambda: _watched(Texts(socket), WatchSession(Texts(socket), server)))

    @app.websocket("/v1/realtime/video")
    async def realtime(socket: WebSocket) -> None:
        await served(socket, server, RealtimeSession(Texts(socket), server).run)


class Texts:
    """A socket whose client may send texts only."""

    def __init__(self, socket: "WebSocket") -> None:
        self.socket = socket
        self.send_json, self.send_bytes = socket.send_json, socket.send_bytes

    async def receive_text(self) -> str:
        """Raises UserError for bytes, which Starlette takes for a missing text."""
        from fastapi import WebSocketDisconnect

        message = await self.socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005), message.get("reason"))
        if message.get("text") is None:
            raise UserError("A message is a text, a JSON object; bytes were sent.")
        return str(message["text"])


async def _watched(socket: Texts, session: WatchSession) -> None:
    """One clip; it stops when the client leaves or says anything more."""
    from fastapi import WebSocketDisconnect

    async with asyncio.timeout(session.shared.limits.idle_seconds):
        text = await socket.receive_text()
    values = json_object(text)
    work, gone = asyncio.create_task(session.run(values)), asyncio.create_task(socket.receive_text())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        with suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
            await gone


async def served(socket: "WebSocket", server: Server, run: Callable[[], Awaitable[None]]) -> None:
    """One socket from its opening to its end; the client learns what is wrong before it closes."""
    from fastapi import WebSocketDisconnect

    problem = server.guard.problem(socket.headers, socket.query_params, socket.cookies)
    if problem is None and server.metrics.connections >= server.limits.connections:
        problem = "Too many connections."
    if problem is not None:
        server.metrics.refused += 1
        await socket.close(POLICY_VIOLATION, problem)
        return
    await socket.accept()
    server.metrics.connections += 1
    try:
        await run()
        await _close(socket, 1000, "")
    except* WebSocketDisconnect:
        pass
    except* UserError as group:
        server.metrics.refused += 1
        await _tell_and_close(socket, str(_first(group)), BAD_DATA)
    except* TimeoutError:
        await _tell_and_close(socket, "Nothing was requested in a while.", POLICY_VIOLATION)
    except* RuntimeError as group:  # Starlette's word for a socket that closed while it was written to
        if "close" not in str(_first(group)).lower():
            logger.exception("a session failed", exc_info=_first(group))
            await _tell_and_close(socket, "The server failed; see its log.", OUR_FAULT)
    except* Exception as group:
        logger.exception("a session failed", exc_info=_first(group))
        await _tell_and_close(socket, "The server failed; see its log.", OUR_FAULT)
    finally:
        server.metrics.connections -= 1


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


async def _tell_and_close(socket: "WebSocket", sentence: str, code: int) -> None:
    from fastapi import WebSocketDisconnect

    error: dict[str, Json] = {"type": "error", "message": sentence}
    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.send_json(error)
    await _close(socket, code, sentence)


async def _close(socket: "WebSocket", code: int, sentence: str) -> None:
    from fastapi import WebSocketDisconnect

    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.close(code, sentence.encode()[:120].decode(errors="ignore"))
