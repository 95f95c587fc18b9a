"""MAGI's masks against an independent reference, and the parts it takes from MAR against the official code.

MAR's encoder and decoder and the files of the Genie-style model are reference material: MAGI has other networks.
"""

import fnmatch
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mutoscope.layers.embeddings import timestep_features
from mutoscope.layers.gaussian_diffusion import (
    DiffusionTables,
    LearnedVariance,
    LearnedVariancePlan,
    implied_sample,
    learned_log_variance,
    space_timesteps,
)
from mutoscope.layers.masks import (
    frame_history_mask,
    frame_slots,
    hide_padded_frames,
    interleaved,
    visible_frames,
)
from mutoscope.layers.token_masking import truncated_normal
from mutoscope.models.magi import DiffusionHead
from mutoscope.sampling.frame_stream import masked_counts
from mutoscope.sampling.guidance import guide
from parity.cases import Case, assert_equal, family, for_each

MASKS, MAR = family("magi"), family("mar")
CPU = torch.device("cpu")
COVERED = ("*ctf_masks*", "*diffusion_constants*", "*mlp_head*", "*diffloss_train*", "*diffloss_sample*", "*masking*")
REFERENCE_MATERIAL = ("*mar_forward*", "*mar_sample_tokens*", "*genie*")


def test_every_file_is_covered_or_listed_as_reference_material():
    names = [case.name for case in (*MASKS, *MAR)]
    assert names, "no vectors for magi"
    unknown = [n for n in names if not any(fnmatch.fnmatch(n, p) for p in (*COVERED, *REFERENCE_MATERIAL))]
    assert not unknown, f"no test reads {unknown}"


# ---------------------------------------------------------------------------------------------------------------- masks


def number(entry: dict[str, Any], *names: str, default: int | None = None) -> Any:
    return next((entry[name] for name in names if entry.get(name) is not None), default)


def mask_of(entry: dict[str, Any]) -> Tensor:
    """The mask that an entry of the list describes."""
    kind, window = entry["kind"], number(entry, "W", "window")
    if kind == "inference":
        cached, new = number(entry, "cached", "c", default=0), number(entry, "new", "n", default=1)
        return visible_frames(torch.arange(cached, cached + new), torch.arange(cached + new), window)
    count, given = number(entry, "F"), number(entry, "prefix", "P", default=0)
    if kind.startswith("mtf"):
        return visible_frames(torch.arange(count), torch.arange(count), window)
    frames, masked = frame_slots(count, given, trimmed="trim" in kind)
    if "interleaved" in kind:
        order = interleaved(frames, masked)
        frames, masked = frames[order], masked[order]
    mask = frame_history_mask(frames, masked, window)
    if "padded" in kind:
        return hide_padded_frames(mask, frames, torch.tensor(number(entry, "lengths", "length")))
    return mask


@for_each(MASKS, "*ctf_masks*")
def test_masks(case: Case):
    entries = case.info["cases"]
    assert entries
    for entry in entries:
        found, key = case.tensors[entry["key"]], entry["key"]
        if entry["kind"] == "permutation":
            assert_equal(interleaved(*frame_slots(entry["F"], number(entry, "prefix", "P", default=0))), found, key)
            continue
        assert_equal(mask_of(entry), found.bool(), key)
        if "true_count" in entry:
            assert int(found.sum()) == entry["true_count"], key


# ------------------------------------------------------------------------------------------------------------ diffusion


def tables_of(entry: dict[str, Any]) -> DiffusionTables:
    diffusion = LearnedVariance(entry["noise_schedule"])
    assert entry.get("diffusion_steps", 1000) == 1000
    spacing = entry.get("timestep_respacing")
    return diffusion.respaced(spacing) if spacing else diffusion.tables


@for_each(MAR, "*diffusion_constants*")
def test_diffusion_constants(case: Case):
    for name, entry in case.info["cases"].items():
        tables = tables_of(entry)
        bar = tables.alphas_cumprod
        first, second = tables.posterior_mean_coefficients
        found = {
            "betas": tables.betas,
            "alphas_cumprod": bar,
            "alphas_cumprod_prev": tables.alphas_cumprod_prev,
            "alphas_cumprod_next": tables.alphas_cumprod_next,
            "sqrt_alphas_cumprod": np.sqrt(bar),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - bar),
            "log_one_minus_alphas_cumprod": np.log(1 - bar),
            "sqrt_recip_alphas_cumprod": np.sqrt(1 / bar),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / bar - 1),
            "posterior_variance": tables.posterior_variance,
            "posterior_log_variance_clipped": tables.posterior_log_variance,
            "posterior_mean_coef1": first,
            "posterior_mean_coef2": second,
            "timestep_map": tables.timesteps,
        }
        expected = case.under(f"{name}.")
        assert expected
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value.numpy(), rtol=1e-12, atol=1e-15, err_msg=f"{name}.{key}")


@for_each(MAR, "*diffusion_constants*")
def test_kept_time_steps(case: Case):
    for entry in case.info["space_timesteps"]:
        found = space_timesteps(entry["num_timesteps"], entry["section_counts"])
        assert_equal(torch.from_numpy(found), case.tensors[entry["key"]], entry["key"])


# ----------------------------------------------------------------------------------------------------------------- head

NAMES = (
    (r"^net\.", ""),
    (r"^time_embed\.mlp\.", "time_embedding."),
    (r"^cond_embed\.", "condition_embedding."),
    (r"^input_proj\.", "token_embedding."),
    (r"^res_blocks\.(\d+)\.in_ln\.", r"blocks.\1.norm."),
    (r"^res_blocks\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
    (r"^res_blocks\.(\d+)\.adaLN_modulation\.1\.", r"blocks.\1.modulation."),
    (r"^final_layer\.adaLN_modulation\.1\.", "modulation."),
    (r"^final_layer\.linear\.", "output."),
)


def our_name(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def head_of(case: Case) -> DiffusionHead:
    config = case.info["config"]
    head = DiffusionHead(config["target_channels"], config["z_channels"], config["width"], config["depth"])
    head.load_state_dict({our_name(name): value for name, value in case.under("weights.").items()})
    return head


def outputs(head: DiffusionHead, x: Tensor, times: Tensor, z: Tensor) -> Tensor:
    return head(x, head.condition(z), head.time(times))


def guided(output: Tensor, scale: float) -> Tensor:
    """Both halves get the guided noise and keep their own variance."""
    noise, fraction = output.chunk(2, dim=-1)
    return torch.cat([guide(*noise.chunk(2), scale).repeat(2, 1), fraction], dim=-1)


def close(actual: Tensor, expected: Tensor, what: str, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    torch.testing.assert_close(
        actual.detach(), expected.to(actual.dtype), rtol=rtol, atol=atol, msg=lambda m: f"{what}: {m}"
    )


@for_each(MAR, "*mlp_head*")
@torch.no_grad()
def test_head(case: Case):
    head, t = head_of(case), case.tensors
    close(outputs(head, t["x"], t["t"], t["c"]), t["out"], "out")
    middle = {
        "mid.time_embed": head.time(t["t"]),
        "mid.cond_embed": head.condition(t["c"]),
        "mid.input_proj": head.token_embedding(t["x"]),
    }
    for name, value in middle.items():
        if name in t:
            close(value, t[name], name)
    if "sinusoid_256" in t:
        # exp() of one processor may differ from another's in its last bit, which t = 999 enlarges.
        close(timestep_features(t["t"]), t["sinusoid_256"], "sinusoid_256", atol=1e-4)
    for scale in case.info.get("cfg_scales", []):
        half = t["cfg_x"][: len(t["cfg_x"]) // 2].repeat(2, 1)
        found = guided(outputs(head, half, t["cfg_t"], t["cfg_c"]), scale)
        close(found, t[f"cfg_out.{scale}"], f"guidance {scale}")


@for_each(MAR, "*diffloss_train*")
def test_training_loss_and_gradients(case: Case):
    head, t, diffusion = head_of(case), case.tensors, LearnedVariance()
    steps, target, noise = t["fixed.t"], t["fixed.target"], t["fixed.noise"]
    x_t = diffusion.add_noise(target, noise, steps)
    close(x_t, t["fixed.x_t"], "x_t")
    error, bound = diffusion.losses(outputs(head, x_t, steps, t["fixed.z"]), target, noise, steps)
    close(error, t["fixed.mse"], "error")
    later = steps > 0
    close(bound[later], t["fixed.vb"][later], "bound")
    close(bound[~later], t["fixed.vb"][~later], "likelihood", rtol=1e-3)
    loss = ((error + bound) * t["fixed.mask"]).sum() / t["fixed.mask"].sum()
    close(loss, t["fixed.masked_loss"], "masked loss")
    loss.backward()
    expected = {our_name(name): value for name, value in case.under("grads.").items()}
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        close(parameter.grad, expected[name], name, rtol=1e-3)


@for_each(MAR, "*diffloss_train*")
@torch.no_grad()
def test_losses_of_recorded_calls(case: Case):
    head, t, diffusion = head_of(case), case.tensors, LearnedVariance()
    for call in ("call", "call_nomask"):
        if f"{call}.t" not in t:
            continue
        steps, noise, target = t[f"{call}.t"], t[f"{call}.noise"], t["fixed.target"]
        output = outputs(head, diffusion.add_noise(target, noise, steps), steps, t["fixed.z"])
        error, bound = diffusion.losses(output, target, noise, steps)
        mask = t["fixed.mask"] if call == "call" else torch.ones_like(error)
        close(((error + bound) * mask).sum() / mask.sum(), t[f"{call}.loss"], call)


# ------------------------------------------------------------------------------------------------------------- sampling


@torch.no_grad()
def chain(
    head: DiffusionHead,
    plan: LearnedVariancePlan,
    x: Tensor,
    z: Tensor,
    noises: Tensor,
    temperature: float = 1.0,
    scale: float = 1.0,
) -> list[Tensor]:
    """The state after every step."""
    states = []
    for k in range(len(plan)):
        if scale != 1:
            half = x[: len(x) // 2].repeat(2, 1)
            output = guided(outputs(head, half, plan.times[k], z), scale)
        else:
            output = outputs(head, x, plan.times[k], z)
        x = plan.step(k, x, output, noises[k] * temperature)
        states.append(x)
    return states


def assert_relative(actual: Tensor, expected: Tensor, what: str, limit: float = 1e-3) -> None:
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert error < limit, f"{what}: {error:.2e}"


@for_each(MAR, "*diffloss_sample*")
def test_chains(case: Case):
    head, t, spacing = head_of(case), case.tensors, case.info["config"]["num_sampling_steps"]
    plan = LearnedVariance().plan(spacing)
    for run in case.info["runs"]:
        key, scale = run["key"], run["cfg"]
        x = t[f"{key}.init_noise"]
        x = x if scale == 1 else x.repeat(2, 1)
        *_, last = chain(head, plan, x, t["z"], t[f"{key}.step_noise"], run["temperature"], scale)
        kept = len(last) if scale == 1 else len(last) // 2
        assert_relative(last[:kept], t[f"{key}.out"][:kept], key)


@for_each(MAR, "*diffloss_sample*")
def test_trajectory(case: Case):
    t = case.tensors
    if "traj.x" not in t:
        pytest.skip("this set has no trajectory")
    plan = LearnedVariance().plan(case.info["config"]["num_sampling_steps"])
    states = chain(head_of(case), plan, t["traj.init_noise"], t["z"], t["traj.step_noise"])
    for k, (state, expected) in enumerate(zip(states, t["traj.x"], strict=True)):
        assert_relative(state, expected, f"step {k}")


@for_each(MAR, "*diffloss_sample*")
def test_ddim(case: Case):
    t = case.tensors
    names = [n.removesuffix(".init_noise") for n in t if n.startswith("ddim_eta") and n.endswith(".init_noise")]
    for name in names:
        eta = float(name.removeprefix("ddim_eta"))
        plan = LearnedVariance().plan(case.info["config"]["num_sampling_steps"], eta=eta)
        *_, last = chain(head_of(case), plan, t[f"{name}.init_noise"], t["z"], t[f"{name}.step_noise"])
        assert_relative(last, t[f"{name}.out"], name)


@for_each(MAR, "*diffloss_sample*")
@torch.no_grad()
def test_single_steps(case: Case):
    t = case.tensors
    if "step.x" not in t:
        pytest.skip("this set has no single steps")
    head, steps = head_of(case), t["step.t_index"]
    tables = LearnedVariance().respaced(case.info["config"]["num_sampling_steps"])
    x, times = t["step.x"], torch.from_numpy(tables.timesteps)[steps]
    noise, fraction = outputs(head, x, times, t["step.z"]).chunk(2, dim=-1)
    numbers = tables.numbers(steps)
    log_variance, sample = learned_log_variance(numbers, fraction), implied_sample(numbers, x, noise)
    of_sample, of_noisy = numbers.of_sample, numbers.of_noisy
    mean = of_sample * sample + of_noisy * x
    later = (steps > 0)[:, None]
    moved = mean + later * (0.5 * log_variance).exp() * 0.8 * t["step.noise"]
    found = {
        "log_variance": log_variance,
        "variance": log_variance.exp(),
        "pred_x0": sample,
        "mean": mean,
        "pred_x0_clip": sample.clamp(-1, 1),
        "mean_clip": of_sample * sample.clamp(-1, 1) + of_noisy * x,
        "sample_t0.8": moved,
    }
    for name, value in found.items():
        if f"step.{name}" in t:  # the first step of the chain enlarges noise about 300 times: errors go by the row
            for row, (actual, expected) in enumerate(zip(value, t[f"step.{name}"], strict=True)):
                assert_relative(actual, expected, f"{name} {row}", limit=1e-4)


@for_each(MAR, "*diffloss_sample*")
@torch.no_grad()
def test_bounded_steps_of_the_plan_are_the_single_steps(case: Case):
    t = case.tensors
    if "step.x" not in t:
        pytest.skip("this set has no single steps")
    head = head_of(case)
    plan = replace(LearnedVariance().plan(case.info["config"]["num_sampling_steps"]), sample_range=1.0)
    for row, index in enumerate(t["step.t_index"].tolist()):
        k = len(plan) - 1 - index
        x = t["step.x"][row : row + 1]
        found = plan.step(k, x, outputs(head, x, plan.times[k], t["step.z"][row : row + 1]))
        close(found, t["step.mean_clip"][row : row + 1], f"step {index}", atol=1e-4)


# -------------------------------------------------------------------------------------------------------------- masking


@for_each(MAR, "*masking*")
def test_mask_ratios(case: Case):
    names = [n.removesuffix(".u") for n in case.tensors if n.startswith("truncnorm_min") and n.endswith(".u")]
    for name in names:
        found = truncated_normal(case.tensors[f"{name}.u"], float(name.removeprefix("truncnorm_min")))
        close(found, case.tensors[f"{name}.ratio"], name, rtol=1e-9, atol=0)
        for key, expected in case.under(f"{name}.num_masked_L").items():
            assert_equal(torch.ceil(found * int(key)).long(), expected, f"{name} {key}")


@for_each(MAR, "*masking*")
def test_masks_of_orders(case: Case):
    """The first positions of an order are masked; the ratio sets their number."""
    orders = case.tensors.get("by_order.orders")
    if orders is not None:
        for key, expected in case.under("by_order.mask_len").items():
            found = orders.argsort(-1) < int(key)
            assert_equal(found, expected.bool(), f"first {key}")
    for name in sorted({n.split(".mask")[0] for n in case.tensors if n.startswith("random_masking") and "mask" in n}):
        if f"{name}.orders" not in case.tensors:
            continue
        order, ratio = case.tensors[f"{name}.orders"], case.tensors[f"{name}.ratio"]
        found = order.argsort(-1) < torch.ceil(ratio * order.shape[1])
        assert_equal(found, case.tensors[f"{name}.mask"].bool(), name)


@for_each(MAR, "*masking*")
def test_hidden_tokens_before_every_step(case: Case):
    found = 0
    for name, expected in case.tensors.items():
        match = re.match(r"decode_schedule\.L(\d+)_K(\d+)\.masked_before_iter", name)
        if match:
            tokens, steps = (int(group) for group in match.groups())
            assert masked_counts(steps, tokens) == expected.tolist(), name
            found += 1
    assert found
