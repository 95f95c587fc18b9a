"""NOVA against numbers of the official modules."""

import dataclasses

import pytest
import torch

from mutoscope.interop.nova import our_name
from mutoscope.layers.diffusion import FlowMatching
from mutoscope.layers.embeddings import grid_sin_cos, timestep_features
from mutoscope.layers.masks import block_causal_mask
from mutoscope.layers.patchify import patchify, unpatchify
from mutoscope.layers.positions import rotary_table, rotate
from mutoscope.layers.token_masking import gather_rows, truncated_normal
from mutoscope.models.nova import ScalingAndShift, TrainingDraws, modulate
from mutoscope.pipeline import VideoPipeline
from mutoscope.sampling.frame_ar import FrameARSampler, FrameARSamplerConfig, combine, set_sizes
from parity.cases import Tolerance, assert_close, assert_equal
from parity.nova_cases import (
    NOVACase,
    condition_of,
    ddpm,
    diffusion_of,
    folder_of,
    for_each_nova,
    index,
    nova_cases,
    sampler_config,
    transformer,
)

NETWORK: Tolerance = {"atol": 2e-5, "rtol": 1e-4}


def test_every_file_of_vectors_is_covered_by_a_test_here_or_in_the_vae_tests():
    covered = ["a_*", "b_*", "c_*", "d_*", "e_*", "f_*", "g_*", "h_e2e_*", "i_*", "j_*", "t_text", "v_vae"]
    every = nova_cases("*")
    assert {case.name for case in nova_cases(*covered)} == {case.name for case in every}


@for_each_nova("a_video_encoder*")
@torch.no_grad()
def test_temporal_encoder_in_one_pass_and_frame_by_frame(case: NOVACase):
    model, t = case.model(), case.tensors
    latents, prefix = t["latents"], t["text_prefix"]
    b, num_slots, length = len(latents), latents.shape[2], prefix.shape[1]
    assert_close(model.slot_tokens(latents[:, :, :-1], b, 0, num_slots), t["tokens_after_pos"], **NETWORK)
    m = t["tokens_after_pos"].shape[2]
    blocks = torch.cat([torch.zeros(length, dtype=torch.int64), torch.arange(num_slots).repeat_interleave(m)])
    assert_equal(block_causal_mask(blocks), t["attn_mask_additive"] == 0, "mask")
    assert_close(model.contexts(latents, prefix), t["out_parallel_after_mixer"], **NETWORK)

    state, context = model.start(prefix, num_slots)
    contexts = [context]
    for frame in latents[:, :, :-1].unbind(2):
        contexts.append(model.read_frame(state, frame[:, :, None]))
    assert_close(torch.stack(contexts, dim=1), t["out_cached_after_mixer"], **NETWORK)
    assert state.cache.length == case.info["cache_len_after_each_frame"][-1]
    for name, layer in (("first", 0), ("last", -1)):
        assert_close(state.cache.keys[layer], t[f"key_cache_{name}_block"], **NETWORK)
        assert_close(state.cache.values[layer], t[f"value_cache_{name}_block"], **NETWORK)


@for_each_nova("b_image_encoder*")
@torch.no_grad()
def test_spatial_encoder_with_any_number_of_known_tokens(case: NOVACase):
    model, t = case.model(), case.tensors
    tokens = patchify(t["latents"][:, :, None], model.config.patch_size)[:, 0]
    order = t["permutation"][..., 0]
    for count in case.info["known_counts"]:
        canvas, known = model.canvas(t["context"]), order[:, :count]
        model.write(canvas, known, gather_rows(tokens, known))
        expected = t[f"out_n{count}"]
        assert_close(model.fill(canvas), expected, **NETWORK, what=f"{count} known")
        some = order[:, count : count + 5]
        assert_close(model.fill(canvas, some), gather_rows(expected, some), **NETWORK, what="some outputs alone")
    middle = case.info["known_counts"][len(case.info["known_counts"]) // 2]
    if "out_no_context" in t:
        canvas, known = model.canvas(t["context"][:, :0]), order[:, :middle]
        model.write(canvas, known, gather_rows(tokens, known))
        assert_close(model.fill(canvas), t["out_no_context"], **NETWORK, what="no context")


@for_each_nova("c_scaling_shift")
@torch.no_grad()
def test_scaling_and_shift(case: NOVACase):
    t = case.tensors
    d = t["lowrank.reference"].shape[-1]
    for name, rank in (("lowrank", case.info["rank"]), ("vanilla", -1)):
        mixer = ScalingAndShift(d, rank)
        names = {"lora": "down", "proj": "output"}
        stored = {n.split(":")[1]: v for n, v in t.items() if n.startswith(f"{name}.weight:")}
        mixer.load_state_dict({f"{names[n.split('.')[0]]}.{n.split('.')[1]}": v for n, v in stored.items()})
        for suffix in ("", "4d"):
            out = mixer(t[f"{name}.reference{suffix}"], t[f"{name}.current{suffix}"])
            assert_close(out, t[f"{name}.out{suffix}"], **NETWORK, what=name + suffix)
    stats = torch.nn.functional.linear(
        torch.nn.functional.silu(t["adaln3.z"]), t["adaln3.weight:proj.weight"], t["adaln3.weight:proj.bias"]
    )
    scale, shift, gate = stats.chunk(3, dim=-1)
    assert_close(modulate(t["adaln3.x"], scale, shift), t["adaln3.out"], **NETWORK)
    assert_close(gate, t["adaln3.gate"], **NETWORK)


@for_each_nova("d_diffusion_head")
@torch.no_grad()
def test_diffusion_head_with_times_of_rows_and_of_tokens(case: NOVACase):
    model, t = case.model(), case.tensors
    head, p = model.head, model.config.patch_size
    x = patchify(t["latents"][:, :, None], p)[:, 0]
    assert_equal(x, t["patchified"])
    assert_close(timestep_features(t["timestep_1d"]), t["freq_embed_1d"], **NETWORK)
    condition = head.condition(t["z"])
    for name in ("1d", "2d", "1d_int"):
        times = t[f"timestep_{name}"]
        time = head.time(times if times.ndim == 2 else times[:, None])
        if f"cond_{name}" in t:
            assert_close(condition + time, t[f"cond_{name}"], **NETWORK, what=name)
        assert_close(head(x, condition, time), t[f"out_full_{name}"], **NETWORK, what=name)
    full = t["out_full_1d"][:, None]
    grid = tuple(side // p for side in t["latents"].shape[2:])
    assert_equal(unpatchify(full, (grid[0], grid[1]), p)[:, :, 0], t["unpatchified_out_full_1d"])
    ids, time = t["pred_ids"][..., 0], head.time(t["timestep_1d"])[:, None]
    some = head(gather_rows(x, ids), head.condition(gather_rows(t["z"], ids)), time)
    assert_close(some, t["pred_tokens_only_1d"], **NETWORK)
    assert_close(x.scatter(1, ids[..., None].expand_as(some), some), t["out_pred_ids_1d"], **NETWORK)


@for_each_nova("e_schedulers")
def test_schedulers_in_training_and_sampling(case: NOVACase):
    t = case.tensors
    close: Tolerance = {"atol": 1e-5, "rtol": 1e-5}
    x, noise = t["x0"], t["noise"]
    ends = ".train_sigma"
    for shift in [float(n.removeprefix("flow.shift").removesuffix(ends)) for n in t if n.endswith(ends)]:
        flow, under = FlowMatching(shift), f"flow.shift{shift}"
        steps = t[f"{under}.train_index"].long()
        assert_equal((t[f"{under}.train_normal_draw"].sigmoid() * 1000).long(), steps)
        assert_close(flow.add_noise(x, noise, steps), t[f"{under}.add_noise"], **close)
        assert_close(flow.times(steps), t[f"{under}.train_timestep_to_model"], **close)
        for name in [n.split(".")[-2] for n in t if n.startswith(f"{under}.n") and n.endswith(".sigmas")]:
            plan = flow.plan(int(name[1:]))
            assert_close(plan.times, t[f"{under}.{name}.timesteps"], **close)
            assert_close(plan.sigmas, t[f"{under}.{name}.sigmas"], **close)
            follow(plan, t, f"{under}.{name}", noise, rtol=1e-4)
    for entry in case.info["ddpm"]:
        scheme, under = ddpm(entry["config"]), entry["tag"]
        steps = t[f"{under}.train_index"].long()
        assert_close(scheme.add_noise(x, noise, steps), t[f"{under}.add_noise"], **close)
        assert_close(scheme.alphas_cumprod, t[f"{under}.alphas_cumprod"], **close)
        velocity = dataclasses.replace(scheme, prediction_type="v_prediction")
        assert_close(velocity.target(x, noise, steps), t[f"{under}.velocity"], **close)
        plan = scheme.plan(entry["n"])
        assert_equal(plan.times.long(), t[f"{under}.timesteps"].long())
        follow(plan, t, under, noise, rtol=1e-4)


def follow(plan, t, under: str, x, rtol: float) -> None:
    """A trajectory with recorded outputs of the network and recorded noise."""
    if f"{under}.trajectory" not in t:
        return
    for k, expected in enumerate(t[f"{under}.trajectory"]):
        noise = t[f"{under}.step_noise"][k] if plan.needs_noise(k) else None
        x = plan.step(k, x, t[f"{under}.model_outputs"][k], noise)
        assert_close(x, expected, atol=1e-5, rtol=rtol, what=f"{under} step {k}")


@for_each_nova("f_sets")
def test_sets_orders_and_masks(case: NOVACase):
    t, info = case.tensors, case.info
    for name, sizes in info["num_preds"].items():
        n, k = (int(part[1:]) for part in name.split("_"))
        assert set_sizes(k, n) == sizes, name
    order = t["uniform_draw"][..., 0].argsort(dim=1)
    assert_equal(order, t["permutation"][..., 0])
    start = 0
    for step, size in enumerate(info["generation_num_preds"]):
        assert_equal(order[:, start : start + size], t[f"step{step}.pred_ids"][..., 0], f"set {step}")
        start += size
    for name, entry in info["train"].items():
        n = t[f"{name}.uniform_draw"].shape[1]
        known = t[f"{name}.uniform_draw"][..., 0].argsort(dim=1)[:, : round((1 - entry["mask_ratio"]) * n)]
        assert_equal(known, t[f"{name}.prev_ids"][..., 0], name)
    law = info["truncnorm"]
    ratios = truncated_normal(torch.tensor(law["quantiles"], dtype=torch.float64))
    assert_close(ratios, torch.tensor(law["values"], dtype=torch.float64), atol=1e-9)


@for_each_nova("g_train_loss*")
def test_training_loss_and_gradients(case: NOVACase):
    t, config = case.tensors, case.info["config"]
    model = case.model(diffusion_of(case)).train()
    model.config = dataclasses.replace(model.config, loss_repeat=config["loss_repeat"])
    flow = config["scheduler"] == "flow"
    steps = (t["timestep_draw"].sigmoid() * 1000).long() if flow else t["timestep_draw"].long()
    draws = TrainingDraws(t["mask_uniform_draw"][..., 0], config["mask_ratio"], t["noise"], steps)
    features = t["prompt_embeds"]
    prefix = model.text_prefix(features, torch.ones(features.shape[:2], dtype=torch.bool))
    motion = config["motion_flow"]
    fps = torch.full((len(features),), float(config["fps_default"]))
    prefix = model.with_motion(prefix, None if motion is None else torch.tensor(motion), fps)
    loss, parts = model.loss_of(t["latents"], prefix, draws)
    assert loss.item() == pytest.approx(case.info["loss_total"], rel=1e-5)
    assert sorted(v.item() for v in parts.values()) == pytest.approx(sorted(case.info["losses"].values()), rel=1e-5)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, norm in case.info["grad_norms"].items():
        gradient = gradients[str(our_name(name))]
        found = 0.0 if gradient is None else gradient.norm().item()
        assert found == pytest.approx(norm, rel=1e-3, abs=1e-6), name
    for name, expected in t.items():
        if name.startswith("grad:") and expected.ndim < 4:
            gradient = gradients[str(our_name(name.removeprefix("grad:")))]
            assert gradient is not None
            assert_close(gradient, expected, atol=1e-5, rtol=1e-3, what=name)


@for_each_nova("h_e2e_*")
def test_whole_generations_from_their_seeds(case: NOVACase):
    t, call = case.tensors, case.info["call"]
    if "prefill_latents" in t:
        pytest.skip("the recording uses only the last of several context frames, which we do not imitate")
    if not nova_cases("t_text"):
        pytest.skip("this copy of the vectors has no text features")
    model, config = case.model(diffusion_of(case)), sampler_config(call)
    generator = torch.Generator().manual_seed(case.info["seed"])
    given = None
    if call["image"]:
        assert_equal(torch.randn(t["vae_sample_noise"].shape, generator=generator), t["vae_sample_noise"])
        given = t["latents"][:, :, :1]
    frames = t["latents"].shape[2]
    condition = dataclasses.replace(condition_of(model, call, config.num_passes), num_frames=frames, context=given)
    *_, last = FrameARSampler(config).sample(model, condition, generator)
    for frame in range(frames):
        found, expected = last.proposal[:, :, frame], t["latents"][:, :, frame]
        assert_close(found, expected, atol=1e-3, rtol=1e-3, what=f"frame {frame}")


@for_each_nova("i_positions")
@torch.no_grad()
def test_positions_of_all_kinds(case: NOVACase):
    t = case.tensors
    model = transformer(case.info["weights"], FlowMatching())
    for name, prefix in (("rope", 0), ("rope.q_prefix4", 4), ("rope64", 0), ("rope96", 0)):
        q = t[name] if prefix else t[f"{name}.q"]
        expected = t[f"{name}_rotated"] if prefix else t[f"{name}.q_rotated"]
        places = torch.nn.functional.pad(t["rope.pos_2x3x5"][0].long(), (0, 0, prefix, 0))
        assert_close(rotate(q, rotary_table(places, pairs_of(q.shape[-1]))), expected, **NETWORK, what=name)
    base = index()["files"]["i_positions.safetensors"]["base_t"]
    for name, grid in (("video", model.config.coarse_grid), ("image", model.config.grid)):
        assert_close(
            grid_sin_cos(grid, model.config.hidden_size, torch.device("cpu")), t[f"abs.space_{name}"], **NETWORK
        )
    assert model.time_embedding is not None
    for name in [n for n in t if n.startswith("abs.time_T")]:
        count = int(name.removeprefix("abs.time_T"))
        assert_close(model.time_embedding(torch.arange(count) * (base / count))[:, None], t[name], **NETWORK, what=name)
    c = t["motion.c"]
    flow = t["motion.flow_1_5_10.5_fps_default"]
    assert_close(model.with_motion(c[:, :0], torch.tensor([1.0, 5.0, 10.5])), flow, **NETWORK)
    fps = model.with_motion(c[:, :0], None, torch.tensor([8.0, 12.0, 24.0]))
    assert_close(fps, t["motion.flow_default_fps_8_12_24"], **NETWORK)


def pairs_of(size: int) -> tuple[int, int, int]:
    time = size // 8
    return time // 2, (size - time) // 4, (size - time) // 4


@for_each_nova("j_guidance")
def test_guidance_of_two_and_three_passes(case: NOVACase):
    t, nothing = case.tensors, torch.zeros(2, 0, case.tensors["pair"].shape[-1])
    seen = 0
    for name, expected in t.items():
        if not name.startswith("cfg_s") or "_st" in name:  # spatio-temporal guidance does nothing but cost a pass
            continue
        parts = name.removeprefix("cfg_s").split("_")
        config = FrameARSamplerConfig(guidance_scale=float(parts[0]))
        for part in parts[1:]:
            key = {"r": "guidance_renorm", "i": "image_guidance_scale"}[part[0]]
            config = dataclasses.replace(config, **{key: float(part.removeprefix("renorm").removeprefix("image"))})
        rows = t["triple"].chunk(3) if config.num_passes == 3 else t["pair"].chunk(2)
        assert_close(combine(rows, nothing, config.guidance_scale, config), expected, **NETWORK, what=name)
        seen += 1
    assert seen >= 2
    config = FrameARSamplerConfig(guidance_scale=6.0, min_guidance_scale=2.0)
    example = case.info["decay_example"]
    assert [config.scale_at(i, len(example)) for i in range(len(example))] == pytest.approx(example)


@for_each_nova("t_text")
@torch.no_grad()
def test_text_prefix_keeps_the_table_where_there_are_no_words(case: NOVACase):
    t, model = case.tensors, transformer("pipe_t2v/transformer/config.json", FlowMatching())
    present = torch.arange(t["hidden"].shape[1]) < torch.tensor(case.info["token_counts"])[:, None]
    assert model.text is not None
    rows = torch.where(present[..., None], t["hidden"], model.text.table[: present.shape[1]])
    assert_close(rows, t["prompt_embeds"], **NETWORK)
    assert_close(model.text_prefix(t["hidden"], present), t["projected"], **NETWORK)


@for_each_nova("h_e2e_t2v", "h_e2e_t2i", "h_e2e_i2v", "h_e2e_t2v_image")
def test_published_folders_give_the_same_images_from_prompt_and_seed(case: NOVACase):
    pytest.importorskip("transformers")
    if not (folder_of(case) / "vae").is_dir() or not (folder_of(case) / "text_encoder").is_dir():
        pytest.skip("this copy of the vectors has no whole pipeline")
    t, call = case.tensors, case.info["call"]
    expected = t["frames_uint8"] if "frames_uint8" in t else t["images_uint8"][:, None]
    options = {
        "prompt": call["prompt"],
        "negative_prompt": call.get("negative_prompt", ""),
        "num_decoding_steps": call["num_inference_steps"],
        "num_diffusion_steps": call["num_diffusion_steps"],
        "guidance_scale": call["guidance_scale"],
        "motion": call.get("motion_flow"),
        "seed": case.info["seed"],
        "num_frames": expected.shape[1],
        "num_samples": call.get("num_images_per_prompt"),
    }
    if call["image"]:
        options["context"] = t["image_uint8"][None].numpy()
    clips = VideoPipeline.from_pretrained(folder_of(case)).generate(**options).clips
    found = torch.stack([torch.from_numpy(clip.frames) for clip in clips])
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01
