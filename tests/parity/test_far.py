"""FAR against numbers of the official modules, trainer and pipeline."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mutoscope.interop import far as interop
from mutoscope.layers.diffusion import FlowMatching
from mutoscope.layers.positions import rotate
from mutoscope.models.far import FAR, PAPER_SIZES, FARBatch, FARCache, FARConfig, FrameConditions, TrainingDraws
from mutoscope.models.far.model import time_features
from mutoscope.models.far.network import causal_frames, rotation_table
from mutoscope.sampling.frame_flow import FlowCondition, FrameFlowSampler, FrameFlowSamplerConfig
from mutoscope.tokenizers.dc_ae import DCAE, DCAEConfig
from mutoscope.training.config import OptimConfig
from mutoscope.training.optim import clip_gradients, make_ema, make_optimizer
from parity.cases import Tolerance, assert_close, widen
from parity.far_support import FAR_FOLDER, FARCase, cases, config_of, for_each_far, model_of, one_hot

FORWARD: Tolerance = {"atol": 2e-5, "rtol": 1e-4}
SAMPLES: Tolerance = {"atol": 1e-4, "rtol": 1e-4}
CHECKPOINTS = FAR_FOLDER / "ckpt" / "train_run" / "models" / "checkpoint-3"


def test_every_file_of_vectors_is_covered():
    covered = ("a_positions", "b_masks", "c_forward*", "c_long_positions", "d_train*", "e_*", "f_sample*", "g_*", "v_*")
    assert {case.name for case in cases(*covered)} == {case.name for case in cases("*")}
    assert cases("c_forward*") and cases("f_sample*")


def conditions_of(case: FARCase, model: FAR) -> FrameConditions:
    t = case.tensors
    actions = one_hot(t["action"], model.config.action_size or 0) if "action" in t else None
    return FrameConditions(t.get("label"), actions)


# ----------------------------------------------------------------------------------------------- positions and masks


def doubled(table: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines with every value twice, as the official tables."""
    return table[..., 0].repeat_interleave(2, -1), table[..., 1].repeat_interleave(2, -1)


@for_each_far("a_positions")
def test_positions_and_times(case: FARCase):
    t = case.tensors
    ids_of_long = torch.cat([t["long.context_ids"], t["long.short_ids"]])
    for name, ids in (("short", t["short.ids"]), ("long", ids_of_long), ("released", t["released.ids"])):
        channels = interop.rotary_channels(t[f"{name}.cos"].shape[-1])
        for found, kind in zip(doubled(rotation_table(ids, channels)), ("cos", "sin"), strict=True):
            assert_close(found, t[f"{name}.{kind}"], atol=1e-6, what=f"{name} {kind}")
    table = rotation_table(t["short.ids"], interop.rotary_channels(t["rotate.x"].shape[-1]))
    assert_close(rotate(t["rotate.x"], table), t["rotate.y"], atol=1e-6)
    assert_close(time_features(t["time.t"]), t["time.sincos256"], atol=1e-5)
    model = model_of("short_uncond")
    assert_close(model.time_embedding(time_features(t["time.t"])), t["time.embed"], atol=1e-5)


@for_each_far("a_positions")
def test_coarse_tokens_are_where_their_first_fine_token_is(case: FARCase):
    coarse, fine = case.tensors["long.context_ids"], case.tensors["long.short_ids"]
    height, width = (int(side) + 1 for side in fine[:, 1:].amax(0))
    patch = next(int(side) for side in coarse[:, 1:].unique() if side > 0)
    count, later = int(coarse[:, 0].max()) + 1, len(fine) // (height * width)
    model = model_of("long_action", patch_size=1, coarse_patch_size=patch, latent_shape=(8, height, width))
    parts = [model.rotation(torch.arange(count), (height, width), patch)]
    parts.append(model.rotation(torch.arange(count, count + later), (height, width), 1))
    expected = rotation_table(torch.cat([coarse, fine]), model.config.rotary_channels)
    assert_close(torch.cat(parts), expected, atol=1e-6)


@for_each_far("a_positions")
def test_positions_and_times_of_half_precision_runs(case: FARCase):
    for key, numbers, values in (
        ("bf16_frame_index", "frame", "value_used_by_official_bf16_runs"),
        ("bf16_timestep", "t", "value"),
    ):
        entry = case.info[key]
        assert torch.tensor(entry[numbers]).bfloat16().float().tolist() == entry[values]


@for_each_far("b_masks")
def test_masks(case: FARCase):
    """Names say how many frames of how many tokens there are; the layouts of the biases are in the explanation."""
    explained = case.info["explain"]
    slope = float(re.search(r"slope_scale ([\d.]+)", explained)[1])  # pyright: ignore
    short, long = (part for part in explained.split(";") if " frames x " in part)
    for name, expected in case.tensors.items():
        if name.endswith("bias"):
            text = short if name.startswith("short") else long
            layout = [(int(f), int(n)) for f, n in re.findall(r"(\d+) \w*\s?frames x (\d+)", text)]
        elif found := re.match(r"short\.T(\d+)_n(\d+)$", name):
            layout = [(int(found[1]), int(found[2]))]
        else:
            numbers = re.match(r"long\.ctx(\d+)(?:x(\d+))?_short(\d+)x(\d+)$", name)
            assert numbers, name
            layout = [(int(numbers[1]), int(numbers[2] or 0)), (int(numbers[3]), int(numbers[4]))]
        tokens = [n for frames, n in layout for _ in range(frames)]
        frames = torch.arange(len(tokens)).repeat_interleave(torch.tensor(tokens))
        found = causal_frames(frames, frames, slope if name.endswith("bias") else 0.0)
        assert_close(found, expected if name.endswith("bias") else expected.bool(), atol=1e-6, what=name)


# -------------------------------------------------------------------------------------------------------------- passes


@for_each_far("c_forward*")
@torch.no_grad()
def test_whole_clips(case: FARCase):
    t, model = case.tensors, case.model(slope=case.info["slope_scale"])
    found = model(t["x"], t["timestep"], conditions_of(case, model))
    assert_close(found, t["y"][:, :, -found.shape[2] :], **FORWARD, what="all frames")
    assert_close(found[:, :, -1:], t["y_eval_last_frame"], **FORWARD, what="last frame")


@for_each_far("c_forward*")
@torch.no_grad()
def test_a_frame_in_progress_after_cached_frames(case: FARCase):
    """The last frame's velocity, where all frames before it are read as clean ones first."""
    t, count = case.tensors, case.tensors["x"].shape[2]
    model = case.model(slope=case.info["slope_scale"], latent_shape=tuple(t["x"].shape[2:]))
    conditions, times = conditions_of(case, model), t["timestep"].clone()
    times[:, :-1] = -1.0
    expected = model(t["x"], times, conditions)[:, :, -1:]
    cache, coarse = model.reserve(len(times), count), max(0, count - (model.config.num_fine_frames or count))
    for first, last, is_coarse in ((0, coarse, True), (coarse, count - 1, False)):
        if last > first:
            model.read(cache, t["x"][:, :, first:last], of_frames(conditions, first, last), first, is_coarse)
    own = of_frames(conditions, count - 1, count)
    for row in range(len(times)):  # one time for all clips of a batch, as in sampling
        modulations = model.modulations(times[row, -1:], own, len(times)).at(0)
        found = model.velocity(cache, t["x"][:, :, -1:], modulations, count - 1)
        assert_close(found[row], expected[row], **FORWARD)


def of_frames(conditions: FrameConditions, first: int, last: int) -> FrameConditions:
    actions = None if conditions.actions is None else conditions.actions[:, first:last]
    return FrameConditions(conditions.label, actions)


@for_each_far("c_long_positions")
@torch.no_grad()
def test_long_clips_with_exact_and_rounded_frame_numbers(case: FARCase):
    t = case.tensors
    for rounds, name in ((False, "last_frame"), (True, "last_frame_bf16_ids")):
        model = case.model(rounds_positions=rounds)
        found = model(t["x"], t["timestep"], conditions_of(case, model))[:, :, -1:]
        assert_close(found, t[name], **FORWARD, what=name)


# ------------------------------------------------------------------------------------------------------------ training


def draws_of(case: FARCase, model: FAR) -> TrainingDraws:
    """The official draws as ours. Conditions are hidden by comparison with those of the batch."""
    t, info = case.tensors, case.info
    steps = (t["u"] * 1000).long()
    b, k = steps.shape
    clean = t["clean_mask"].bool() if "clean_mask" in t else torch.zeros(b, k, dtype=torch.bool)
    drop_label, drop_action = torch.zeros(b, dtype=torch.bool), torch.zeros(b, k, dtype=torch.bool)
    start = info.get("start", 0)
    if "label" in t:
        drop_label = t["cond_after_dropout"] == model.config.num_classes
    if "action" in t and "cond_after_dropout" in t:
        drop_action = t["cond_after_dropout"] == model.config.action_size
    if "action_short_after_dropout" in t:
        parts = [t[name] for name in ("action_context_after_dropout", "action_short_after_dropout") if name in t]
        drop_action = torch.cat(parts, dim=1) == model.config.action_size
    return TrainingDraws(start, t["noise"], steps, clean, drop_label, drop_action)


def batch_of(case: FARCase, model: FAR) -> FARBatch:
    t = case.tensors
    batch: FARBatch = {"tokens": t["latent_raw"] * case.info["scaling_factor"]}
    if "label" in t:
        batch["label"] = t["label"]
    if "action" in t:
        batch["actions"] = one_hot(t["action"], model.config.action_size or 0)
    return batch


@for_each_far("d_train*")
def test_a_training_step(case: FARCase, monkeypatch: pytest.MonkeyPatch):
    t, model = case.tensors, case.model(clean_share=case.info["clean_context_ratio"])
    draws, batch = draws_of(case, model), batch_of(case, model)
    latents, times, _ = model.noisy(batch["tokens"], draws)
    assert_close(latents, t["x_in"], atol=1e-6, what="x_in")
    assert_close(times, t["timestep_in"], atol=1e-4, what="timestep_in")
    found = model(latents, times, model.batch_conditions(batch, draws))
    assert_close(found, t["pred"][:, :, -found.shape[2] :], atol=5e-5, what="pred")
    monkeypatch.setattr(model, "draw", lambda tokens, generator: draws)
    model.requires_grad_(True)
    loss, _ = model.loss(batch, torch.Generator())
    assert_close(loss, t["loss"][0], rtol=1e-5, what="loss")
    loss.backward()
    check_gradients(case, model)


def gradients(model: FAR) -> dict[str, Tensor]:
    """Gradients by our names; zeros where there is none."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def published(name: str, tensors: dict[str, Tensor]) -> Tensor:
    """The rows of one of our tensors that belong to a published one."""
    ours = interop.our_name(name)
    assert ours is not None
    layers = [layer for layer, joined in interop.INSIDE.items() if ours.rpartition(".")[0].endswith(f".{joined}")]
    same = [layer for layer in layers if interop.our_name(f"transformer_blocks.0.{layer}.weight") is not None]
    mine = [layer for layer in same if f".{interop.INSIDE[layer]}." in ours]
    index = next((i for i, layer in enumerate(mine) if f".{layer}." in name), 0)
    return tensors[ours].chunk(max(len(mine), 1))[index]


def check_gradients(case: FARCase, model: FAR) -> None:
    found = gradients(model)
    for name, expected in case.tensors.items():
        if name.startswith("grad."):
            assert_close(published(name.removeprefix("grad."), found), expected, atol=1e-5, rtol=1e-3, what=name)
    for name, norm in case.info["gradient_norms"].items():
        value = float(published(name, found).norm())
        if norm is None or norm == 0:
            assert value == 0, name
        else:
            assert value == pytest.approx(norm, rel=1e-3, abs=1e-6), name


@for_each_far("g_train_trace")
def test_three_updates_with_averaging(case: FARCase, monkeypatch: pytest.MonkeyPatch):
    t, info = case.tensors, case.info
    model = FAR(config_of(info["config"], clean_share=0.3))
    model.load_state_dict(interop.our_weights(under(t, "before."), FAR_FOLDER))
    optimizer = make_optimizer(model, OptimConfig(1e-3, 0.9, 0.999))
    average = make_ema(model, info["ema_decay"])
    assert average is not None
    for i, (loss, norm) in enumerate(zip(info["losses"], info["grad_norms"], strict=True)):
        s = under(t, f"s{i}.")
        draws = TrainingDraws(
            0,
            s["noise"],
            (s["u"] * 1000).long(),
            s["mask_uniform"] < 0.3,
            s["label_after_dropout"] == info["config"]["condition_cfg"]["num_classes"],
            torch.zeros(s["u"].shape, dtype=torch.bool),
        )
        monkeypatch.setattr(model, "draw", lambda tokens, generator, draws=draws: draws)
        batch: FARBatch = {"tokens": s["latent_raw"] * 0.2889, "label": s["label_after_dropout"]}
        optimizer.zero_grad()
        found, _ = model.loss(batch, torch.Generator())
        found.backward()
        assert_close(found, torch.tensor(loss), rtol=1e-5, what="loss")
        assert float(clip_gradients(model, info["clip"])) == pytest.approx(norm, rel=1e-4)
        optimizer.step()
        average.update_parameters(model)
    for file, state in (("model.safetensors", model.state_dict()), ("ema.pth", average.module.state_dict())):
        expected = interop.our_weights(interop.read_checkpoint(CHECKPOINTS / file, "FAR"), CHECKPOINTS)
        for name, value in expected.items():
            assert_close(state[name], value, atol=2e-6, what=f"{file} {name}")


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


# ----------------------------------------------------------------------------------------------------------- scheduler


@for_each_far("e_scheduler")
def test_noise_levels(case: FARCase):
    t, flow = case.tensors, FlowMatching()
    assert_close(flow.sigmas, t["train.sigmas"], atol=1e-6)
    assert_close(flow.times(torch.arange(1000)), t["train.timesteps"], atol=1e-4)
    counts = [
        int(name.removeprefix("steps").removesuffix(".sigmas"))
        for name in t
        if name.endswith(".sigmas") and name[0] == "s"
    ]
    assert counts
    for count in counts:
        plan = flow.plan(count)
        assert_close(plan.sigmas, t[f"steps{count}.sigmas"], atol=1e-6)
        assert_close(plan.times, t[f"steps{count}.timesteps"], atol=1e-4)
    plan, x = flow.plan(5), t["traj.start"]
    for k in range(5):
        x = plan.step(k, x, t[f"traj.v{k}"])
        assert_close(x, t[f"traj.x{k}"], atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ sampling


class Recorded(FrameFlowSampler[FrameConditions, FARCache]):
    """The sampler with recorded noise instead of draws."""

    def __init__(self, config: FrameFlowSamplerConfig, noise: Tensor, num_context: int) -> None:
        super().__init__(config)
        self.recorded, self.num_context = noise, num_context

    def noise(self, shape: tuple[int, ...], frame: int, generator: torch.Generator) -> Tensor:
        return self.recorded[:, :, frame - self.num_context, None]


def rows_of(case: FARCase, model: FAR, passes: int, scale: float) -> Callable[[int], FrameConditions]:
    """Conditions of every frame for all passes; those of the second pass, or with a scale of 0 all, are unknown."""
    conditions, count = conditions_of(case, model), len(case.tensors["noise"])
    keep = torch.arange(passes * count) < (0 if scale == 0 else count)

    def at(frame: int) -> FrameConditions:
        label, actions = conditions.label, of_frames(conditions, frame, frame + 1).actions
        label = None if label is None else label.repeat(passes).masked_fill(~keep, -1)
        actions = None if actions is None else actions.repeat(passes, 1, 1).masked_fill(~keep[:, None, None], torch.nan)
        return FrameConditions(label, actions)

    return at


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@for_each_far("f_sample*")
def test_whole_generations(case: FARCase, use_cache: bool):
    t, info = case.tensors, case.info
    known, made, steps = info["context_frames"], info["generated_frames"], info["steps"]
    model = case.model(latent_shape=(known + made, *t["noise"].shape[-2:]))
    scale = 0.0 if info["guidance_scale"] < 0 and model.config.action_size else info["guidance_scale"]
    config = FrameFlowSamplerConfig(num_decoding_steps=steps, guidance_scale=scale, use_cache=use_cache)
    passes = config.num_passes(model.config.is_conditional)
    at = rows_of(case, model, passes, scale)
    condition = FlowCondition(at, len(t["noise"]), known + made, t.get("context_latents"))
    events = list(Recorded(config, t["noise"], known).sample(model, condition, torch.Generator()))
    assert len(events) == made * steps
    assert_close(events[-1].proposal, t["latents" if use_cache else "latents_no_cache"], **SAMPLES)


@for_each_far("f_sample*")
def test_number_of_queries_and_keys_of_every_pass(case: FARCase, monkeypatch: pytest.MonkeyPatch):
    """As many keys as the official cache in each pass; first steps are two passes here, since frames are read first."""
    t, info = case.tensors, case.info
    known, made, steps = info["context_frames"], info["generated_frames"], info["steps"]
    model = case.model(latent_shape=(known + made, *t["noise"].shape[-2:]))
    scale = 0.0 if info["guidance_scale"] < 0 and model.config.action_size else info["guidance_scale"]
    config = FrameFlowSamplerConfig(num_decoding_steps=steps, guidance_scale=scale)
    passes = config.num_passes(model.config.is_conditional)
    seen: list[tuple[int, int, int]] = []
    velocity = model.velocity

    def counted(cache: FARCache, latents: Tensor, modulations: list[Tensor], number: int) -> Tensor:
        tokens = math.prod(latents.shape[-2:]) // model.config.patch_size**2
        seen.append((tokens, cache.length + tokens, len(latents)))
        return velocity(cache, latents, modulations, number)

    monkeypatch.setattr(model, "velocity", counted)
    condition = FlowCondition(
        rows_of(case, model, passes, scale), len(t["noise"]), known + made, t.get("context_latents")
    )
    list(Recorded(config, t["noise"], known).sample(model, condition, torch.Generator()))
    plan = info["attention_plan"]["cache"]
    assert [keys for _, keys, _ in seen] == [entry["keys"] for entry in plan]
    later = [(found, entry) for found, entry in zip(seen, plan, strict=True) if entry["denoise_step"]]
    assert all(found == (entry["queries"], entry["keys"], entry["rows"]) for found, entry in later)


# ---------------------------------------------------------------------------------------------------------- published


@for_each_far("v_vae")
@torch.no_grad()
def test_autoencoder(case: FARCase):
    pytest.importorskip("diffusers")
    t, tokenizer = case.tensors, DCAE(DCAEConfig(case.info["config"])).eval()
    weights = {name: widen(value) for name, value in load_file(FAR_FOLDER / "weights" / "dcae.safetensors").items()}
    tokenizer.vae.load_state_dict(weights)  # pyright: ignore
    assert tokenizer.spec.spatial_stride == 4 and tokenizer.spec.latent_channels == 4 and tokenizer.spec.per_frame
    assert_close(tokenizer.encode(t["pixels"]), t["scaled_latents"], atol=1e-4)
    assert_close(tokenizer.decode(t["z_scaled"]), t["decoded_unclamped"], atol=1e-4)
    scale = case.info["scaling_factor"]
    assert_close(tokenizer.encode(t["rect_pixels"]), t["rect_raw_latents"] * scale, atol=1e-4)
    assert_close(tokenizer.decode(t["big_z_scaled"]).clamp(-1, 1), t["big_decoded"], atol=1e-4)


@for_each_far("g_ckpt_expected")
@torch.no_grad()
def test_published_files_load(case: FARCase):
    t, settings = case.tensors, config_of(case.info["config"])
    for name, file in (
        ("last_frame_ema", FAR_FOLDER / "ckpt" / "FAR_tiny_release-00000000.pth"),
        ("last_frame_ema", CHECKPOINTS / "ema.pth"),
        ("last_frame_online", CHECKPOINTS / "model.safetensors"),
    ):
        stored = interop.read_checkpoint(file, "FAR")
        config = interop.infer_config(stored, file, settings.latent_channels, (3, 2, 2), settings.window)
        assert config == replace(settings, latent_shape=(3, 2, 2))
        model = interop.load_transformer(stored, config, file)
        found = model(t["x"], t["timestep"], FrameConditions(t["label"]))
        assert_close(found[:, :, -1:], t[name], **FORWARD, what=str(file))


def test_parameters_of_published_sizes():
    counts: dict[str, Any] = json.loads((FAR_FOLDER / "param_counts.json").read_text())
    seen = 0
    for name, entry in counts.items():
        size, _, condition = name.partition(".")
        if not size.startswith("FAR_"):
            continue
        changes = {"none": {}, "label101": {"num_classes": 101}, "action4": {"action_size": 4}}[condition]
        with torch.device("meta"):
            model = FAR(FARConfig.paper(size.removeprefix("FAR_").replace("_Long", "-long"), **changes))
        assert sum(p.numel() for p in model.parameters()) == entry["parameters"], name
        seen += 1
    assert seen and len(PAPER_SIZES) == 6


def test_published_names_are_ours_one_to_one():
    keys = json.loads((FAR_FOLDER / "state_dict_keys.json").read_text())
    for name, size, changes in (
        ("FAR_L_label101", "L", {"num_classes": 101}),
        ("FAR_B_Long_action4", "B-long", {"action_size": 4}),
    ):
        with torch.device("meta"):
            stored = {key: torch.empty(tuple(shape)) for key, shape in all_keys(keys[name]).items()}
            weights = interop.our_weights(stored, FAR_FOLDER)
            model = FAR(FARConfig.paper(size, **changes))
        assert {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in model.state_dict().items()}


def all_keys(entry: dict[str, Any]) -> dict[str, list[int]]:
    """Names and shapes of a state dict whose blocks are listed once."""
    block = next(value for key, value in entry.items() if key.startswith("block_0"))
    missing = ("attn.to_add_out.weight", "attn.to_add_out.bias")  # in the last block
    found = dict(entry["outside_blocks"])
    for i in range(entry["layers"]):
        is_last = i == entry["layers"] - 1
        names = {k: v for k, v in block.items() if not (is_last and k in missing)}
        found |= {f"transformer_blocks.{i}.{name}": shape for name, shape in names.items()}
    return found


def test_initial_weights_follow_the_published_rules():
    expected = json.loads((FAR_FOLDER / "state_dict_keys.json").read_text())["init_statistics_small_FAR_Long"]
    width, size = expected["x_embedder.weight"]["shape"]
    coarse = expected["context_embedder.weight"]["shape"][1]
    torch.manual_seed(0)
    config = FARConfig(
        hidden_size=width,
        num_layers=1 + max(int(name.split(".")[1]) for name in expected if name.startswith("transformer_blocks")),
        latent_channels=size,
        coarse_patch_size=round((coarse / size) ** 0.5),
        action_size=expected["action_embedder.embedding_table.weight"]["shape"][0] - 1,
    )
    state = FAR(config).state_dict()
    for name, entry in expected.items():
        found = published(name, state)
        assert list(found.shape) == entry["shape"], name
        assert float(found.std(correction=0)) == pytest.approx(entry["std"], rel=0.1, abs=1e-9), name
        assert float(found.mean()) == pytest.approx(entry["mean"], abs=5e-3), name
