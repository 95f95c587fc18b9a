"""/v1/videos: clips as jobs, in the shape of OpenAI's interface, for clients that exist already."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from mutoscope.actions import ActionSpec
from mutoscope.checks import COUNT, Range, check_fields
from mutoscope.data.video.write import VideoClip
from mutoscope.errors import UserError, reason
from mutoscope.families import family_named
from mutoscope.json_config import dataclass_from_dict
from mutoscope.model_index import ModelIndex
from mutoscope.playground.calls import client_options
from mutoscope.playground.images import encoded, side_by_side
from mutoscope.playground.kept import NotHere, Picture
from mutoscope.playground.limits import Limits
from mutoscope.playground.messages import json_object
from mutoscope.playground.saving import written
from mutoscope.playground.session import Shared
from mutoscope.playground.uploads import at_most, read_upload
from mutoscope.playground.watch import Watch

if TYPE_CHECKING:
    from fastapi import APIRouter, Request
    from starlette.datastructures import UploadFile

logger = logging.getLogger("mutoscope.playground")
MAX_BODY = 256 * 1024  # of a request without a file
MAX_FIELDS = 30  # of a form
SPRITES = 16  # frames of a spritesheet, at most
Status = Literal["queued", "in_progress", "completed", "failed"]
Variant = Literal["video", "thumbnail", "spritesheet"]
Order = Literal["asc", "desc"]
MAX_TEXT = 4_000  # characters of a prompt
RANGES = {
    "num_frames": COUNT,
    "num_inference_steps": COUNT,
    "seed": Range(low=0),
    "fps": Range(above=0, high=240),
}
NUMBERS: Mapping[str, type] = {  # of a form, whose values are all texts
    "width": int,
    "height": int,
    "num_frames": int,
    "fps": float,
    "num_inference_steps": int,
    "seed": int,
}


@dataclass(frozen=True)
class JobError:
    """Why a clip was not made."""

    code: str
    message: str


@dataclass(frozen=True)
class VideoRequest:
    """What a clip should show. Fields that a model does not read must be absent."""

    prompt: str = ""
    """text, or the name of a class"""
    model: str | None = None
    """as /v1/models lists them; without one, the first"""
    seconds: float | str | None = None
    size: str | None = None
    """WIDTHxHEIGHT of the model"""
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    """rate of the file; the frames stay the same"""
    num_inference_steps: int | None = None
    seed: int | None = None
    extra_params: dict[str, object] = field(default_factory=dict[str, object])
    """further options of `mutoscope generate`, such as class_label or actions"""

    def __post_init__(self) -> None:
        for name, text in (("prompt", self.prompt), ("model", self.model or ""), ("size", self.size or "")):
            if len(text) > MAX_TEXT:
                raise UserError(f"{name} has at most {MAX_TEXT:,} characters.")
        check_fields(self, RANGES)


@dataclass
class VideoResource:
    """A clip that is made, or was made."""

    id: str
    model: str
    created_at: int
    expires_at: int
    prompt: str
    size: str
    seconds: str
    status: Status = "queued"
    progress: int = 0
    completed_at: int | None = None
    error: JobError | None = None
    remixed_from_video_id: str | None = None
    object: Literal["video"] = "video"


@dataclass(frozen=True)
class VideoList:
    """A page of the list of clips."""

    data: list[VideoResource]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


@dataclass(frozen=True)
class Deleted:
    """A clip that is forgotten."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


@dataclass
class Job:
    """A clip on its way. clip: once it is complete."""

    resource: VideoResource
    options: Mapping[str, object]
    fps: float
    clip: VideoClip | None = None
    task: "asyncio.Task[None] | None" = None
    since: float = field(default_factory=time.monotonic)


class Jobs:
    """The clips of one server; the oldest finished ones are forgotten first."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.jobs: dict[str, Job] = {}

    def create(self, request: VideoRequest, reference: Picture | None) -> VideoResource:
        """Begin a clip. Raises UserError for what the model cannot do."""
        name = request.model or self.shared.shelf.names[0]
        index = self.shared.shelf.index(name)
        options = call_options(request, index, self.shared.shelf.actions[name])
        if reference is not None:
            options["context"] = reference
        self._forget()
        if (
            sum(job.resource.status in ("queued", "in_progress") for job in self.jobs.values())
            >= self.shared.turns.waiting
        ):
            raise UserError("Too many clips are waiting. Try again in a minute.")
        now = int(time.time())
        frames = options.get("num_frames") or index.num_frames
        fps = request.fps or index.fps
        resource = VideoResource(
            id=f"video_{secrets.token_hex(12)}",
            model=name,
            created_at=now,
            expires_at=now + int(self.shared.limits.kept_seconds),
            prompt=request.prompt,
            size=f"{index.width}x{index.height}",
            seconds=f"{int(str(frames)) / fps:g}",
        )
        job = self.jobs[resource.id] = Job(resource, options, fps)
        job.task = asyncio.create_task(self._make(job))
        return resource

    async def _make(self, job: Job) -> None:
        async def ignore(ahead: int) -> None:
            pass

        resource = job.resource
        try:
            async with self.shared.turns.place(ignore):
                resource.status = "in_progress"
                watch = await self.shared.turns.do(
                    lambda: Watch(self.shared.shelf.get(resource.model), job.options, previews=False)
                )
                steps = watch.steps()
                while (step := await self.shared.turns.do(lambda: next(steps, None))) is not None:
                    resource.progress = min(99, 100 * (step.step + 1) // max(1, step.num_steps))
            job.clip = VideoClip(watch.clip().frames, job.fps)
            self.shared.metrics.clips += 1
            resource.status, resource.progress, resource.completed_at = "completed", 100, int(time.time())
        except UserError as error:
            resource.status, resource.error = "failed", JobError(code="invalid_request", message=str(error))
        except Exception:
            logger.exception("the clip %s failed", resource.id)
            sentence = "The server failed; see its log."
            resource.status, resource.error = "failed", JobError(code="server_error", message=sentence)

    def get(self, name: str) -> Job:
        self._forget()
        if name not in self.jobs:
            raise NotHere("There is no video of this id.")
        return self.jobs[name]

    def delete(self, name: str) -> Deleted:
        """Forget a clip; one in progress stops within a step."""
        job = self.get(name)
        if job.task is not None:
            job.task.cancel()
        del self.jobs[name]
        return Deleted(id=name)

    def _forget(self) -> None:
        now = time.monotonic()
        finished = [name for name, job in self.jobs.items() if job.resource.status in ("completed", "failed")]
        late = [name for name in finished if now - self.jobs[name].since > self.shared.limits.kept_seconds]
        for name in (*late, *finished[: max(0, len(finished) - self.shared.limits.kept_files)]):
            self.jobs.pop(name, None)

    def listed(self, after: str | None, limit: int, order: Order) -> VideoList:
        self._forget()
        found = [job.resource for job in self.jobs.values()]
        found = found if order == "asc" else found[::-1]
        names = [resource.id for resource in found]
        first = names.index(after) + 1 if after in names else 0
        page = found[first : first + limit]
        return VideoList(
            data=page,
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=first + limit < len(found),
        )


def call_options(request: VideoRequest, index: ModelIndex, actions: ActionSpec | None) -> dict[str, object]:
    """Options of a call. Raises UserError for a size or length that the model does not have."""
    width, height = _size(request)
    if (width or index.width, height or index.height) != (index.width, index.height):
        raise UserError(f"This model generates {index.width}x{index.height}; found size {width}x{height}.")
    options = client_options(request.extra_params, actions)
    if (frames := _length(request, index)) is not None:
        options["num_frames"] = frames
    if request.num_inference_steps is not None:
        options["num_decoding_steps"] = request.num_inference_steps
    if request.seed is not None:
        options["seed"] = request.seed
    return options | _shown(request.prompt, index)


def _size(request: VideoRequest) -> tuple[int | None, int | None]:
    if request.size is None:
        return request.width, request.height
    parts = request.size.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"size is WIDTHxHEIGHT, such as 128x96; found {request.size!r}.")
    return int(parts[0]), int(parts[1])


def _length(request: VideoRequest, index: ModelIndex) -> int | None:
    if request.num_frames is not None or request.seconds is None:
        return request.num_frames
    try:
        seconds = float(request.seconds)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 600:
        raise UserError(f"seconds must be a number above 0 and at most 600; found {str(request.seconds)[:40]!r}.")
    if not family_named(index.family).capabilities.any_length:
        own = index.num_frames / index.fps
        if round(seconds * index.fps) != index.num_frames:
            raise UserError(f"This model generates {own:g} seconds; found seconds={seconds:g}. Omit seconds.")
        return None
    return max(1, round(seconds * index.fps))


def _shown(prompt: str, index: ModelIndex) -> dict[str, object]:
    """A prompt is text for models that read text, and names a class for models of classes."""
    if index.text_encoder is not None:
        return {"prompt": prompt} if prompt else {}
    if not prompt or not index.class_names:
        return {}
    words = prompt.casefold()
    named = [name for name in index.class_names if name.casefold() in words]
    if not named:
        raise UserError(f"This model shows classes, and the prompt names none: {', '.join(index.class_names)}.")
    return {"class_label": max(named, key=len)}


async def read_request(
    request: "Request", limits: Limits, reading: asyncio.Semaphore
) -> tuple[VideoRequest, Picture | None]:
    """A request as JSON or as a form, with the picture or video of `input_reference` if there is one."""
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    # The parts are counted here: `request.body` and `request.form` take as much as a client sends.
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        body = b"".join([part async for part in at_most(request.stream(), MAX_BODY)])
        return dataclass_from_dict(VideoRequest, json_object(body, MAX_BODY), "the request"), None
    counted = at_most(request.stream(), limits.upload_bytes + MAX_BODY)
    try:
        form = await MultiPartParser(request.headers, counted, max_files=1, max_fields=MAX_FIELDS).parse()
    except (MultiPartException, KeyError) as error:
        raise UserError(f"The form cannot be read ({reason(error)}).") from None
    try:
        file = form.get("input_reference")
        values = {name: value for name, value in form.items() if isinstance(value, str)}
        frames = await read_upload(_parts_of(file), limits, reading) if isinstance(file, UploadFile) else None
        return dataclass_from_dict(VideoRequest, _of_form(values), "the request"), frames
    finally:
        await form.close()


async def _parts_of(file: "UploadFile") -> AsyncIterator[bytes]:
    while part := await file.read(2**16):
        yield part


def _of_form(values: Mapping[str, str]) -> dict[str, object]:
    """The texts of a form as the values that they spell."""
    found: dict[str, object] = dict(values)
    for name, kind in NUMBERS.items():
        if name in values:
            try:
                found[name] = kind(values[name])
            except ValueError:
                raise UserError(f"{name} must be a number, found {values[name][:40]!r}.") from None
    if "extra_params" in values:
        found["extra_params"] = json_object(values["extra_params"].encode())
    return found


def router(jobs: Jobs, reading: asyncio.Semaphore) -> "APIRouter":
    """The routes of /v1/videos."""
    from fastapi import APIRouter, Query, Request, Response
    from pydantic import TypeAdapter

    routes = APIRouter(prefix="/v1/videos")
    body = {"content": {"application/json": {"schema": TypeAdapter(VideoRequest).json_schema()}}, "required": True}

    @routes.post("", openapi_extra={"requestBody": body})
    async def create(request: Request) -> VideoResource:
        """Begin a clip."""
        asked, reference = await read_request(request, jobs.shared.limits, reading)
        return jobs.create(asked, reference)

    @routes.get("")
    async def listed(
        after: Annotated[str | None, Query(max_length=100)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Order = "desc",
    ) -> VideoList:
        """The clips, newest first."""
        return jobs.listed(after, limit, order)

    @routes.get("/{video_id}")
    async def one(video_id: str) -> VideoResource:
        """How far a clip is."""
        return jobs.get(video_id).resource

    @routes.get("/{video_id}/content", response_class=Response)
    async def content(video_id: str, variant: Variant = "video") -> Response:
        """The clip as MP4, its first frame as WebP, or some of its frames side by side as JPEG."""
        job = jobs.get(video_id)
        if job.clip is None:
            raise UserError(f"The video is {job.resource.status}: there is no content yet.")
        frames = job.clip.frames
        if variant == "thumbnail":
            return Response(encoded(frames[0], "webp"), media_type="image/webp")
        if variant == "spritesheet":
            chosen = frames[:: max(1, -(-len(frames) // SPRITES))]
            return Response(encoded(side_by_side(chosen), "jpeg"), media_type="image/jpeg")
        data = await asyncio.to_thread(written, frames, job.fps, ".mp4")
        return Response(data, media_type="video/mp4")

    @routes.delete("/{video_id}")
    async def delete(video_id: str) -> Deleted:
        """Forget a clip, or stop it."""
        return jobs.delete(video_id)

    return routes
