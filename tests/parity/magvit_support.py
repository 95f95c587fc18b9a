"""How the official MAGVIT files are read: names and constants on their side, models and fakes on ours."""

import re
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from mutoscope.interop import magvit_flax
from mutoscope.json_config import dataclass_from_dict
from mutoscope.models.magvit import TASK_TOKENS, Magvit, MagvitConfig
from mutoscope.tokenizers.vq3d import VQ3D, Padding, ResBlock, VQ3DConfig
from mutoscope.training.config import OptimConfig
from mutoscope.training.optim import make_optimizer, make_scheduler
from parity.cases import Case, renamed

OUR_TASKS = {
    "full_generation": "class-conditional",
    "frame_prediction": "frame-prediction",
    "frame_interpolation": "frame-interpolation",
    "outpainting_c": "outpaint-central",
    "outpainting_v": "outpaint-vertical",
    "outpainting_h": "outpaint-horizontal",
    "outpainting_dv": "outpaint-dynamic",
    "inpainting_c": "inpaint-central",
    "inpainting_dv": "inpaint-dynamic",
}
EXTRA_TASKS = ("outpainting_q", "inpainting_q")  # quarters: in the official code, not in the paper
OUR_PADDING: dict[str, Padding] = {"zero": "zero", "reflect": "reflect", "edge": "replicate"}


def our_task(name: str, token: int | None, prefix: Tensor | None, unconditional_id: int) -> str:
    """By the official name, or else by the task token, which is enough where the condition mask is recorded.

    Official frame prediction takes a class or not by configuration; which one ran shows in the class slot, the last
    of the prefix.
    """
    task = OUR_TASKS.get(name) or next(task for task, our_token in TASK_TOKENS.items() if our_token == token)
    with_class = task == "frame-prediction" and prefix is not None and bool((prefix[:, -1] != unconditional_id).any())
    return f"class-conditional-{task}" if with_class else task


BERT_KEYS = {
    "vocab_size": "vocab_size", "vocab": "vocab_size", "codebook": "codebook_size", "num_classes": "num_classes",
    "special_slots": "num_special_tokens", "hidden": "hidden_size", "layers": "num_layers", "heads": "num_heads",
    "mlp": "mlp_size", "max_positions": "positions", "layernorm_epsilon": "layer_norm_eps", "gelu": None,
    "latent_shape": "latent_shape", "label_smoothing": "label_smoothing", "lr": None,
}  # fmt: skip


def bert_config(described: dict, latent_shape: tuple[int, int, int] | None = None, **overrides) -> MagvitConfig:
    """From the JSON; the number of special tokens and the presence of a task token follow from the other numbers."""
    values = renamed(described, BERT_KEYS)
    assert "tanh" in described.get("gelu", "tanh")
    vocab, positions = values.pop("vocab_size", None), values.pop("positions", None)
    if vocab is not None:
        values["num_special_tokens"] = vocab - values["codebook_size"] - values["num_classes"] - 1
    if latent_shape is not None:
        values["latent_shape"] = tuple(latent_shape)
    values["latent_shape"] = tuple(values.get("latent_shape", (1, 1, (positions or 0) - 2)))
    multi = values["num_special_tokens"] > 1
    return MagvitConfig(**values, **{"task_token": multi, **overrides})


class RecordedNoise:
    def __init__(self, fields: dict[str, Tensor]):
        self.fields = fields

    def sampling(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return self.fields["noise/sampling_gumbel"][step]

    def choice(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return self.fields["noise/mask_gumbel"][step]


class Recorder:
    """Forwards calls to a model and records its inputs."""

    def __init__(self, model):
        self.model, self.inputs, self.unconditional_inputs = model, [], []
        self.latent_shape, self.device = model.latent_shape, model.device

    def logits(self, tokens, task, label=None, unconditional=False):
        (self.unconditional_inputs if unconditional else self.inputs).append(tokens)
        return self.model.logits(tokens, task, label, unconditional)


class ToyModel:
    """Logits that depend on every token; tables of multiples of 1/64 keep the sums exact."""

    device = torch.device("cpu")

    def __init__(self, case: Case):
        self.latent_shape = tuple(case.info["latent_shape"])
        self.base, self.own, self.shared = (case.tensors[f"toy/{name}"] for name in ("base", "W", "E"))
        divisor = re.search(r"\)\s*/\s*(\d+)", case.info.get("what", ""))
        self.divisor = int(divisor[1]) if divisor else len(self.base)

    def logits(self, tokens, task, label=None, unconditional=False):
        x = tokens.flatten(1) + 1
        logits = self.base + self.own[x] + self.shared[x].sum(1, keepdim=True) / self.divisor
        return logits.view(*tokens.shape, -1)


TOY_KEYS = {
    "condition_mode": None, "schedule": "schedule", "mask_temperature": "choice_temperature",
    "temperature": "choice_temperature", "steps": "num_decoding_steps", "sampling_temperature": "temperature",
    "task": None, "num_masked_per_step": None,
    "smallest_gap_in_mask_scores_at_cutoff": None, "smallest_argmax_gap": None,
    "task_token": None, "guidance_scale": None, "cutoff_gap": None, "argmax_gap": None,
}  # fmt: skip


TOKENIZER_KEYS = {
    "filters": "filters", "channel_multipliers": "channel_multipliers", "res_blocks": "num_res_blocks",
    "temporal_downsample": "temporal_downsample", "embedding_dim": "embedding_dim", "codes": "codebook_size",
    "codebook_size": "codebook_size", "groupnorm_groups": "num_groups", "groupnorm_epsilon": None,
    "commitment_cost": "commitment_cost", "embedding_loss_ratio": "codebook_cost",
    "entropy_loss_ratio": "entropy_cost", "entropy_temperature": "entropy_temperature",
    "entropy_loss_type": "entropy_kind", "custom_conv_padding": None,
}  # fmt: skip


def tokenizer_of(case: Case, prefix: str) -> VQ3D:
    """A file holds one run per padding, named after it, or one run of the padding its configuration names."""
    described = case.info["config"]
    padding = prefix if prefix in OUR_PADDING else described.get("custom_conv_padding") or "zero"
    values = renamed(described, TOKENIZER_KEYS) | {"padding": OUR_PADDING[padding]}
    config = dataclass_from_dict(VQ3DConfig, values, case.name)
    tokenizer = magvit_flax.load_tokenizer(case.under("params/"), config).eval()
    for module in tokenizer.modules():
        if isinstance(module, torch.nn.GroupNorm):
            assert module.eps == described.get("groupnorm_epsilon", module.eps)
    return tokenizer


def record_output(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, Tensor], None]:
    """A forward hook that keeps a module's output under `name`."""

    def record(module: nn.Module, inputs: object, output: Tensor) -> None:
        outputs[name] = output

    return record


def record_res_blocks(tokenizer: VQ3D) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    for half in ("encoder", "decoder"):
        blocks = [module for module in getattr(tokenizer, half) if isinstance(module, ResBlock)]
        for index, block in enumerate(blocks):
            block.register_forward_hook(record_output(outputs, f"{half}/ResBlock_{index}"))
    return outputs


def numbers(pattern: str, text: str, default: tuple[float, ...]) -> tuple[float, ...]:
    found = re.search(pattern, text)
    return tuple(float(value) for value in found.groups()) if found else default


def optimiser_of(case: Case, model: Magvit):
    """Constants from the explanations in the file."""
    beta1, beta2, eps = numbers(r"AdamW\(([\d.]+), ([\d.]+), eps ([\d.e-]+)\)", case.info["what"], (0.9, 0.96, 1e-8))
    (decay,) = numbers(r"weight decay ([\d.]+)", case.info["what"], (0.045,))
    pattern = r"base ([\d.e-]+), warm-up (\d+), cycle (\d+)"
    base, warmup, cycle = numbers(pattern, str(case.info["config"].get("lr", "")), (1e-4, 2, 10))
    config = OptimConfig(base, beta1, beta2, eps, decay, int(warmup))
    optimiser = make_optimizer(model, config)
    return optimiser, make_scheduler(optimiser, config, int(warmup + cycle))


TRAIN_KEYS = {"task": "task", "task_token": "token", "weight_mode": "weight_mode", "max_grad_norm": "max_grad_norm"}


# ------------------------------------------------------------------------------------------------- adversarial stage


def channels_first(video: Tensor) -> Tensor:
    return rearrange(video, "b t h w c -> b c t h w").contiguous()


ADVERSARIAL_KEYS = {
    "g_adversarial_loss_weight": "gan_weight", "grad_penalty_cost": "r1_weight", "loss_type": "gan_loss",
    "gradient_penalty": None, "model_type": None,
}  # fmt: skip
STAGE1_KEYS = {
    "channel_multipliers": "channel_multipliers", "codebook_size": "codebook_size",
    "commitment_cost": "commitment_cost", "custom_conv_padding": "padding", "embedding_dim": "embedding_dim",
    "entropy_loss_ratio": "entropy_cost", "entropy_loss_type": "entropy_kind",
    "entropy_temperature": "entropy_temperature", "filters": "filters", "num_enc_res_blocks": "num_res_blocks",
    "temporal_downsample": "temporal_downsample",
    "num_dec_res_blocks": None, "activation_fn": None, "architecture": None, "conv_downsample": None,
    "deconv_upsample": None, "norm_type": None,
}  # fmt: skip


def stage1_tokenizer_config(described: dict) -> VQ3DConfig:
    assert described["norm_type"] == "GN" and described["num_dec_res_blocks"] == described["num_enc_res_blocks"]
    values = renamed(described, STAGE1_KEYS)
    values["padding"] = OUR_PADDING[values.get("padding") or "zero"]
    return dataclass_from_dict(VQ3DConfig, values, "vqvae")


RESNET_NAMES = {"init_conv": "conv1", "init_bn": "bn1", "head": "fc", "proj_conv": "downsample.0",
                "proj_bn": "downsample.1"}  # fmt: skip
RESNET_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def resnet_state(flax: dict[str, Tensor], stats: dict[str, Tensor]) -> dict[str, Tensor]:
    """Flax names such as stage1/block2/conv3/kernel as torchvision's layer1.1.conv3.weight."""
    state = {}
    for name, value in {**flax, **stats}.items():
        *parents, leaf = name.split("/")
        ours = [RESNET_NAMES.get(part, part) for part in parents]
        if ours[0].startswith("stage"):
            ours[:2] = [f"layer{ours[0][5:]}", str(int(ours[1][5:]) - 1)]
        if leaf == "kernel":
            value = value.T if value.ndim == 2 else rearrange(value, "kh kw i o -> o i kh kw")
        state[".".join([*ours, RESNET_LEAVES[leaf]])] = value.contiguous()
    return state
