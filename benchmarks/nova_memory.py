"""Memory of NOVA's 0.6B video model for a clip of 33×480×768, part by part.

    python benchmarks/nova_memory.py OUT.json [--windows 256] [--measured-window 128] [--no-measure]

Weights are random. The memory of weights, keys and values, and activations is computed from shapes: the networks run on
fake tensors, and the largest sum of tensors alive at the same time is kept. The workspace of libraries during an
operation is not included, so one AR step (a set of tokens through the spatial encoder, all others known, and one step
of the diffusion head) and one tile of the autoencoder, 17 frames of --measured-window pixels a side, also run in
separate processes, which report the largest rise of their resident memory. bfloat16 everywhere; the autoencoder,
which the pipeline keeps in float32, in both dtypes.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mutoscope.layers.kv_cache import KVCache
from mutoscope.models.nova import NOVA, NOVAConfig
from mutoscope.pipeline import peak_memory_bytes, reset_peak_memory
from mutoscope.sampling.frame_ar import set_sizes
from mutoscope.tokenizers.autoencoder_kl import AutoencoderKL, TileOptions
from mutoscope.tokenizers.autoencoder_kl_network import AutoencoderKLConfig
from timing import Report, write_report

FRAMES, HEIGHT, WIDTH = 33, 480, 768
MODEL = NOVAConfig()  # the published text-to-video model
AUTOENCODER = AutoencoderKLConfig.opensora()
PHI_2 = 2_648_560_640  # the loaded parameters of its 2.78 billion: the output layer for words is not loaded
PASSES = 2  # with guidance: conditional and unconditional
MEASURED = ("step", "decode", "encode")
LIMIT = 8_000_000_000  # bytes of memory that a measuring process may allocate


Config = TypeVar("Config")
Network = TypeVar("Network", bound=nn.Module)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors created inside that are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        for tensor in tree_leaves((args, kwargs)):
            self._record(tensor, created_here=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._record(tensor, created_here=True)
        return result

    def _record(self, tensor: object, created_here: bool) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:  # a view, or a tensor seen before
            return
        self.known.add(key)
        size = storage.nbytes() if created_here else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def bytes_of(network: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))


def build(kind: Callable[[Config], Network], config: Config, dtype: torch.dtype) -> Network:
    """A network built in `dtype`: building it in float32 first would need both copies at once."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return kind(config).eval()
    finally:
        torch.set_default_dtype(before)


# ---------------------------------------------------------------------------------------------------------------------
# Calls, which run on numbers or on shapes alone


def step_call(dtype: torch.dtype) -> tuple[NOVA, Callable[[], Tensor]]:
    """The last set of a frame: all other tokens are known, so that both halves of the layers run on all positions."""
    model = build(NOVA, MODEL, dtype)
    n, size = prod(MODEL.grid), largest_set()
    context = torch.zeros(PASSES, prod(MODEL.coarse_grid), MODEL.hidden_size, dtype=dtype)
    ids = torch.arange(n).expand(PASSES, -1)
    vectors = torch.zeros(PASSES, n - size, MODEL.token_size, dtype=dtype)
    noise = torch.zeros(1, size, MODEL.token_size, dtype=dtype)

    def call() -> Tensor:
        canvas = model.canvas(context)
        model.write(canvas, ids[:, size:], vectors)
        condition = model.head.condition(model.fill(canvas, ids[:, :size]))
        return model.head(noise, condition, model.head.time(torch.zeros(1)))

    return model, call


def largest_set() -> int:
    return max(set_sizes(64, prod(MODEL.grid)))


def first_slot_call(dtype: torch.dtype) -> tuple[NOVA, Callable[[], Tensor]]:
    """Text, motion and the first slot through the temporal encoder; its cache is counted separately."""
    model = build(NOVA, MODEL, dtype)
    prefix = torch.zeros(PASSES, MODEL.text_length + 2, MODEL.hidden_size, dtype=dtype)
    return model, lambda: model.start(prefix, MODEL.latent_shape[0])[1]


def autoencoder_call(part: str, dtype: torch.dtype, windows: int | None) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The whole clip in tiles of 17 frames, in windows of this many pixels or whole frames."""
    network = build(AutoencoderKL, AUTOENCODER, dtype)
    network.tiles = TileOptions(spatial=windows)
    t, h, w = MODEL.latent_shape
    if part == "decode":
        latents = torch.zeros(1, AUTOENCODER.latent_channels, t, h, w, dtype=dtype)
        return network, lambda: network.decode(latents)
    video = torch.zeros(1, 3, FRAMES, HEIGHT, WIDTH, dtype=dtype)
    return network, lambda: network.encode(video)


def window_call(part: str, dtype: torch.dtype, window: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    """One window of one tile: one pass of the network when the clip is decoded in windows."""
    network = build(AutoencoderKL, AUTOENCODER, dtype)
    if part == "decode":
        side = window // network.spec.spatial_stride
        latents = torch.zeros(1, AUTOENCODER.latent_channels, network.tile_latents, side, side, dtype=dtype)
        return network, lambda: network.decode(latents)
    video = torch.zeros(1, 3, AUTOENCODER.tile_frames, window, window, dtype=dtype)
    return network, lambda: network.encode(video)


def computed(make: Callable[[], tuple[nn.Module, Callable[[], Tensor]]]) -> dict[str, int]:
    """Bytes of the weights, and the largest sum of all other tensors alive at the same time."""
    with FakeTensorMode(), torch.inference_mode():
        network, call = make()
        with LiveBytes() as live:
            call()
    return {"weights": bytes_of(network), "activations": live.peak}


# ---------------------------------------------------------------------------------------------------------------------
# Measuring, in a separate process


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


@torch.inference_mode()
def measure(name: str, window: int) -> dict[str, float]:
    """The largest rise of resident memory above that with the network loaded."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    torch.set_num_threads(1)
    dtype = torch.bfloat16
    _, call = step_call(dtype) if name == "step" else window_call(name, dtype, window)
    before, begin = resident(), time.perf_counter()
    reset_peak_memory("cpu")
    call()
    return {
        "resident_before": before,
        "activations": peak_memory_bytes("cpu") - before,
        "seconds": time.perf_counter() - begin,
    }


def measured_in_a_process(name: str, window: int) -> Report:
    """The result of `measure` from a new process, whose memory no earlier work has raised."""
    command = [sys.executable, __file__, "-", "--measure", name, "--measured-window", str(window)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout)


# ---------------------------------------------------------------------------------------------------------------------
# The table


def cache_bytes(layers: int, length: int) -> int:
    """Keys and values of this many positions in all passes of guidance."""
    with FakeTensorMode():
        shape = layers, PASSES, 1, length, MODEL.hidden_size
        cache = KVCache.reserve(shape, torch.device("cpu"), torch.bfloat16)
    return sum(t.numel() * t.element_size() for t in (cache.keys, cache.values))


def components(windows: int) -> dict[str, int]:
    """Bytes of every part, with its dtype in the name unless it is bfloat16."""
    half, single = torch.bfloat16, torch.float32
    step = computed(lambda: step_call(half))
    first = computed(lambda: first_slot_call(half))
    m = prod(MODEL.coarse_grid)  # tokens of a slot
    cache = cache_bytes(MODEL.temporal_layers, MODEL.text_length + 2 + MODEL.latent_shape[0] * m)
    found = {
        "text_encoder": 2 * PHI_2,
        "transformer": step["weights"],
        "kv_cache": cache,  # of a whole clip in the temporal encoder, reserved at its first slot
        "kv_cache_of_context_refresh": cache_bytes(MODEL.spatial_layers, m + prod(MODEL.grid)),
        "first_slot_activations": first["activations"] - cache,
        "step_activations": step["activations"],
    }
    for name, dtype in (("", half), ("_float32", single)):
        for part in ("encode", "decode"):
            for label, size in (("", None), ("_windows", windows)):
                run = computed(lambda p=part, d=dtype, s=size: autoencoder_call(p, d, s))
                found[f"{part}{label}{name}"] = run["activations"]
                found[f"autoencoder{name}"] = run["weights"]
    return found


def peaks(parts: dict[str, int], offload: bool, tiled: bool, suffix: str) -> dict[str, int]:
    """Bytes in the phases of a call. The weights of all networks are loaded throughout, except for those of the text
    encoder: offloaded, they are loaded in the first phase only.
    """
    weights = parts["transformer"] + parts[f"autoencoder{suffix}"]
    encoder = 0 if offload else parts["text_encoder"]
    sampling = parts["kv_cache"] + max(parts["step_activations"], parts["first_slot_activations"])
    label = "_windows" if tiled else ""
    phases = {
        "prompts": weights + parts["text_encoder"],
        "context": weights + encoder + parts[f"encode{label}{suffix}"],
        "sampling": weights + encoder + sampling,
        "decoding": weights + encoder + parts[f"decode{label}{suffix}"],
    }
    return phases | {"peak": max(phases.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--windows", type=int, default=256, help="pixels along the side of the autoencoder's windows")
    parser.add_argument("--measured-window", type=int, default=128, help="pixels along the side of the measured window")
    parser.add_argument("--no-measure", action="store_true", help="only compute")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.measured_window)))
        return
    parts = components(arguments.windows)
    rows = [
        {"text_encoder_offload": offload, "windows": tiled, "autoencoder": name, **peaks(parts, offload, tiled, suffix)}
        for name, suffix in (("float32", "_float32"), ("bfloat16", ""))
        for offload in (False, True)
        for tiled in (False, True)
    ]
    report: Report = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "clip": [FRAMES, HEIGHT, WIDTH],
        "dtype": "bfloat16",
        "windows": arguments.windows,
        "computed_bytes": parts,
        "peaks_bytes": rows,
    }
    if not arguments.no_measure:
        window = arguments.measured_window
        calls: dict[str, Callable[[], tuple[nn.Module, Callable[[], Tensor]]]] = {
            part: lambda p=part: window_call(p, torch.bfloat16, window) for part in MEASURED[1:]
        }
        calls["step"] = lambda: step_call(torch.bfloat16)
        measured: dict[str, Report] = {}
        report |= {"measured_window": window, "measured": measured}
        for name in MEASURED:
            found = measured_in_a_process(name, window)
            measured[name] = found | {"computed_activations": computed(calls[name])["activations"]}
            print(name, measured[name], flush=True)
    write_report(arguments.out, report)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
