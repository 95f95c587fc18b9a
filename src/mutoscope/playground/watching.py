"""Generation to watch over one socket: a call comes in, steps and frames go out."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mutoscope.json_config import dataclass_from_dict
from mutoscope.model_index import Json
from mutoscope.playground.calls import client_options
from mutoscope.playground.images import encoded, message, side_by_side
from mutoscope.playground.kept import File
from mutoscope.playground.saving import FILM_TYPES, written
from mutoscope.playground.session import SECONDS_TO_SEND, Session
from mutoscope.playground.watch import Watch, WatchStep


@dataclass(frozen=True)
class Ask:
    """What to generate: a model and the options of a call, as `mutoscope generate` takes them."""

    model: str
    options: dict[str, object] = field(default_factory=dict[str, object])


class WatchSession(Session):
    """One clip for one client."""

    async def run(self, values: Mapping[str, object]) -> None:
        """Until the clip is complete. Raises UserError for a call that does not fit."""
        ask = dataclass_from_dict(Ask, values, "the request")
        self.shared.shelf.folder(ask.model)
        async with self.shared.turns.place(self.tell_place):
            options = client_options(ask.options, self.shared.shelf.actions[ask.model], self.shared.uploads)
            watch = await self.shared.turns.do(lambda: Watch(self.shared.shelf.get(ask.model), options))
            await self._send_start(ask.model, watch)
            steps = watch.steps()
            while (step := await self.shared.turns.do(lambda: _next(steps))) is not None:
                async with asyncio.timeout(SECONDS_TO_SEND):
                    await self._send(step)
            self.shared.metrics.clips += 1
            await self._send_files(watch)

    async def _send_start(self, model: str, watch: Watch) -> None:
        request, index = watch.request, watch.pipeline.index
        start: dict[str, Json] = {
            "type": "started",
            "model": model,
            "task": request.task,
            "seed": request.seed,
            "num_frames": request.num_frames,
            "width": index.width,
            "height": index.height,
            "fps": index.fps,
            "warnings": list(request.warnings),
        }
        await self.socket.send_json(start)

    async def _send(self, step: WatchStep) -> None:
        header: dict[str, Json] = {
            "type": "step",
            "step": step.step,
            "num_steps": step.num_steps,
            "seconds": round(step.seconds, 4),
            "grid": list(step.grid),
            "decided": list(step.decided),
            "confidence": None if step.confidence is None else list(step.confidence),
            "first": step.first,
            "count": 0 if step.frames is None else len(step.frames),
            "preview": step.is_preview,
            "last": step.is_last,
        }
        content = b"" if step.frames is None else encoded(side_by_side(step.frames), "png")
        await self.socket.send_bytes(message(header, content))

    async def _send_files(self, watch: Watch) -> None:
        clip = watch.clip()
        names: dict[str, Json] = {}
        for form, media_type in FILM_TYPES.items():
            content = await asyncio.to_thread(written, clip.frames, clip.fps, f".{form}")
            names[form] = self.shared.results.add(File(content, media_type, f"mutoscope.{form}"), len(content))
        await self.socket.send_json({"type": "done", "files": names, "frames": len(clip.frames)})


def _next(steps: Iterator[WatchStep]) -> WatchStep | None:
    return next(steps, None)
