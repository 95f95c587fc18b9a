"""Sample sheets of models: they sample, so they stand above training and are handed to it."""

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from mutoscope.models.magvit import Magvit
from mutoscope.sampling.masked import MaskedSampler, MaskedSamplerConfig
from mutoscope.sampling.tasks import condition_video, needs_video
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.training.callbacks import TrainEvent, paired_sheet


class GenerationSheet:
    """For each task one picture: every real clip directly above the clip generated from its label or condition.

    clips, labels and the sampler's seed are the same at every step, so that sheets compare.
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        clips: UInt8[Tensor, "b t h w 3"],
        labels: Int[Tensor, " b"],
        tasks: tuple[str, ...],
        sampler: MaskedSamplerConfig | None = None,
        seed: int = 0,
    ):
        self.tokenizer, self.clips, self.labels, self.tasks, self.seed = tokenizer, clips, labels, tasks, seed
        self.sampler = MaskedSampler(sampler or MaskedSamplerConfig())

    def __call__(self, event: TrainEvent) -> None:
        for task in self.tasks:
            generated = self.generate(event.network, task)
            event.save_image(task, paired_sheet(self.clips, generated.cpu(), every_nth_frame=2))

    @torch.no_grad()
    def generate(self, model: Magvit, task: str) -> UInt8[Tensor, "b t h w 3"]:
        """Clips for `task` from `model`, decoded."""
        device, tokenizer = model.device, self.tokenizer
        condition = None
        if needs_video(task):
            video = tokenizer.from_uint8(self.clips.to(device))
            condition = tokenizer.encode(condition_video(task, video, model.config.context_frames))
        generator = torch.Generator(device).manual_seed(self.seed)
        mask, labels = model.config.condition_mask(task), self.labels.to(device)
        for event in self.sampler.sample(model, task, labels, condition, generator, condition_mask=mask):
            tokens = event.proposal  # (b, t, h, w)
        return tokenizer.to_uint8(tokenizer.decode(tokens))
