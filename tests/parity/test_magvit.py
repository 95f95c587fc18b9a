"""MAGVIT against its official implementation (arXiv 2212.05199) on tiny random weights."""

import fnmatch
import math
import re
from dataclasses import replace
from typing import cast

import pytest
import torch
from einops import rearrange
from torch import Tensor

from mutoscope.interop import magvit_flax
from mutoscope.layers.condition_regions import TASKS, condition_region
from mutoscope.layers.token_masking import MASK_TOKEN, cosine_mask_ratio, num_masked_tokens, select_lowest
from mutoscope.models.magvit import Block, Magvit, MagvitConfig, mask_tokens, masked_cross_entropy
from mutoscope.models.magvit.config import LossGroup
from mutoscope.sampling import tasks
from mutoscope.sampling.categorical import nucleus
from mutoscope.sampling.masked import MaskedCondition, MaskedSampler, MaskedSamplerConfig
from mutoscope.sampling.schedules import mask_ratio
from mutoscope.tokenizers.quantizers import EntropyKind, VectorQuantizer, VectorQuantizerConfig, entropy_loss
from mutoscope.training.optim import clip_gradients, learning_rate_factor
from parity.cases import Case, assert_close, assert_equal, family, for_each, renamed
from parity.magvit_support import (
    EXTRA_TASKS,
    OUR_TASKS,
    TOY_KEYS,
    TRAIN_KEYS,
    RecordedNoise,
    Recorder,
    ToyModel,
    bert_config,
    optimiser_of,
    our_task,
    record_output,
    record_res_blocks,
    tokenizer_of,
)

CASES = family("magvit")
COVERED = (
    "*mask_schedule*", "*mask_sampling*", "*sequence_assembly*", "*bert_forward*", "*decode_toy*", "*decode_bert*",
    "*tasks*", "*tokenizer_forward*", "*losses*", "*transformer_train_steps*", "*misc*",
    "*discriminator_forward*", "*vqgan_train_steps*", "*lm_forward*",
)  # fmt: skip
NOT_COVERED = {
    "*decode_edge*": "records a defect of the official loop: with one token left it masks everything again",
}
# The adversarial stage is in test_magvit_stage1.py, the autoregressive baseline in test_magvit_baselines.py. Inside
# covered files, resizing and image metrics (`misc`) are tested where evaluation uses them.


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_file_is_covered_or_known_not_to_be(case: Case):
    assert any(fnmatch.fnmatch(case.name, pattern) for pattern in (*COVERED, *NOT_COVERED)), case.name


# ------------------------------------------------------------------------------------------------ masks and sequences


@for_each(CASES, "*mask_schedule*")
def test_mask_schedules(case: Case):
    ratio = case.tensors["ratio"]
    for name, expected in case.under("rate/").items():
        size, method = name.split("/", 1)
        rate = mask_ratio(method, ratio, int(size))
        assert_close(rate, expected, atol=2e-6, what=name)
        counts = case.tensors.get(f"num_masked_unclipped/{name}")
        if counts is not None:
            product = expected.double() * int(size)
            certain = ((product - product.round()).abs() > 2e-4) & (counts >= 1)
            assert_equal(num_masked_tokens(rate, int(size))[certain], counts[certain], name)


def masked_by(mode: str, case: Case, scores: Tensor, rate: Tensor):
    condition = (
        {}
        if mode == "none"
        else {
            "condition_tokens": case.tensors["cond_inputs"],
            "condition_mask": case.tensors["cond_mask"].bool(),
            "condition_mode": mode,
        }
    )
    return mask_tokens(case.tensors["inputs"], scores, rate, **condition)


@for_each(CASES, "*mask_sampling*")
def test_training_masks(case: Case):
    scores, rates = case.tensors["mask_score"], cosine_mask_ratio(case.tensors["uniform_draw"])
    assert_close(rates, case.tensors.get("mask_rate_cosine", rates), atol=2e-6, what="mask rate")
    subcases = case.subcases("masked_inputs")
    assert subcases
    for prefix in (p for p in subcases if not p.startswith("limits")):
        index, mode, weight_mode = prefix.split("/")
        masked = masked_by(mode, case, scores, rates[int(index)])
        selected = masked.is_masked | masked.is_refined
        weights = sum(masked.group(cast(LossGroup, group)).float() for group in weight_mode.split("+"))
        computed = {
            "masked_inputs": masked.inputs,
            "weights": weights,
            "segment_ids": masked.is_refined.long(),
            "uncond_masked_inputs": masked.inputs.masked_fill(selected, MASK_TOKEN),
        }
        for field, value in computed.items():
            if f"{prefix}/{field}" in case.tensors:
                assert_equal(value, case.tensors[f"{prefix}/{field}"], f"{prefix}/{field}")
        targets = case.tensors.get(f"{prefix}/targets")
        if targets is not None:  # where there is no loss the official target may be anything
            assert_equal(case.tensors["inputs"][weights > 0], targets[weights > 0], f"{prefix}/targets")


@for_each(CASES, "*mask_sampling*")
def test_upper_limit_of_masked_tokens(case: Case):
    scores = case.tensors["mask_score"].flatten(1)
    for prefix in (p for p in case.subcases("masked_inputs") if p.startswith("limits")):
        limit = case.tensors[f"{prefix}/max"]
        count = num_masked_tokens(torch.tensor(0.5), scores.shape[1]).minimum(limit)
        selected = select_lowest(scores, count)
        sound = limit > 0  # 0 is where the official code wraps around and masks everything
        condition = {name: case.tensors[name].flatten(1) for name in ("inputs", "cond_inputs", "cond_mask")}
        shown = condition["cond_inputs"].masked_fill(condition["cond_mask"] == 0, MASK_TOKEN)
        shown = torch.where(selected, shown, condition["inputs"])
        assert_equal(shown[sound], case.tensors[f"{prefix}/masked_inputs"].flatten(1)[sound], f"{prefix} inputs")
        if f"{prefix}/weights" in case.tensors:
            weights = case.tensors[f"{prefix}/weights"].flatten(1)
            assert_equal(selected[sound].float(), weights[sound], f"{prefix} weights")


@for_each(CASES, "*sequence_assembly*")
def test_sequences(case: Case):
    info, tensors = case.info, case.tensors
    for prefix in case.subcases("masked_inputs"):
        recorded, latent_shape = tensors[f"{prefix}/masked_inputs"], tuple(info["latent_shape"])
        multi = recorded.shape[1] == math.prod(latent_shape) + 2
        config = MagvitConfig(
            1, 8, 1, 8, info["codebook"], info["num_classes"], 16 if multi else 1, latent_shape, task_token=multi
        )  # fmt: skip
        described = info.get("info", {}).get(f"{prefix}/", {})
        assert config.vocab_size == described.get("vocab_size", config.vocab_size)
        slots = recorded[:, : config.prefix_length]
        task = our_task(prefix.split("/")[-1], described.get("task_token"), slots, config.unconditional_class_id)
        assert config.task_token_id(task) == described.get("task_token", config.task_token_id(task))
        mode = "none" if task == "class-conditional" else "cond->input"
        masked = masked_by(mode, case, tensors["mask_score"], torch.tensor(info["mask_rate"]))
        model, label = Magvit(config), tensors["label"].flatten()
        b = len(label)
        hidden = masked.inputs.masked_fill(masked.is_masked | masked.is_refined, MASK_TOKEN)
        start = model.prefix(task, label, b)
        sequences = {
            "masked_inputs": torch.cat([start, masked.inputs.flatten(1)], 1),
            "targets": torch.cat([start, tensors["inputs"].flatten(1)], 1),
            "uncond_masked_inputs": torch.cat([model.prefix(task, label, b, unconditional=True), hidden.flatten(1)], 1),
            "weights": torch.cat([torch.zeros(start.shape), torch.ones_like(hidden.flatten(1)).float()], 1),
        }
        for field, value in sequences.items():
            if f"{prefix}/{field}" in tensors:
                assert_equal(value, tensors[f"{prefix}/{field}"], f"{prefix}/{field}")


@for_each(CASES, "*tasks*")
def test_tasks(case: Case):
    info = case.info
    video = rearrange(case.tensors["video_u8"].float() / 255, "b t h w c -> b c t h w")
    first, both = info.get("frame_prediction", {}), info.get("frame_interpolation", {})
    first = first.get("cond_frames", 1), first.get("cond_latent_frames", 1)
    both = both.get("cond_frames_each_end", 1), both.get("cond_latent_frames_each_end", 1)
    seen = set()
    for prefix in case.subcases("latent_mask"):
        official = prefix.split("/")[-1]
        if official in EXTRA_TASKS:
            continue
        task = OUR_TASKS[official]
        frames, latent_frames = both if task == "frame-interpolation" else first
        seen.add(task)
        fields = case.under(f"{prefix}/")
        expected = fields["latent_mask"].bool()
        t, h, w = expected.shape[-3:]
        latent = condition_region(task, (t, h, w), latent_frames, latent_frames)
        assert_equal(latent.expand(expected.shape), expected, f"{prefix} latent mask")
        if "video_mask" in fields:
            mask = tasks.pixel_mask(task, *video.shape[-3:], frames)
            assert_equal(mask[None, ..., None].expand(fields["video_mask"].shape), fields["video_mask"].bool(), prefix)
        if "video_mask_row" in fields:
            t, w = fields["video_mask_row"].shape
            h = fields["video_mask_col"].shape[1]
            mask = tasks.pixel_mask(task, t, h, w, frames)
            assert_equal(mask[:, h // 2], fields["video_mask_row"].bool(), f"{prefix} middle row")
            assert_equal(mask[:, :, w // 2], fields["video_mask_col"].bool(), f"{prefix} middle column")
        shown = (tasks.condition_video(task, video * 2 - 1, frames) + 1) / 2
        shown = rearrange(shown, "b c t h w -> b t h w c")
        if "cond_video_u8" in fields:
            assert_close(shown * 255, fields["cond_video_u8"].float(), atol=1e-3, what=prefix)
        if "cond_video_f32" in fields:
            assert_close(shown, fields["cond_video_f32"], atol=1e-6, what=prefix)
        token = info.get("info", {}).get(official, {}).get("task_token")
        if token is not None:
            assert MagvitConfig.paper("Ti", num_special_tokens=16).task_token_id(task) == token
    assert seen and seen <= set(TASKS)


# -------------------------------------------------------------------------------------------------------- transformer


@for_each(CASES, "*bert_forward*")
def test_transformer_forward(case: Case):
    config = bert_config(case.info["config"])
    model = magvit_flax.load_transformer(case.under("params/"), config).eval()
    outputs: dict[str, Tensor] = {}
    model.embedding_norm.register_forward_hook(record_output(outputs, "BertEmbed_0"))
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        name = f"BertLayer_{index}"
        block.register_forward_hook(record_output(outputs, name))
        block.attention_norm.register_forward_hook(record_output(outputs, f"{name}/BertAttention_0"))
    with torch.no_grad():
        logits = model(case.tensors["input_ids"])
    assert_close(logits, case.tensors["logits"], atol=2e-4, what="logits")
    for name, expected in case.under("activations/").items():
        if name in outputs:
            assert_close(outputs[name], expected, atol=5e-5, what=name)


def test_inferred_configuration_is_the_described_one():
    for case in [case for case in CASES if fnmatch.fnmatch(case.name, "*bert_forward*")]:
        described = bert_config(case.info["config"])
        flax = case.under("params/")
        inferred = magvit_flax.infer_transformer_config(
            flax, described.latent_shape, described.codebook_size, described.num_classes
        )
        assert inferred == described


# ----------------------------------------------------------------------------------------------------------- decoding


def check_trajectory(fields: dict[str, Tensor], model: Recorder, events: list, what: str) -> None:
    """Every decision of every step; the state after the last step is not compared, since nothing reads it."""
    steps = {name.removeprefix("steps/"): value for name, value in fields.items() if name.startswith("steps/")}
    assert_equal(events[-1].proposal, fields["final_tokens"], f"{what} result")
    known = torch.zeros_like(fields["final_tokens"], dtype=torch.bool)
    if "init_unknown" in fields:
        known = ~fields["init_unknown"].bool()
    for k, event in enumerate(events):
        where = f"{what} step {k}"
        known = known | event.decided
        if "input_tokens" in steps:
            assert_equal(model.inputs[k], steps["input_tokens"][k], f"{where} input")
        if "uncond_input_tokens" in steps and model.unconditional_inputs:
            assert_equal(model.unconditional_inputs[k], steps["uncond_input_tokens"][k], f"{where} unconditional input")
        if "sampled_tokens" in steps:
            assert_equal(event.proposal, steps["sampled_tokens"][k], f"{where} sampled")
        if "mask_score" in steps:
            score = steps["mask_score"][k]
            finite = score.isfinite()
            assert_equal(event.confidence.isfinite(), finite, f"{where} scored positions")
            assert_close(event.confidence[finite], score[finite], atol=3e-4, rtol=1e-5, what=f"{where} score")
        if k == len(events) - 1:
            return
        if "next_tokens" in steps:
            assert_equal(event.tokens, steps["next_tokens"][k], f"{where} next tokens")
        if "next_unknown" in steps:
            assert_equal(~known, steps["next_unknown"][k].bool(), f"{where} next unknown")


@for_each(CASES, "*decode_toy*")
def test_decoding_of_toy_logits(case: Case):
    for name, described in case.info["cases"].items():
        fields = case.under(f"{name}/")
        if not fields:
            continue
        mode = described["condition_mode"]
        config = MaskedSamplerConfig(**renamed(described, TOY_KEYS), keep_given=mode in ("input->input", "cond->cond"))
        model = Recorder(ToyModel(case))
        shown = case.tensors["inputs" if mode == "input->input" else "cond_tokens"]
        condition = MaskedCondition("class-conditional", len(shown))
        if mode is not None:
            condition = replace(condition, tokens=shown, region=fields["cond_mask"].bool())
        noise = RecordedNoise(fields)
        events = list(MaskedSampler(config).sample(model, condition, torch.Generator(), noise=noise))
        assert len(events) == config.num_decoding_steps
        check_trajectory(fields, model, events, name)


@for_each(CASES, "*decode_bert*")
def test_decoding_with_the_transformer(case: Case):
    weights = case.sibling(case.info["params_from"]) if "params_from" in case.info else case
    config = bert_config(weights.info["config"], case.info["latent_shape"])
    assert (config.codebook_size, config.num_classes) == (case.info["codebook"], case.info["num_classes"])
    model = magvit_flax.load_transformer(weights.under("params/"), config).eval()
    label = case.tensors["label"].flatten()
    for name, described in case.info["cases"].items():
        fields = case.under(f"{name}/")
        if not fields:
            continue
        official_task = described.get("task", re.sub(r"_guidance.*", "", name))
        token = described.get("task_token")
        task = our_task(official_task, token, fields.get("prefix"), config.unconditional_class_id)
        for field, unconditional in (("prefix", False), ("uncond_prefix", True)):
            if field in fields:
                assert_equal(model.prefix(task, label, len(label), unconditional), fields[field], f"{name} {field}")
        sampler = MaskedSampler(
            MaskedSamplerConfig(**renamed(described, TOY_KEYS), guidance_scale=1 + described.get("guidance_scale", 0.0))
        )
        recorder = Recorder(model)
        condition = MaskedCondition(task, len(label), label)
        if "cond_mask" in fields:
            condition = replace(condition, tokens=case.tensors["cond_tokens"], region=fields["cond_mask"].bool())
        events = list(sampler.sample(recorder, condition, torch.Generator(), noise=RecordedNoise(fields)))
        check_trajectory(fields, recorder, events, name)
        check_logits(model, recorder, sampler.config.guidance_scale, task, label, fields, name)


def check_logits(model: Magvit, recorder: Recorder, scale: float, task: str, label: Tensor, fields, name: str) -> None:
    for field, step in (("logits_step0", 0), ("logits_last", -1)):
        if field in fields:
            with torch.no_grad():
                logits = model.logits(recorder.inputs[step], task, label)
                if scale != 1:
                    other = model.logits(recorder.unconditional_inputs[step], task, label, unconditional=True)
                    logits = other + scale * (logits - other)
            assert_close(logits, fields[field], atol=3e-4, what=f"{name} {field}")


# ---------------------------------------------------------------------------------------------------------- tokenizer


def boundary(video: Tensor) -> Tensor:
    return rearrange(video, "b t h w c -> b c t h w") * 2 - 1


def official(video: Tensor) -> Tensor:
    return (rearrange(video, "b c t h w -> b t h w c") + 1) / 2


def tokenizer_runs() -> list:
    runs = []
    for case in (case for case in CASES if fnmatch.fnmatch(case.name, "*tokenizer_forward*")):
        paddings = case.subcases("indices") or [""]
        runs += [pytest.param(case, padding, id=f"{case.name}-{padding}") for padding in paddings]
    return runs


@pytest.mark.parametrize("case, padding", tokenizer_runs())
def test_tokenizer_forward(case: Case, padding: str):
    tokenizer, fields = tokenizer_of(case, padding), case.under(f"{padding}/" if padding else "")
    activations = record_res_blocks(tokenizer)
    with torch.no_grad():
        latents = tokenizer.encode_to_latents(boundary(case.tensors["input"]))
        tokens = tokenizer.quantizer.tokens(latents)
        decoded = official(tokenizer.decode(fields["indices"]))
    assert_equal(tokens, fields["indices"], "indices")
    if "latent" in fields:
        assert_close(rearrange(latents, "b d t h w -> b t h w d"), fields["latent"], atol=1e-4, what="latent")
    for name in ("reconstruction", "decoded_from_indices"):
        if name in fields:
            assert_close(decoded, fields[name], atol=1e-4, what=name)
    for name, expected in case.under(f"{padding}/activations/".removeprefix("/")).items():
        actual = rearrange(activations[name], "b c t h w -> b t h w c")
        assert_close(actual, expected, atol=1e-4, what=name)


@pytest.mark.parametrize("case, padding", tokenizer_runs())
def test_tokenizer_losses_and_gradients(case: Case, padding: str):
    expected = case.under(f"{padding}/train/".removeprefix("/"))
    if not expected:
        pytest.skip("no training values for this padding")
    tokenizer = tokenizer_of(case, padding)
    output = tokenizer.forward_train(boundary(case.tensors["input"]))
    output.loss.backward()
    check_quantizer_losses(output.losses, expected, rtol=2e-4)
    if "l2" in expected:
        assert_close(output.losses["reconstruction"], expected["l2"].squeeze(), rtol=2e-4, what="squared error")
    gradients = {name: p.grad for name, p in tokenizer.named_parameters() if p.grad is not None}
    flax = magvit_flax.to_flax(gradients, magvit_flax.tokenizer_layout(tokenizer.config))
    for name, value in case.under(f"{padding}/train/grad/".removeprefix("/")).items():
        assert_close(flax[name], value, atol=0.03 * float(value.abs().max()), what=name)


def check_quantizer_losses(losses: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    terms = {"e_latent_loss": "commitment", "q_latent_loss": "codebook", "entropy_loss": "entropy"}
    total = sum(losses[name] for name in terms.values())
    for theirs, value in {**{t: losses[ours] for t, ours in terms.items()}, "quantizer_loss": total}.items():
        if theirs in expected:
            assert_close(value, expected[theirs].squeeze(), rtol=rtol, what=theirs)


# ------------------------------------------------------------------------------------------------------------- losses


@for_each(CASES, "*losses*")
def test_cross_entropy(case: Case):
    fields = case.under("ce/")
    for name, expected in fields.items():
        if name.startswith("loss_smoothing"):
            smoothing = float(name.removeprefix("loss_smoothing"))
            loss, _ = masked_cross_entropy(fields["logits"], fields["labels"], fields["weights"].float(), smoothing)
            assert_close(loss, expected.squeeze(), rtol=1e-4, what=name)


@for_each(CASES, "*losses*")
def test_entropy_and_quantizer_losses(case: Case):
    for name, expected in case.under("entropy/").items():
        if name != "affinity":
            kind, temperature = name.rsplit("_", 1)
            actual = entropy_loss(case.tensors["entropy/affinity"], float(temperature), cast(EntropyKind, kind))
            assert_close(actual, expected.squeeze(), rtol=1e-4, what=name)
    for prefix in case.subcases("quantizer_loss"):
        _, kind, temperature = prefix.split("/")
        codebook = case.tensors["codebook"]
        config = VectorQuantizerConfig(
            *codebook.shape, entropy_temperature=float(temperature), entropy_kind=cast(EntropyKind, kind)
        )
        quantizer = VectorQuantizer(config)
        quantizer.codebook.data.copy_(codebook)
        quantized, tokens, losses = quantizer(rearrange(case.tensors["latent"], "b t h w d -> b d t h w"))
        check_quantizer_losses(losses, case.under(f"{prefix}/"), rtol=1e-4)
        if "quant/indices" in case.tensors:
            assert_equal(tokens, case.tensors["quant/indices"], "indices")
        expected = case.tensors.get("quant/quantized_straight_through")
        if expected is not None:
            assert_close(rearrange(quantized, "b d t h w -> b t h w d"), expected, atol=1e-5, what="straight-through")


# ----------------------------------------------------------------------------------------------------------- training


def train_runs() -> list:
    runs = []
    for case in (case for case in CASES if fnmatch.fnmatch(case.name, "*transformer_train_steps*")):
        runs += [pytest.param(case, name, id=f"{case.name}-{name}") for name in case.info["cases"]]
    return runs


@pytest.mark.parametrize("case, name", train_runs())
def test_training_steps(case: Case, name: str):
    described, fields = renamed(case.info["cases"][name], TRAIN_KEYS), case.under(f"{name}/")
    groups = tuple(described.get("weight_mode", "mask+refine+recons").split("+"))
    config = bert_config(case.info["config"], dropout=0.0, loss_groups=groups)
    model = magvit_flax.load_transformer(case.under("params/"), config).train()
    layout = magvit_flax.transformer_layout(config)
    optimiser, scheduler = optimiser_of(case, model)
    slots = fields["step0/model_input"][:, : config.prefix_length] if "step0/model_input" in fields else None
    task = our_task(described.get("task", ""), described.get("token"), slots, config.unconditional_class_id)
    step = 0
    while f"step{step}/tokens" in fields:
        data = {key.removeprefix(f"step{step}/"): v for key, v in fields.items() if key.startswith(f"step{step}/")}
        masked = masked_step(data, fields.get("cond_mask"))
        label = data["label"].flatten() if "label" in data else None
        check_step_input(model, masked, task, label, data, groups, f"{name} step {step}")
        optimiser.zero_grad()
        loss, _ = model.loss_of(data["tokens"], masked, task, label)
        loss.backward()
        own_gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        gradients = magvit_flax.to_flax(own_gradients, layout, config.num_heads)
        for key in (key for key in data if key.startswith("grad/")):
            assert_close(gradients[key.removeprefix("grad/")], data[key], rtol=2e-3, atol=1e-6, what=key)
        norm = clip_gradients(model, described.get("max_grad_norm"))
        if "grad_norm_unclipped" in data:
            assert_close(norm, data["grad_norm_unclipped"].squeeze(), rtol=2e-3, what="gradient norm")
        clipped = norm.clamp(max=described.get("max_grad_norm"))
        rate = torch.tensor(optimiser.param_groups[0]["lr"])
        measured = {"token_loss": loss, "total_loss": loss, "lr": rate, "grad_norm": clipped}
        for metric, value in measured.items():
            if f"metrics/{metric}" in fields:
                assert_close(
                    value.float(),
                    fields[f"metrics/{metric}"][step],
                    rtol=2e-3 if metric == "grad_norm" else 1e-4,
                    what=f"{metric} step {step}",
                )
        optimiser.step()
        scheduler.step()
        step += 1
    assert step > 0
    after = magvit_flax.to_flax(model.state_dict(), layout, config.num_heads)
    for key in (key for key in fields if key.startswith("after")):
        assert_close(after[key.split("/", 1)[1]], fields[key], atol=2e-5, what=f"{name} {key}")


def masked_step(data: dict[str, Tensor], condition_mask: Tensor | None):
    rate = cosine_mask_ratio(data["uniform_for_rate"].squeeze())
    condition_mask = condition_mask.bool() if "cond_tokens" in data and condition_mask is not None else None
    return mask_tokens(data["tokens"], data["mask_score"], rate, data.get("cond_tokens"), condition_mask)


def check_step_input(model: Magvit, masked, task: str, label: Tensor | None, data, groups, what: str) -> None:
    prefix = model.prefix(task, label, len(masked.inputs))
    if "model_input" in data:
        sequence = torch.cat([prefix, masked.inputs.flatten(1)], 1)
        assert_equal(sequence, data["model_input"], f"{what} input")
    if "weights" in data:
        weights = torch.stack([masked.group(group) for group in groups]).sum(0).float().flatten(1)
        assert_equal(torch.cat([torch.zeros(prefix.shape), weights], 1), data["weights"], f"{what} weights")


# ------------------------------------------------------------------------------------------------------ miscellaneous


@for_each(CASES, "*misc*")
def test_learning_rates(case: Case):
    for name, described in case.info.get("lr", {}).items():
        steps, expected = case.tensors.get(f"lr/{name}/step"), case.tensors.get(f"lr/{name}/value")
        if steps is None or expected is None:
            continue
        factors = [learning_rate_factor(step, described["warmup"], described["total"]) for step in steps.tolist()]
        assert_close(torch.tensor(factors) * described["base"], expected, rtol=1e-5, atol=1e-12, what=name)


@for_each(CASES, "*misc*")
def test_nucleus_and_task_order(case: Case):
    for name, expected in case.under("topp/filtered_").items():
        kept = nucleus(case.tensors["topp/logits"], float(name))
        assert_equal(kept, expected > -1e6, f"top-p {name}")
    if "taskseq/counts" in case.tensors:
        weights, counts = case.tensors["taskseq/weights"].tolist(), case.tensors["taskseq/counts"].tolist()
        mix: dict[str, float] = dict(zip(TASKS, weights, strict=False))
        order = tasks.balanced_task_order(mix, torch.Generator().manual_seed(0))
        assert [order.count(task) for task in mix] == counts
