"""NOVA: images and clips of any length from prompts, classes and first frames, one frame after the other."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mutoscope.data.fit import Frames
from mutoscope.errors import UserError
from mutoscope.families.base import Generator, Request, common_length
from mutoscope.families.frames import context_clips, latent_frames
from mutoscope.json_config import dataclass_from_dict
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.frame_ar import FrameARSampler, FrameARSamplerConfig, FrameCondition, set_sizes
from mutoscope.text.base import TextFeatures


@dataclass(frozen=True)
class FrameARRequest(Request):
    """`text`: features of the distinct prompts, and last those of the negative one; `prompts` names one per sample.

    `context`: frames that the clips start with, for every sample or one for all. `motion`: optical flow in pixels, for
    models trained with it. `num_latent_frames` counts those of the context too.
    """

    num_latent_frames: int = 1
    text: TextFeatures | None = None
    prompts: Int[Tensor, " b"] | None = None
    motion: float | None = None
    context: UInt8[Tensor, "n t h w 3"] | None = None


class FrameARGenerator(Generator):
    """Prompts, classes and first frames in, latents out."""

    def check_parts_fit(self) -> None:
        spec, config = self.tokenizer.spec, self.model.config
        shape = spec.latent_shape(self.index.num_frames, self.index.height, self.index.width)
        if shape[1:] != tuple(config.latent_shape[1:]) or spec.latent_channels != config.latent_channels:
            raise UserError(
                f"Tokenizer and model do not fit: frames of {self.index.height}×{self.index.width} are latents of "
                f"{spec.latent_channels}×{shape[1]}×{shape[2]}, the model expects {config.latent_channels}×"
                f"{config.latent_shape[1]}×{config.latent_shape[2]}."
            )

    def prepare(
        self,
        *,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str = "",
        class_label: int | str | Sequence[int | str] | None = None,
        context: Frames | Sequence[Frames] | None = None,
        context_frames: int | None = None,
        motion: float | None = None,
        task: str | None = None,
        task_video: Any = None,
        actions: Any = None,
        num_frames: int | None = None,
        num_samples: int | None = None,
        seed: int = 0,
        batch_size: int = 16,
        paste_given: bool = False,
        **sampler_options: Any,
    ) -> FrameARRequest:
        """`motion`: how much should move, in pixels of optical flow. Any `num_frames` that the tokenizer can make."""
        num_samples = common_length(num_samples, prompt=prompt, class_label=class_label, context=context)
        self.check_call(num_samples, seed, None, None, actions)
        if task not in (None, *self.index.tasks) or task_video is not None or paste_given:
            raise UserError("This model starts from a prompt, a class and first frames. Leave task and video out.")
        if class_label is not None and self.model.config.text_size is not None:
            raise UserError("This model reads prompts and knows no classes. Leave the class label out.")
        chosen = {**self.index.sampling, **{key: value for key, value in sampler_options.items() if value is not None}}
        sampler = dataclass_from_dict(FrameARSamplerConfig, chosen, "Sampler options")
        num_tokens = self.model.config.grid[0] * self.model.config.grid[1]
        if sampler.num_decoding_steps > num_tokens:
            raise UserError(f"A frame has {num_tokens} tokens: num_decoding_steps can be at most that.")
        self._check_motion(motion)
        text, rows = self._text(prompt, negative_prompt, num_samples)
        clips = context_clips(self.tokenizer.spec, self.index, context, context_frames)
        frames = self._latent_frames(num_frames or self.index.num_frames)
        left = frames - (0 if clips is None else self._latent_frames(clips.shape[1]))
        if left < 1:
            raise UserError(f"The context is as long as the clip asked for: raise num_frames above {clips.shape[1]}.")
        sets = sum(size > 0 for size in set_sizes(sampler.num_decoding_steps, num_tokens))
        return FrameARRequest(
            task="continuation" if clips is not None else ("class-conditional" if text is None else "text-conditional"),
            num_samples=num_samples,
            seed=seed,
            sampler=sampler,
            num_steps=left * sets,
            labels=None if text is not None else self.class_labels(class_label, num_samples, seed),
            batch_size=max(batch_size, 1),
            num_frames=num_frames or self.index.num_frames,
            warnings=() if prompt is None else self.prompt_warnings(prompt, negative_prompt),
            num_latent_frames=frames,
            text=text,
            prompts=rows,
            motion=motion,
            context=clips,
        )

    def _check_motion(self, motion: float | None) -> None:
        if motion is None:
            return
        if not self.model.config.is_video:
            raise UserError("This model makes images and reads no motion. Leave motion out.")
        if not 0 <= motion < math.inf:
            raise UserError(f"motion must be finite and not negative, found {motion}.")

    def _text(
        self, prompt: str | Sequence[str] | None, negative: str, num_samples: int
    ) -> tuple[TextFeatures | None, Tensor | None]:
        """Each distinct prompt encoded once, then the negative one; and the row of every sample's."""
        config = self.model.config
        if config.text_size is None:
            if prompt is not None:
                raise UserError("This model takes no prompt. Say what it should show with a class label.")
            return None, None
        if prompt is None:
            raise UserError('This model needs a prompt, such as prompt="a red circle bounces to the right".')
        asked = [prompt] * num_samples if isinstance(prompt, str) else list(prompt) * (num_samples // len(prompt))
        distinct = list(dict.fromkeys(asked))
        text = self.text_encoder.encode([*distinct, negative], config.text_length)
        if text.features.shape[2] != config.text_size:
            raise UserError(
                f"The text encoder {str(self.text_encoder.folder)!r} gives {text.features.shape[2]} channels, this "
                f"model reads {config.text_size}: name the encoder it was trained with."
            )
        return text, torch.tensor([distinct.index(p) for p in asked])

    def _latent_frames(self, num_frames: int) -> int:
        return latent_frames(self.tokenizer.spec, self.index, num_frames)

    def sample(self, request: Request, on_step: Callable[[SampleEvent], None]) -> Iterator[Iterator[SampleEvent]]:
        assert isinstance(request, FrameARRequest)
        generator = torch.Generator().manual_seed(request.seed)
        given = None
        if request.context is not None:
            with torch.no_grad():
                video = self.tokenizer.from_uint8(request.context.to(self.device))
                given = self.tokenizer.draw_latents(video, generator)
        for samples in request.rounds():
            yield self._round(request, samples, given, generator, on_step)

    def _round(
        self,
        request: FrameARRequest,
        samples: slice,
        given: Float[Tensor, "n c k h w"] | None,
        generator: torch.Generator,
        on_step: Callable[[SampleEvent], None],
    ) -> Iterator[SampleEvent]:
        condition = self._condition(request, samples)
        if given is not None:
            given = given.expand(condition.num_samples, -1, -1, -1, -1) if len(given) == 1 else given[samples]
            given = given.to(condition.prefix)
        sampler = FrameARSampler(request.sampler)
        for event in sampler.sample(self.model, condition, request.num_latent_frames, generator, given):
            on_step(event)
            yield event

    @torch.no_grad()
    def _condition(self, request: FrameARRequest, samples: slice) -> FrameCondition:
        """Every distinct prompt or class of the round, then what guidance compares it with."""
        named = request.prompts if request.text is not None else request.labels
        assert named is not None
        distinct, rows = named[samples].unique(return_inverse=True)
        count, num_passes = len(distinct), request.sampler.num_passes
        prefix = torch.cat([self._prefix(request, distinct), self._negative(request)])
        flow = None if request.motion is None else prefix.new_full((len(prefix),), request.motion)
        prefix = self.model.with_motion(prefix, flow)
        rows, nothing = rows.to(self.device), torch.full((len(rows),), count, device=self.device)
        if num_passes == 1:
            return FrameCondition(prefix[:count], rows, 1)
        if num_passes == 2:
            return FrameCondition(prefix, torch.cat([rows, nothing]), 2)
        blind = torch.arange(count + 2, device=self.device) == count
        every = torch.cat([rows, nothing, nothing + 1])
        return FrameCondition(torch.cat([prefix, prefix[-1:]]), every, 3, blind)

    def _prefix(self, request: FrameARRequest, distinct: Int[Tensor, " u"]) -> Float[Tensor, "u l d"]:
        if request.text is None:
            return self.model.class_prefix(distinct.to(self.device))
        return self.model.text_prefix(*(part[distinct.to(part.device)].to(self.device) for part in request.text))

    def _negative(self, request: FrameARRequest) -> Float[Tensor, "1 l d"]:
        if request.text is None:
            return self.model.null_prefix(1)
        return self.model.text_prefix(*(part[-1:].to(self.device) for part in request.text))
