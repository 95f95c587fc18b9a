"""/v1/realtime/video: a stream as fragmented MP4 whose conditions can change, with vllm-omni's names of messages.

An action is one more kind of event. One fragment holds `CHUNK_FRAMES` frames, begins with a key frame and is sent as
soon as its last frame is there.
"""

import asyncio
import io
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from jaxtyping import UInt8

from mutoscope.actions import ActionSpec
from mutoscope.errors import UserError
from mutoscope.json_config import dataclass_from_dict, nearest
from mutoscope.model_index import Json, ModelIndex
from mutoscope.pipeline import VideoStream
from mutoscope.playground.calls import client_options
from mutoscope.playground.messages import json_object
from mutoscope.playground.session import SECONDS_TO_SEND, Session, Shared, Socket
from mutoscope.worlds.lerobot_writer import exact_rate

CHUNK_FRAMES = 4
MAX_WAITING_EVENTS = 32
MOVFLAGS = "frag_custom+empty_moov+default_base_moof+skip_trailer"  # one fragment, at the end
TICKS = 1000  # per 1 in the numerator of the frame rate: clients round times of coarser clocks


@dataclass(frozen=True)
class SessionStart:
    """What to stream."""

    model: str
    prompt: str | None = None
    format: str = "m4s"
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    num_frames: int | None = None
    extra_params: dict[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True)
class Event:
    """Conditions that change."""

    prompt: str | None = None
    class_label: str | int | None = None
    action: dict[str, float] | str | None = None


@dataclass(frozen=True)
class Interaction:
    """A change, and the number of chunks for which it counts as new."""

    event_id: str
    event: Event
    transition_chunks: int = 1


class FragmentWriter:
    """Frames in, parts of one fragmented MP4 file out.

    Every part is a file of one fragment, of which the first keeps its header. FFmpeg's own fragments would each wait
    for the first frame of the next one.
    """

    def __init__(self, height: int, width: int, fps: float) -> None:
        self.height, self.width = height + height % 2, width + width % 2
        self.rate, self._frames, self._parts = Fraction(exact_rate(fps)), 0, 0

    def chunk(self, frames: UInt8[np.ndarray, "t h w 3"]) -> bytes:
        """The bytes of one fragment; those of the first one begin with the header."""
        content = self._file(frames, self._parts + 1)
        start = self._frames * self.rate.denominator * TICKS
        at = content.index(b"tfdt") + 8  # behind the name, version 1 and flags: the time at which the fragment begins
        content[at : at + 8] = start.to_bytes(8, "big")
        self._frames, self._parts = self._frames + len(frames), self._parts + 1
        return bytes(content if self._parts == 1 else content[content.index(b"moof") - 4 :])  # the length comes first

    def _file(self, frames: UInt8[np.ndarray, "t h w 3"], number: int) -> bytearray:
        """A file of one fragment, whose frames begin at time 0."""
        import av

        file = io.BytesIO()
        timescale = {"fragment_index": str(number), "video_track_timescale": str(self.rate.numerator * TICKS)}
        with av.open(file, "w", format="mp4", options={"movflags": MOVFLAGS, **timescale}) as container:
            stream = container.add_stream("libx264", rate=self.rate)
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
            stream.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "20"}
            stream.codec_context.time_base = 1 / self.rate
            for time, array in enumerate(frames):
                odd = (self.height - array.shape[0], self.width - array.shape[1])
                padded = np.pad(array, ((0, odd[0]), (0, odd[1]), (0, 0)), "edge")
                frame = av.VideoFrame.from_ndarray(padded, format="rgb24")
                frame.pts = time
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return bytearray(file.getvalue())


class RealtimeSession(Session):
    """One stream for one client."""

    def __init__(self, socket: Socket, shared: Shared) -> None:
        super().__init__(socket, shared)
        self.waiting: deque[Interaction] = deque()
        self.active: dict[str, int] = {}  # ids of events -> chunks for which they still count as new
        self.stopped = False

    async def run(self) -> None:
        async with asyncio.timeout(self.shared.limits.idle_seconds):
            first = json_object(await self.socket.receive_text())
        if first.pop("type", None) != "session.start":
            raise UserError("The first message must be of the type session.start.")
        start = dataclass_from_dict(SessionStart, first, "session.start")
        index = self.shared.shelf.index(start.model)
        options = stream_options(start, index, self.shared.shelf.actions[start.model])
        async with self.shared.turns.place(self.tell_place), asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read())
            await self._stream(start, index, options)
            reader.cancel()

    async def tell_place(self, ahead: int) -> None:
        await self.socket.send_json({"type": "session.queued", "ahead": ahead})

    async def _read(self) -> None:
        while not self.stopped:
            message = json_object(await self.socket.receive_text())
            kind = message.pop("type", None)
            if kind == "session.stop":
                self.stopped = True
            elif kind == "session.ping":
                await self.socket.send_json({"type": "session.pong"})
            elif kind == "session.interaction":
                await self._queue(message)
            else:
                known = ("session.stop", "session.ping", "session.interaction")
                raise UserError(f"There is no message of type {str(kind)[:40]!r}: {nearest(str(kind)[:40], known)}")

    async def _queue(self, message: Mapping[str, object]) -> None:
        try:
            asked = dataclass_from_dict(Interaction, dict(message.get("interaction") or {}), "interaction")  # type: ignore[call-overload]
            if len(self.waiting) >= MAX_WAITING_EVENTS:
                raise UserError("Too many interactions are waiting.")
        except (UserError, TypeError, ValueError) as error:
            await self.socket.send_json({"type": "error", "message": str(error)})
            return
        self.waiting.append(asked)
        await self.socket.send_json({"type": "session.interaction.queued", "event_id": asked.event_id})

    async def _stream(self, start: SessionStart, index: ModelIndex, options: Mapping[str, object]) -> None:
        stream = await self.shared.turns.do(lambda: self.shared.shelf.get(start.model).stream(**options))
        fps = start.fps or index.fps
        writer = FragmentWriter(index.height, index.width, fps)
        begin: dict[str, Json] = {
            "type": "video.start",
            "format": "m4s",
            "mime_type": 'video/mp4; codecs="avc1.42C01E"',
            "width": index.width,
            "height": index.height,
            "fps": fps,
        }
        await self.socket.send_json(begin)
        chunk, count = 0, 0
        while not self.stopped:
            started = await self._apply(stream)
            frames: list[np.ndarray] = []
            while len(frames) < CHUNK_FRAMES and not self.stopped:
                frame = await self.shared.turns.do(lambda: next(stream, None))
                if frame is None:
                    self.stopped = True
                else:
                    frames.append(frame)
            if not frames:
                break
            count += len(frames)
            content = await asyncio.to_thread(writer.chunk, np.stack(frames))
            async with asyncio.timeout(SECONDS_TO_SEND):
                await self._send(chunk, len(frames), content, started)
            self.shared.metrics.frames += len(frames)
            chunk += 1
        await self.socket.send_json({"type": "session.done", "num_frames": count, "num_chunks": chunk})

    async def _apply(self, stream: VideoStream) -> list[str]:
        """The events that begin with this chunk."""
        started: list[str] = []
        while self.waiting:
            asked = self.waiting.popleft()
            changes = {name: value for name, value in vars(asked.event).items() if value is not None}
            try:
                await self.shared.turns.do(lambda changes=changes: stream.change(**changes))
            except UserError as error:
                await self.socket.send_json({"type": "error", "event_id": asked.event_id, "message": str(error)})
                continue
            started.append(asked.event_id)
            self.active[asked.event_id] = max(1, asked.transition_chunks)
        return started

    async def _send(self, chunk: int, count: int, content: bytes, started: list[str]) -> None:
        active = list(self.active)
        self.active = {name: left - 1 for name, left in self.active.items()}
        completed = [name for name, left in self.active.items() if left <= 0]
        self.active = {name: left for name, left in self.active.items() if left > 0}
        metadata: dict[str, Json] = {
            "type": "video.chunk_metadata",
            "kind": "init+media" if chunk == 0 else "media",
            "transport_chunk_index": chunk,
            "generation_chunk_index": chunk,
            "num_frames": count,
            "byte_length": len(content),
            "started_event_ids": list(started),
            "active_event_ids": list(active),
            "completed_event_ids": list(completed),
        }
        await self.socket.send_json(metadata)
        await self.socket.send_bytes(content)


def stream_options(start: SessionStart, index: ModelIndex, actions: ActionSpec | None) -> dict[str, object]:
    """Options of a stream. Raises UserError for a format or size that there is not."""
    if start.format not in ("m4s", "mp4"):
        raise UserError(f"The format is m4s; found {start.format[:40]!r}.")
    if (start.width or index.width, start.height or index.height) != (index.width, index.height):
        raise UserError(f"This model generates {index.width}x{index.height}; omit width and height.")
    if start.fps is not None and not 0 < start.fps <= 240:
        raise UserError(f"fps must be above 0 and at most 240; found {start.fps:g}.")
    prompt = {} if start.prompt is None else {"prompt": start.prompt}
    return {**client_options(start.extra_params, actions), **prompt, "num_frames": start.num_frames}
