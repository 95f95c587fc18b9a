"""One played world over one socket: the keys come in, the frames go out.

Two tasks share a session. One reads messages and notes what they want; the other draws frame after frame, one turn
each, and does what was noted between two frames. A frame reads the action of the moment in which its turn begins.
"""

import asyncio
import time
from collections import deque

import numpy as np
from jaxtyping import UInt8

from mutoscope.errors import UserError
from mutoscope.model_index import Json
from mutoscope.playground.calls import client_options
from mutoscope.playground.images import OPTIONS, ImageFormat, encoded, message
from mutoscope.playground.kept import File
from mutoscope.playground.messages import (
    Act,
    Go,
    Message,
    Pause,
    Rate,
    Reset,
    Rewind,
    Save,
    Shown,
    Start,
    Step,
    read_message,
)
from mutoscope.playground.real import RealWorld, real_world_of
from mutoscope.playground.saving import FILM_TYPES, episode, film
from mutoscope.playground.session import Session, Shared, Socket
from mutoscope.playground.world import Card, World, WorldStart

IN_FLIGHT = 2  # frames sent and not yet drawn; a slow client slows its own world and nothing else
MAX_FPS = 120.0
MEDIA_TYPES = {**FILM_TYPES, "lerobot": "application/zip"}
FORMATS: dict[str, ImageFormat] = {form: form for form in OPTIONS}


class PlaySession(Session):
    """The state of one socket."""

    def __init__(self, socket: Socket, shared: Shared) -> None:
        super().__init__(socket, shared)
        self.world: World | None = None
        self.real: RealWorld | None = None
        self.format: ImageFormat = "webp"
        self.action: dict[str, float] = {}
        self.action_id = 0
        self.is_running, self.steps = False, 0
        self.seconds_per_frame, self.due = 0.0, 0.0
        self.sent, self.shown = 0, 0
        self._asked: deque[Message] = deque()  # to be done between two frames
        self._news = asyncio.Event()

    # --------------------------------------------------------------------------------------------------- two tasks

    async def run(self) -> None:
        """Until the client leaves. Raises UserError for whatever ends the session."""
        async with asyncio.timeout(self.shared.limits.idle_seconds):
            first = read_message(await self.socket.receive_text())
        if not isinstance(first, Start):
            raise UserError("The first message must be of the type start.")
        self.shared.shelf.folder(first.model)  # an unknown name does not wait in the queue
        self._asked.append(first)
        async with self.shared.turns.place(self.tell_place):
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._read())
                    tasks.create_task(self._draw())
            finally:
                if self.real is not None:
                    self.real.close()

    async def _read(self) -> None:
        while True:
            text = await self.socket.receive_text()
            try:
                self._note(read_message(text))
            except UserError as error:
                await self._tell(error)
            self._news.set()

    async def _tell(self, error: UserError) -> None:
        await self.socket.send_json({"type": "error", "message": str(error)})

    def _note(self, asked: Message) -> None:
        """Take over what a message wants."""
        match asked:
            case Act(id=number, action=action):
                self._check_action(action)
                self.action, self.action_id = action, number
            case Pause():
                self.is_running = False
            case Go():
                self.is_running, self.due = True, 0.0
            case Step():
                self.is_running, self.steps = False, min(self.steps + 1, IN_FLIGHT)
            case Rate(fps=fps):
                if not 0 < fps <= MAX_FPS:
                    raise UserError(f"fps must be above 0 and at most {MAX_FPS:g}, found {fps:g}.")
                self.seconds_per_frame = 1 / fps
            case Shown(frame=frame):
                self.shown = max(self.shown, min(frame, self.sent))
            case Start() | Rewind() | Reset() | Save():
                if len(self._asked) >= 4:
                    raise UserError("Too many requests at once: wait for the answers.")
                self._asked.append(asked)

    def _check_action(self, action: dict[str, float]) -> None:
        names = () if self.world is None else self.world.names
        for name, value in action.items():
            if self.world is not None and name not in names:
                raise UserError(f"There is no action {name[:40]!r}. Known: {', '.join(names) or 'none'}.")
            if not -1e6 < value < 1e6:
                raise UserError(f"The action {name[:40]!r} must be a number below a million, found {value}.")

    async def _draw(self) -> None:
        while True:
            if self._asked:
                try:
                    await self._do(self._asked.popleft())
                except UserError as error:
                    await self._tell(error)
                    if self.world is None:
                        raise
                continue
            if self._may_draw() and (left := self.due - time.monotonic()) <= 0:
                await self._draw_one()
                continue
            self._news.clear()
            wait = left if self._may_draw() else self.shared.limits.idle_seconds
            try:
                # Not wait_for: it loses a cancellation that comes together with the news.
                async with asyncio.timeout(wait):
                    await self._news.wait()
            except TimeoutError:
                if not self._may_draw():
                    raise UserError("Nothing was requested in a while, so that the place is free again.") from None

    def _may_draw(self) -> bool:
        return (self.is_running or self.steps > 0) and self.sent - self.shown < IN_FLIGHT and self.world is not None

    # ------------------------------------------------------------------------------------------------- between frames

    async def _do(self, asked: Message) -> None:
        match asked:
            case Start():
                await self._begin(asked)
            case Rewind(frame=frame):
                world = self._world()
                self.is_running, self.steps = False, 0
                await self._show_again(await self.shared.turns.do(lambda: world.rewind(frame)))
            case Reset():
                world = self._world()
                await self._show_again(await self.shared.turns.do(lambda: world.rewind(0)))
                if self.real is not None:
                    await self.real.reset()
            case Save(format=form):
                await self._save(form)

    def _world(self) -> World:
        if self.world is None:
            raise UserError("No world has begun: send a message of the type start.")
        return self.world

    async def _begin(self, start: Start) -> None:
        if start.image not in FORMATS:
            raise UserError(f"Images are {', '.join(FORMATS)}; found {start.image[:40]!r}.")
        index = self.shared.shelf.index(start.model)
        picture = None if start.upload is None else self.shared.uploads.get(start.upload)[0]
        if self.real is not None:
            self.real.close()
            self.real = None
        if start.real:
            self.real = await real_world_of(start.class_label, index, start.seed)
            picture = self.real.first
        sampling = client_options(start.sampling, self.shared.shelf.actions[start.model])
        begin = WorldStart(start.class_label, start.first_frame, picture, start.seed, sampling)
        remembered = self.shared.limits.remembered_frames
        self.world = world = await self.shared.turns.do(
            lambda: World(self.shared.shelf.get(start.model), begin, remembered)
        )
        self.format = FORMATS[start.image]
        self.seconds_per_frame = 1 / index.fps
        self.action = {name: value for name, value in self.action.items() if name in world.names}
        self.is_running, self.steps, self.due = not start.paused, 0, 0.0
        await self.socket.send_json(self._described(start, world))
        await self._show_again(world.first)

    def _described(self, start: Start, world: World) -> dict[str, Json]:
        index = world.pipeline.index
        kinds = () if world.actions is None else world.actions.is_button
        return {
            "type": "started",
            "model": start.model,
            "width": index.width,
            "height": index.height,
            "fps": index.fps,
            "seed": start.seed,
            "actions": [{"name": n, "button": b} for n, b in zip(world.names, kinds, strict=True)],
            "real": self.real is not None,
            "remembered": self.shared.limits.remembered_frames,
        }

    async def _show_again(self, card: Card) -> None:
        """Send a frame that exists already."""
        pixels = await asyncio.to_thread(card.pixels)
        self.sent, self.shown = card.index, card.index
        await self._send(card, pixels, self.action_id, "model")
        if self.real is not None and card.index == 0:
            await self._send(card, self.real.first, self.action_id, "real")

    async def _save(self, form: str) -> None:
        if form not in MEDIA_TYPES:
            raise UserError(f"What was played can be saved as {', '.join(MEDIA_TYPES)}; found {form[:40]!r}.")
        world = self._world()
        index, cards = world.pipeline.index, world.cards()
        if form == "lerobot":
            if world.actions is None:
                raise UserError("An episode needs actions, and this model reads none: save a film.")
            actions, task = world.actions, str(world.start.class_label or "")
            content = await asyncio.to_thread(lambda: episode(cards, actions, index.fps, task))
        else:
            content = await asyncio.to_thread(lambda: film(cards, index.fps, f".{form}"))
        suffix = "zip" if form == "lerobot" else form
        name = self.shared.results.add(File(content, MEDIA_TYPES[form], f"mutoscope.{suffix}"), len(content))
        await self.socket.send_json({"type": "saved", "format": form, "file": name, "frames": len(cards)})

    # ------------------------------------------------------------------------------------------------------ one frame

    async def _draw_one(self) -> None:
        world, asked = self._world(), time.monotonic()
        self.due = max(self.due + self.seconds_per_frame, asked) if self.due else asked + self.seconds_per_frame
        self.steps = max(0, self.steps - 1)

        def turn() -> tuple[Card, UInt8[np.ndarray, "h w 3"], int, dict[str, float], float]:
            begin, action, number = time.monotonic(), dict(self.action), self.action_id
            card, pixels = world.advance(tuple(float(action.get(name, 0.0)) for name in world.names))
            return card, pixels, number, action, begin - asked

        card, pixels, number, action, waited = await self.shared.turns.do(turn)
        self.sent = card.index
        self.shared.metrics.frames += 1
        self.shared.metrics.frame_seconds.observe(card.seconds_sampling + card.seconds_decoding)
        await self._send(card, pixels, number, "model", waited)
        if self.real is not None:
            await self._send(card, await self.real.step(action), number, "real")
        await self.shared.turns.do(world.work_ahead)  # before the keys of the next frame are read

    async def _send(
        self, card: Card, pixels: UInt8[np.ndarray, "h w 3"], number: int, view: str, waited: float = 0.0
    ) -> None:
        begin = time.perf_counter()
        content = card.png if self.format == "png" and view == "model" else encoded(pixels, self.format)
        header: dict[str, Json] = {
            "type": "frame",
            "view": view,
            "index": card.index,
            "action_id": number,
            "waiting_ms": round(1000 * waited, 2),
            "sampling_ms": round(1000 * card.seconds_sampling, 2),
            "decoding_ms": round(1000 * card.seconds_decoding, 2),
            "encoding_ms": round(1000 * (time.perf_counter() - begin), 2),
            "media_type": f"image/{self.format}",
        }
        await self.socket.send_bytes(message(header, content))
