"""Fill a token cache: clips through a frozen tokenizer, with their conditions and the fields a model reads."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mutoscope.data.base import ClipBatch, ClipSource, Field
from mutoscope.data.loader import make_loader
from mutoscope.data.sources.tokens import (
    CONTEXT_FRAMES,
    StoredField,
    TokenCache,
    TokenCacheInfo,
    TokenCacheWriter,
    partial_folder,
    started_info,
    text_encoder_folder,
    token_dtype,
)
from mutoscope.data.video.motion import motion_score
from mutoscope.errors import UserError
from mutoscope.hub import CONFIG, weights_hash, write_json
from mutoscope.ownership import owned, real_folder, remove_leftovers, tidy
from mutoscope.sampling.tasks import condition_key, condition_video, needs_video
from mutoscope.text import TextEncoder
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.writing import new_folder

EPISODE = "episode"  # stored whenever the source has it, so that rows can be split by recording
CPU_PIXELS, GPU_PIXELS = 2**19, 2**22  # encoded together by default: 32 or 256 clips of 16 frames of 32x32


@dataclass(frozen=True)
class CaptionReader:
    """An encoder of captions, how many rows of features are kept, and how a caption is cleaned first."""

    encoder: TextEncoder
    length: int
    clean: Callable[[str], str] = str


def tokenize(
    tokenizer: VideoTokenizer,
    tokenizer_name: str,
    source: ClipSource[ClipBatch],
    out: str | Path,
    *,
    num_clips: int,
    tasks: tuple[str, ...] = (),
    data: Mapping[str, object] | None = None,
    batch_size: int | None = None,
    num_workers: int = 0,
    context_frames: int = 1,
    text: CaptionReader | None = None,
    motion: bool = False,
    fields: Sequence[str] = (),
    words: Mapping[str, object] | None = None,
) -> TokenCache:
    """Encodes clips 0 ... num_clips-1 of `source` into the folder `out`, with the condition videos of `tasks`.

    A finished cache of the same clips, tokenizer and tasks is opened as it is; an unfinished one is continued.
    Raises UserError when `out` holds anything else. A finite source ends the cache at its last clip.
    `batch_size`: clips encoded together, by default as many as have 2^19 pixels on a CPU, 2^22 elsewhere; `num_workers`
    processes read them.
    words: configuration of the encoder `text`, where the cache is to keep it.
    `context_frames`: frames that tasks which start from frames show. `text` encodes the captions; `motion` adds the
    optical flow of every clip. `fields`: per-clip fields that the model reads (`ModelConfig.clip_fields`); those that
    the source has are stored, and always the label and the recording of each clip. A cache that an earlier version
    began without recordings stays without them.
    """
    count = min(num_clips, source.num_clips or num_clips)
    device = next(tokenizer.parameters()).device
    video = tokenizer.from_uint8(source[[0]]["video"].to(device))  # (1, 3, t, h, w)
    clip_shape = tuple(_encode(tokenizer, video).shape[1:])  # (*c, t, h, w)
    kept = kept_fields(source, (*fields, EPISODE), video.shape[2], clip_shape[-3])
    dtype = token_dtype(tokenizer.spec.vocab_size)
    info = TokenCacheInfo(
        num_clips=count,
        clip_shape=clip_shape,
        dtype=dtype,
        tokenizer=tokenizer_name,
        tokenizer_hash=weights_hash(tokenizer),
        conditions=tuple(dict.fromkeys(condition_key(task) for task in tasks if needs_video(task))),
        data=dict(data or {}) | ({} if context_frames == 1 else {CONTEXT_FRAMES: context_frames}),
        caption_shape=None if text is None else (text.length, feature_size(text.encoder)),
        motion=motion,
        fields={
            name: StoredField(dtype, clip_shape) if field.encoded else StoredField(field.dtype, field.shape)
            for name, field in kept.items()
        },
    )
    out = real_folder(out)  # a link to nothing becomes a folder where it leads to
    with nullcontext(tidy(out)) if out.exists() else owned(out, "tokenize"):
        remove_leftovers(partial_folder(out))
        started, former = started_info(out), without_episodes(info)
        if EPISODE in kept and started is not None and started.holds(former):
            info = former
            kept.pop(EPISODE)
        if out.exists():
            cache = TokenCache(out)
            if not cache.info.holds(info):
                raise UserError(f"The token cache {out} is of other clips or another tokenizer; remove it.")
            return cache
        writer = TokenCacheWriter(out, info)
        if words is not None:
            write_json(new_folder(text_encoder_folder(writer.partial)) / CONFIG, words)
        batch_size = batch_size or default_batch(video, device)
        with tqdm(total=count, initial=writer.position, unit="clip", desc="tokenize", disable=None, leave=False) as bar:
            parts = [list(range(i, min(i + batch_size, count))) for i in range(writer.position, count, batch_size)]
            for batch in make_loader(source, parts, num_workers):
                video = tokenizer.from_uint8(batch["video"].to(device))  # (b, 3, t, h, w)
                conditions = {task: _encode(tokenizer, video, task, context_frames) for task in info.conditions}
                tokens = _encode(tokenizer, video)
                more = _captions(batch, text) | _motion(batch, motion) | _fields(tokenizer, batch, tokens, kept)
                writer.write(tokens, batch["label"], conditions, more)
                bar.update(len(batch["label"]))
        return writer.finish()


def default_batch(video: Float[Tensor, "1 3 t h w"], device: torch.device) -> int:
    """Clips of this size that are encoded together, so that memory does not grow with the frame size."""
    return max((CPU_PIXELS if device.type == "cpu" else GPU_PIXELS) // prod(video.shape[2:]), 1)


def feature_size(encoder: TextEncoder) -> int:
    """Channels of an encoder's features."""
    return encoder.encode([""], 1).features.shape[2]


def without_episodes(info: TokenCacheInfo) -> TokenCacheInfo:
    """The same contents as earlier versions stored them."""
    return replace(info, fields={name: stored for name, stored in info.fields.items() if name != EPISODE})


def kept_fields(
    source: ClipSource[ClipBatch], wanted: Sequence[str], num_frames: int, num_latent_frames: int
) -> dict[str, Field]:
    """The fields that a cache stores beside the label: those wanted that the source has.

    Raises UserError for a field with one row per frame where the tokenizer joins frames.
    """
    kept = {name: source.fields[name] for name in wanted if name in source.fields and name != "label"}
    for name, field in kept.items():
        if field.per_frame and num_frames != num_latent_frames:
            raise UserError(
                f"Field {name!r} has one row per frame and needs a tokenizer that codes every frame by itself; with "
                f"this one {num_frames} frames become {num_latent_frames}."
            )
    return kept


def _captions(batch: ClipBatch, text: CaptionReader | None) -> dict[str, Tensor]:
    if text is None:
        return {}
    found = text.encoder.encode([text.clean(caption) for caption in batch["caption"]], text.length)
    return {"caption": found.features, "caption_length": found.mask.sum(1)}


def _motion(batch: ClipBatch, motion: bool) -> dict[str, Tensor]:
    return {"motion": torch.tensor([motion_score(clip.numpy()) for clip in batch["video"]])} if motion else {}


def _fields(
    tokenizer: VideoTokenizer, batch: ClipBatch, tokens: Tensor, kept: Mapping[str, Field]
) -> dict[str, Tensor]:
    """The kept fields of a batch; clips of pixels are encoded."""
    found = cast(Mapping[str, Tensor], batch)
    return {
        name: _encoded(tokenizer, batch, found[name], tokens) if field.encoded else found[name]
        for name, field in kept.items()
    }


def _encoded(tokenizer: VideoTokenizer, batch: ClipBatch, clips: Tensor, tokens: Tensor) -> Tensor:
    """The tokens of clips that mostly equal the batch's video: only those that differ are encoded again."""
    differ = (clips != batch["video"]).flatten(1).any(1)
    if not differ.any():
        return tokens
    encoded = tokens.clone()
    video = tokenizer.from_uint8(clips[differ].to(next(tokenizer.parameters()).device))
    encoded[differ] = _encode(tokenizer, video)
    return encoded


@torch.no_grad()
def _encode(
    tokenizer: VideoTokenizer, video: Float[Tensor, "b 3 t h w"], task: str | None = None, context_frames: int = 1
) -> Tensor:
    """Tokens or latents of the clips, or of the part of them that `task` shows."""
    video = condition_video(task, video, context_frames) if task else video
    return tokenizer.encode(video.contiguous(memory_format=torch.channels_last_3d)).cpu()
