"""/v1/videos: clips as jobs, in the shape of OpenAI's interface, for clients that exist already."""

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from mutoscope.actions import ActionSpec
from mutoscope.data.video.write import VideoClip
from mutoscope.errors import UserError
from mutoscope.families import family_named
from mutoscope.model_index import ModelIndex
from mutoscope.playground.calls import client_options
from mutoscope.playground.images import encoded, side_by_side
from mutoscope.playground.limits import Limits
from mutoscope.playground.metrics import Metrics
from mutoscope.playground.saving import written
from mutoscope.playground.shelf import Shelf
from mutoscope.playground.turns import Turns
from mutoscope.playground.uploads import read_upload
from mutoscope.playground.watch import Watch

MAX_BODY = 256 * 1024  # of a request without a file
SPRITES = 16  # frames of a spritesheet, at most
Status = Literal["queued", "in_progress", "completed", "failed"]
Variant = Literal["video", "thumbnail", "spritesheet"]
Order = Literal["asc", "desc"]


class JobError(BaseModel):
    code: str
    message: str


class VideoRequest(BaseModel):
    """What a clip should show. Fields that a model does not read must be absent."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field("", max_length=4_000)
    """text, or the name of a class"""
    model: str | None = Field(None, max_length=200)
    """as /v1/models lists them; without one, the first"""
    seconds: float | str | None = None
    size: str | None = Field(None, max_length=20)
    """WIDTHxHEIGHT of the model"""
    width: int | None = None
    height: int | None = None
    num_frames: int | None = Field(None, ge=1)
    fps: float | None = Field(None, gt=0, le=240)
    """rate of the file; the frames stay the same"""
    num_inference_steps: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0)
    extra_params: dict[str, object] = Field(default_factory=dict)
    """further options of `mutoscope generate`, such as class_label or actions"""


class VideoResource(BaseModel):
    """A clip that is made, or was made."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str
    size: str
    seconds: str
    remixed_from_video_id: str | None = None
    error: JobError | None = None


class VideoList(BaseModel):
    object: Literal["list"] = "list"
    data: list[VideoResource]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class NotHere(UserError):
    """No job of that name."""


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

    def __init__(self, turns: Turns, shelf: Shelf, limits: Limits, metrics: Metrics) -> None:
        self.turns, self.shelf, self.limits, self.metrics = turns, shelf, limits, metrics
        self.jobs: dict[str, Job] = {}

    def create(self, request: VideoRequest, reference: np.ndarray | None) -> VideoResource:
        """Begin a clip. Raises UserError for what the model cannot do."""
        name = request.model or self.shelf.names[0]
        index = self.shelf.index(name)
        options = call_options(request, index, self.shelf.actions[name])
        if reference is not None:
            options["context"] = reference
        self._forget()
        if sum(job.resource.status in ("queued", "in_progress") for job in self.jobs.values()) >= self.turns.waiting:
            raise UserError("Too many clips are waiting. Try again in a minute.")
        now = int(time.time())
        frames = options.get("num_frames") or index.num_frames
        fps = request.fps or index.fps
        resource = VideoResource(
            id=f"video_{secrets.token_hex(12)}",
            model=name,
            status="queued",
            progress=0,
            created_at=now,
            expires_at=now + int(self.limits.kept_seconds),
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
            async with self.turns.place(ignore):
                resource.status = "in_progress"
                watch = await self.turns.do(lambda: Watch(self.shelf.get(resource.model), job.options, previews=False))
                steps = watch.steps()
                while (step := await self.turns.do(lambda: next(steps, None))) is not None:
                    resource.progress = min(99, 100 * (step.step + 1) // max(1, step.num_steps))
            job.clip = VideoClip(watch.clip().frames, job.fps)
            self.metrics.clips += 1
            resource.status, resource.progress, resource.completed_at = "completed", 100, int(time.time())
        except UserError as error:
            resource.status, resource.error = "failed", JobError(code="invalid_request", message=str(error))

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
        late = [name for name in finished if now - self.jobs[name].since > self.limits.kept_seconds]
        for name in (*late, *finished[: max(0, len(finished) - self.limits.kept_files)]):
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


async def read_request(request: Request, limits: Limits, reading: asyncio.Semaphore) -> tuple[VideoRequest, object]:
    """A request as JSON or as a form, with the picture or video of `input_reference` if there is one."""
    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/form-data") or kind.startswith("application/x-www-form-urlencoded"):
        async with request.form(max_files=1, max_fields=30) as form:
            file = form.get("input_reference")
            values: dict[str, object] = {name: value for name, value in form.items() if isinstance(value, str)}
            frames = None
            if isinstance(file, UploadFile):
                frames = await read_upload(_parts_of(file), limits, reading)
            return _validated(values), frames
    body = await request.body()
    if len(body) > MAX_BODY:
        raise UserError(f"The request is too large: at most {MAX_BODY:,} bytes.")
    return _validated(body), None


async def _parts_of(file: UploadFile):
    while part := await file.read(2**16):
        yield part


def _validated(values: Mapping[str, object] | bytes) -> VideoRequest:
    try:
        if isinstance(values, bytes):
            return VideoRequest.model_validate_json(values)
        return VideoRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{where + ': ' if where else ''}{first['msg']}.") from None


def router(jobs: Jobs, limits: Limits, reading: asyncio.Semaphore) -> APIRouter:
    """The routes of /v1/videos."""
    routes = APIRouter(prefix="/v1/videos")
    body = {"content": {"application/json": {"schema": VideoRequest.model_json_schema()}}, "required": True}

    @routes.post("", openapi_extra={"requestBody": body})
    async def create(request: Request) -> VideoResource:
        """Begin a clip."""
        asked, reference = await read_request(request, limits, reading)
        return jobs.create(asked, reference if isinstance(reference, np.ndarray) else None)

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
