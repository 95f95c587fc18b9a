"""Fill a token cache: clips through a frozen tokenizer, together with the condition videos the tasks need."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mutoscope.data.loader import BatchSource, make_loader
from mutoscope.data.sources.tokens import TokenCache, TokenCacheInfo, TokenCacheWriter, token_dtype
from mutoscope.data.video.motion import motion_score
from mutoscope.errors import UserError
from mutoscope.hub import weights_hash
from mutoscope.sampling.tasks import condition_key, condition_video, needs_video
from mutoscope.text import TextEncoder
from mutoscope.tokenizers.base import VideoTokenizer

CONTEXT_FRAMES = "context_frames"  # in TokenCacheInfo.data, where it is not 1


@dataclass(frozen=True)
class CaptionReader:
    """An encoder of captions, how many rows of features are kept, and what is done to a caption first."""

    encoder: TextEncoder
    length: int
    clean: Callable[[str], str] = str


def tokenize(
    tokenizer: VideoTokenizer,
    tokenizer_name: str,
    source: BatchSource,
    out: str | Path,
    *,
    num_clips: int,
    tasks: tuple[str, ...] = (),
    data: dict[str, Any] | None = None,
    batch_size: int | None = None,
    num_workers: int = 0,
    context_frames: int = 1,
    text: CaptionReader | None = None,
    motion: bool = False,
    interval: bool = False,
    actions: bool = False,
    history_only: bool = False,
    history: bool = False,
) -> TokenCache:
    """Encodes clips 0 ... num_clips-1 of `source` into the folder `out`, with the conditions of `tasks`.

    A finished cache of the same clips, tokenizer and tasks is opened as it is; an unfinished one is continued.
    Raises UserError when `out` holds anything else. A finite source ends the cache at its last clip.
    `batch_size`: clips encoded together, by default 32 on a CPU and 256 elsewhere; `num_workers` processes make them.
    `context_frames` are what the tasks that start from frames are given. `text` encodes the captions; `motion` adds the
    optical flow of every clip; `interval`, `actions`, `history_only` and `history` keep what the
    source says of them.
    """
    count = min(num_clips, source.num_clips or num_clips)
    first, device = source[[0]], next(tokenizer.parameters()).device
    batch_size = batch_size or (32 if device.type == "cpu" else 256)
    video = tokenizer.from_uint8(first["video"].to(device))  # (1, 3, t, h, w)
    if actions and "actions" not in first:
        raise UserError("These clips come without actions, which the model is to read: name others.")
    shape = tuple(_encode(tokenizer, video).shape[1:])  # (*c, t, h, w)
    if history_only and first["history_only"].shape[1] != shape[-3]:
        frames = f"{first['history_only'].shape[1]} frames become {shape[-3]}"
        raise UserError(f"max_jump needs a tokenizer that codes every frame by itself; with this one {frames}.")
    info = TokenCacheInfo(
        num_clips=count,
        clip_shape=shape,
        dtype=token_dtype(tokenizer.spec.vocab_size),
        tokenizer=tokenizer_name,
        tokenizer_hash=weights_hash(tokenizer),
        conditions=tuple(dict.fromkeys(condition_key(task) for task in tasks if needs_video(task))),
        data=(data or {}) | ({} if context_frames == 1 else {CONTEXT_FRAMES: context_frames}),
        caption_shape=None if text is None else (text.length, text.encoder.feature_size(text.encoder.folder)),
        motion=motion,
        interval=interval,
        action_shape=tuple(first["actions"].shape[1:]) if actions else None,
        history_only=history_only,
        history=history,
    )
    out = Path(out)
    if out.exists():
        cache = TokenCache(out)
        if cache.info != info:
            raise UserError(f"The token cache {out} was made from other clips or another tokenizer; remove it.")
        return cache
    writer = TokenCacheWriter(out, info)
    with tqdm(total=count, initial=writer.position, unit="clip", desc="tokenize", mininterval=0.5) as bar:
        parts = [list(range(i, min(i + batch_size, count))) for i in range(writer.position, count, batch_size)]
        for batch in make_loader(source, parts, num_workers):
            video = tokenizer.from_uint8(batch["video"].to(device))  # (b, 3, t, h, w)
            conditions = {task: _encode(tokenizer, video, task, context_frames) for task in info.conditions}
            tokens = _encode(tokenizer, video)
            more = _more(batch, text, info)
            if history:
                more["history"] = _history(tokenizer, batch, tokens)
            writer.write(tokens, batch["label"], conditions, more)
            bar.update(len(batch["label"]))
    return writer.finish()


def _more(batch: dict[str, Any], text: CaptionReader | None, info: TokenCacheInfo) -> dict[str, Tensor]:
    """What the cache keeps of captions, motion, intervals, actions and what is history only."""
    more: dict[str, Tensor] = {}
    if text is not None:
        found = text.encoder.encode([text.clean(caption) for caption in batch["caption"]], text.length)
        more |= {"caption": found.features, "caption_length": found.mask.sum(1)}
    more |= {name: batch[name] for name in ("interval", "actions", "history_only") if name in info.arrays()}
    if info.motion:
        more["motion"] = torch.tensor([motion_score(clip.numpy()) for clip in batch["video"]])
    return more


def _history(tokenizer: VideoTokenizer, batch: dict[str, Any], tokens: Tensor) -> Tensor:
    """The tokens, encoded anew where "history" shows something else."""
    differ = (batch["history"] != batch["video"]).flatten(1).any(1)
    if not differ.any():
        return tokens
    history = tokens.clone()
    video = tokenizer.from_uint8(batch["history"][differ].to(next(tokenizer.parameters()).device))
    history[differ] = _encode(tokenizer, video)
    return history


@torch.no_grad()
def _encode(
    tokenizer: VideoTokenizer, video: Float[Tensor, "b 3 t h w"], task: str | None = None, context_frames: int = 1
) -> Tensor:
    """Tokens or latents of the clips, or of what `task` shows of them."""
    video = condition_video(task, video, context_frames) if task else video
    return tokenizer.encode(video.contiguous(memory_format=torch.channels_last_3d)).cpu()
