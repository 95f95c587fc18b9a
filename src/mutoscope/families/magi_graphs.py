"""A world for browsers: ONNX graphs of MAGI's pass, its diffusion head and the tokenizer's decoder, and a manifest.

One graph serves both the reading of finished frames and the restoring of the frame in progress, which are the same pass
with other inputs: two graphs would hold its weights twice. The matrices of the pass, two thirds of all weights, are
stored in 8 bits with a scale per row, everything else in half precision; both are widened when the graph is opened.

Shapes: f frame slots, p frames in the cache, n tokens, k numbers of a token, s positions of a frame, r tokens of a set.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int8
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.families.actions import spec_of
from mutoscope.families.base import Parts, WebWorld
from mutoscope.families.first_frames import FirstFrames
from mutoscope.layers.gaussian_diffusion import LearnedVariance, LearnedVariancePlan
from mutoscope.layers.kv_cache import KVCache
from mutoscope.models.magi import MAGI, FrameConditions
from mutoscope.models.magi.network import DiffusionHead
from mutoscope.sampling.frame_stream import FrameStreamSamplerConfig, set_sizes
from mutoscope.tokenizers.base import VideoTokenizer

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

SMALLEST_HALF = 256  # numbers of a weight that is worth storing in half precision
SMALLEST_8_BIT = 10_000  # and of a matrix in 8 bits
OPSET = 20
FIRST_FRAMES_PER_CLASS = 4


@dataclass
class GraphCache(KVCache):
    """Keys and values as inputs of a graph; the new ones become its outputs, so that the graph keeps no state."""

    new_keys: list[Tensor] = field(default_factory=list[Tensor])
    new_values: list[Tensor] = field(default_factory=list[Tensor])

    def append(
        self, layer: int, k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"]
    ) -> tuple[Float[Tensor, "b heads m d"], Float[Tensor, "b heads m d"]]:
        self.new_keys.append(k)
        self.new_values.append(v)
        return torch.cat([self.keys[layer], k], dim=2), torch.cat([self.values[layer], v], dim=2)


class PassGraph(nn.Module):
    """`MAGI.observe` and `MAGI.restore` for one sample."""

    def __init__(self, model: MAGI) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Float[Tensor, "1 f n k"],
        previous: Float[Tensor, "1 f n k"],
        hidden: Bool[Tensor, "1 f n"],
        masked: Bool[Tensor, " f"],
        actions: Float[Tensor, "1 f a"],
        label: Int[Tensor, " 1"],
        interval: Int[Tensor, " 1"],
        times: Int[Tensor, " f"],
        level: Int[Tensor, "1 f"],
        mask: Bool[Tensor, "f p_f"],
        held: Int[Tensor, " p_f"],
        keys: Float[Tensor, "layers s heads p d"],
        values: Float[Tensor, "layers s heads p d"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of the tokens (1, f, n, d), and the new keys and values (layers, s, heads, f, d)."""
        model = self.model
        embedded = torch.where(hidden[..., None], model.mask_token, model.embed_tokens(tokens))
        if model.previous_embedding is not None:  # read by masked copies alone
            change = model.previous_embedding(previous)
            embedded = embedded + torch.where(masked[None, :, None, None], change, torch.zeros_like(change))
        h = model.embed_slots(embedded, FrameConditions(interval, label, actions), times, masked, level)
        cache = GraphCache(keys, values)
        z = model.run_blocks(h, model.reach(mask, times, held), None, cache)
        return z, torch.stack(cache.new_keys), torch.stack(cache.new_values)


class HeadGraph(nn.Module):
    """One diffusion step of the head for the tokens of a set."""

    def __init__(self, head: DiffusionHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Float[Tensor, "r k"], z: Float[Tensor, "r d"], time: Float[Tensor, ""]) -> Tensor:
        return self.head(x, self.head.condition(z), self.head.time(time))


class DecoderGraph(nn.Module):
    """Latents of one frame to pixels in 0 … 255, (height, width, 3), not rounded."""

    def __init__(self, tokenizer: VideoTokenizer, height: int, width: int) -> None:
        super().__init__()
        self.tokenizer, self.height, self.width = tokenizer, height, width

    def forward(self, latents: Float[Tensor, "1 c 1 h w"]) -> Float[Tensor, "height width 3"]:
        pixels = self.tokenizer.decode(latents)[0, :, 0, : self.height, : self.width]
        return ((pixels + 1) * 127.5).clamp(0, 255).permute(1, 2, 0)


def pass_inputs(model: MAGI, frames: int, past: int) -> dict[str, Tensor]:
    """Inputs of `PassGraph` by name, for `frames` slots after `past` frames."""
    config = model.config
    positions = config.num_tokens + (config.noise_mode == "token") + (config.num_classes is not None)
    cache = config.num_layers, positions, config.num_heads, past, config.hidden_size // config.num_heads
    generator = torch.Generator().manual_seed(0)
    return {
        "tokens": torch.randn(1, frames, config.num_tokens, config.token_size, generator=generator),
        "previous": torch.randn(1, frames, config.num_tokens, config.token_size, generator=generator),
        "hidden": torch.rand(1, frames, config.num_tokens, generator=generator) < 0.5,
        "masked": torch.arange(frames) == frames - 1,
        "actions": torch.randn(1, frames, config.action_size or 1, generator=generator),
        "label": torch.zeros(1, dtype=torch.int64),
        "interval": torch.ones(1, dtype=torch.int64),
        "times": torch.arange(past, past + frames),
        "level": torch.zeros(1, frames, dtype=torch.int64),
        "mask": torch.ones(frames, past + frames, dtype=torch.bool).tril(past),
        "held": torch.arange(past + frames),
        "keys": torch.randn(cache, generator=generator),
        "values": torch.randn(cache, generator=generator),
    }


def exported(model: MAGI, tokenizer: VideoTokenizer, height: int, width: int) -> dict[str, bytes]:
    """The graphs as ONNX files by name: pass, head, decoder. Raises UserError where the exporter is missing."""
    _require_exporter()
    varies = torch.export.Dim.DYNAMIC  # numbers of frames and of cached frames
    each, cache = {1: varies}, {3: varies}
    shapes = {
        "tokens": each,
        "previous": each,
        "hidden": each,
        "masked": {0: varies},
        "actions": each,
        "label": {},
        "interval": {},
        "times": {0: varies},
        "level": each,
        "mask": {0: varies, 1: varies},
        "held": {0: varies},
        "keys": cache,
        "values": cache,
    }
    head, config = model.denoiser, model.config
    x, z = torch.zeros(2, config.token_size), torch.zeros(2, config.hidden_size)
    latents = torch.zeros(1, config.latent_channels, 1, *config.latent_shape[1:])
    outputs = ["z", "new_keys", "new_values"]
    graphs = {
        "pass": _onnx(PassGraph(model), pass_inputs(model, 2, 3), shapes, outputs),
        "head": _onnx(
            HeadGraph(head),
            {"x": x, "z": z, "time": torch.tensor(3.0)},
            {"x": {0: varies}, "z": {0: varies}, "time": {}},
            ["y"],
        ),
        "decoder": _onnx(DecoderGraph(tokenizer, height, width), {"latents": latents}, {"latents": {}}, ["pixels"]),
    }
    return {name: stored(graph, eight_bits=name == "pass") for name, graph in graphs.items()}


def _require_exporter() -> None:
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        raise UserError(
            "An export for browsers needs onnx and onnxscript; install them with: pip install 'mutoscope[web]'"
        )


@torch.inference_mode()
def _onnx(
    graph: nn.Module, inputs: Mapping[str, Tensor], shapes: Mapping[str, object], outputs: list[str]
) -> "ModelProto":
    program = torch.onnx.export(  # pyright: ignore[reportUnknownMemberType]
        graph.eval(),
        kwargs=dict(inputs),
        dynamic_shapes=dict(shapes),
        output_names=outputs,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def stored(model: "ModelProto", eight_bits: bool) -> bytes:
    """The same graph with its large weights in half precision, or matrices in 8 bits, widened by nodes at its start."""
    from onnx import TensorProto, numpy_helper

    nodes: list[NodeProto] = []
    for weight in [*model.graph.initializer]:
        size = int(np.prod(weight.dims, dtype=int))
        if weight.data_type != TensorProto.FLOAT or size < SMALLEST_HALF:
            continue
        name, values = weight.name, numpy_helper.to_array(weight)
        if eight_bits and values.ndim == 2 and size >= SMALLEST_8_BIT:
            rows, scale = in_eight_bits(values)
            weight.CopyFrom(numpy_helper.from_array(rows, f"{name}_8"))
            model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
            nodes += [_cast(f"{name}_8", f"{name}_wide"), _product(f"{name}_wide", f"{name}_scale", name)]
        else:
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            nodes.append(_cast(f"{name}_half", name))
    nodes += [*model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    # A tenth of a file is where each node came from.
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    del model.graph.value_info[:]
    return model.SerializeToString()


def in_eight_bits(values: Float32[np.ndarray, "m n"]) -> tuple[Int8[np.ndarray, "m n"], Float32[np.ndarray, "..."]]:
    """A matrix as numbers from -127 to 127 times one scale per row or per column, whichever is closer to it."""
    found: list[tuple[float, Int8[np.ndarray, "m n"], Float32[np.ndarray, "..."]]] = []
    for axis in (0, 1):
        scale = np.maximum(np.abs(values).max(axis, keepdims=True), np.finfo(np.float32).tiny * 127) / 127
        rounded: Float32[np.ndarray, "m n"] = np.rint(np.divide(values, scale, dtype=np.float32))
        error = float(np.square(rounded * scale - values).sum())
        found.append((error, rounded.astype(np.int8), scale.astype(np.float32)))
    _, rows, scale = min(found, key=lambda one: one[0])
    return rows, scale


def _cast(source: str, target: str) -> "NodeProto":
    from onnx import TensorProto, helper

    return helper.make_node("Cast", [source], [target], to=TensorProto.FLOAT)


def _product(left: str, right: str, target: str) -> "NodeProto":
    from onnx import helper

    return helper.make_node("Mul", [left, right], [target])


# ---------------------------------------------------------------------------------------------------------------------
# What the loop reads


def web_world(parts: Parts[MAGI], name: str) -> WebWorld:
    """The graphs and the manifest of a world. Raises UserError for a model that the loop in JavaScript cannot run."""
    check_playable(parts)
    index = parts.index
    graphs = exported(parts.model, parts.tokenizer, index.height, index.width)
    return WebWorld(graphs, world_manifest(parts, name))


def check_playable(parts: Parts[MAGI]) -> None:
    """Raises UserError for what the loop in JavaScript does not know."""
    model, index, sampler = parts.model, parts.index, sampler_of(parts)
    wrong = {
        "discrete tokens": model.config.is_discrete,
        "captions": model.config.text_size is not None,
        "no actions": model.config.action_size is None,
        "a tokenizer that does not decode single frames": not parts.tokenizer.spec.per_frame,
        "guidance": sampler.guidance_scale != 1,
        "eta": sampler.eta is not None,
        "a head that reads the lengths of its steps": model.config.diffusion.reads_lengths,
        "a growing window": sampler.window_mode == "growing",
        "no first frames": not index.first_frames,
    }
    found = [what for what, is_so in wrong.items() if is_so]
    if found:
        raise UserError(f"This model cannot be exported for browsers: it has {', '.join(found)}.")


def sampler_of(parts: Parts[MAGI]) -> FrameStreamSamplerConfig:
    """The sampler's settings of the model's folder."""
    known = FrameStreamSamplerConfig.__dataclass_fields__
    values = {name: value for name, value in parts.index.sampling_for(None).items() if name in known}
    return FrameStreamSamplerConfig(**values)  # type: ignore[arg-type]


def world_manifest(parts: Parts[MAGI], name: str) -> dict[str, object]:
    """Sizes, settings, tables and first frames, as the loop in JavaScript reads them."""
    config, index, sampler = parts.model.config, parts.index, sampler_of(parts)
    diffusion = cast(LearnedVariance, config.diffusion)  # others are refused by `check_playable`
    plan = diffusion.plan(sampler.num_diffusion_steps, sampler.sample_range)
    return {
        "name": name,
        "width": index.width,
        "height": index.height,
        "fps": index.fps,
        "classes": list(index.class_names or ()),
        "actions": actions_of(parts),
        "n": config.num_tokens,
        "k": config.token_size,
        "d": config.hidden_size,
        "rows": config.grid[0],
        "columns": config.grid[1],
        "patch": config.patch_size,
        "channels": config.latent_channels,
        "layers": config.num_layers,
        "heads": config.num_heads,
        "size": config.hidden_size // config.num_heads,
        "positions": config.num_tokens + (config.noise_mode == "token") + (config.num_classes is not None),
        "actionSize": config.action_size,
        "cleanFirstFrame": config.clean_first_frame,
        "window": config.reach if sampler.window_mode == "rolling" else sampler.window or config.latent_shape[0],
        "keepsFirst": config.keeps_first,
        "windowMode": sampler.window_mode,
        "contextNoiseLevel": sampler.context_noise_level,
        "temperature": sampler.temperature,
        "sampleRange": sampler.sample_range,
        "predictsChange": config.predicts_change,
        "predictsSample": diffusion.prediction == "sample",
        "sets": [size for size in set_sizes(sampler.num_decoding_steps, config.num_tokens) if size],
        "steps": diffusion_steps(plan),
        "firstFrames": first_frames(parts),
    }


def actions_of(parts: Parts[MAGI]) -> list[dict[str, object]]:
    """Names of the actions, and how they are scaled for the network."""
    spec = spec_of(parts.index.actions, parts.model.config.action_size)
    assert spec is not None
    listed = zip(spec.names, spec.is_button, spec.offset, spec.scale, strict=True)
    return [{"name": n, "button": b, "offset": o, "scale": s} for n, b, o, s in listed]


def diffusion_steps(plan: LearnedVariancePlan) -> list[dict[str, object]]:
    """The numbers of every step from noise to a token, see `LearnedVariancePlan.step`."""
    listed: list[dict[str, object]] = []
    for k in range(len(plan)):
        numbers = plan.tables.numbers_of[len(plan) - 1 - k]
        listed.append(
            {
                "time": float(plan.times[k]),
                "noisy": plan.needs_noise(k),
                "ofSample": numbers.of_sample,
                "ofNoisy": numbers.of_noisy,
                "inverse": numbers.inverse,
                "inverseNoise": numbers.inverse_noise,
                "largest": numbers.largest,
                "smallest": numbers.smallest,
            }
        )
    return listed


@torch.inference_mode()
def first_frames(parts: Parts[MAGI]) -> list[dict[str, object]]:
    """The first frames of each class as tokens in half precision, since the page has no encoder."""
    frames = FirstFrames(parts.folder, parts.index.first_frames)
    counts: dict[int, int] = {}
    listed: list[dict[str, object]] = []
    for name in frames.names:
        label = frames.labels[name]
        counts[label] = counts.get(label, 0) + 1
        if counts[label] > FIRST_FRAMES_PER_CLASS:
            continue
        pixels = parts.tokenizer.from_uint8(frames.read(name)[None])
        tokens = parts.model.to_tokens(parts.tokenizer.encode(pixels))[0, 0]  # (n, k)
        half = tokens.to(torch.float16).numpy().astype("<f2").tobytes()
        listed.append({"name": name, "label": label, "tokens": base64.b64encode(half).decode()})
    return listed
