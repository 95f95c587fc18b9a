import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.layers.condition_regions import TASKS
from mutoscope.layers.token_masking import MASK_TOKEN
from mutoscope.models.magvit import Magvit, MagvitBatch, MagvitConfig, mask_tokens, masked_cross_entropy
from mutoscope.models.magvit.config import ConditionMode, PaperSize

# (classes, special tokens, task token) of the published models
UCF101, BAIR, BAIR_MT, SSV2_MT = (101, 1, False), (0, 1, False), (0, 16, True), (174, 16, True)

PAPER_PARAMETERS = {
    ("B", UCF101): 87_301_991, ("B", BAIR): 87_224_322, ("B", BAIR_MT): 87_236_625, ("B", SSV2_MT): 87_370_431,
    ("L", UCF101): 305_567_847, ("L", BAIR): 305_464_322, ("L", BAIR_MT): 305_480_721, ("L", SSV2_MT): 305_659_071,
    ("H", UCF101): 634_078_567, ("H", BAIR): 633_949_186, ("H", BAIR_MT): 633_969_681, ("H", SSV2_MT): 634_192_575,
}  # fmt: skip

SMALL = MagvitConfig(
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    mlp_size=64,
    codebook_size=20,
    num_classes=5,
    num_special_tokens=16,
    latent_shape=(2, 4, 4),
    task_token=True,
)


def small(**overrides) -> Magvit:
    torch.manual_seed(0)
    return Magvit(MagvitConfig(**{**SMALL.__dict__, **overrides}))


def random_tokens(b: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, SMALL.codebook_size, (b, *SMALL.latent_shape), generator=seeded(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("size, dataset", PAPER_PARAMETERS, ids=str)
def test_parameter_counts_of_the_paper(size: PaperSize, dataset: tuple[int, int, bool]):
    classes, special, task_token = dataset
    config = MagvitConfig.paper(size, num_classes=classes, num_special_tokens=special, task_token=task_token)
    with torch.device("meta"):
        model = Magvit(config)
    assert sum(p.numel() for p in model.parameters()) == PAPER_PARAMETERS[size, dataset]


def test_vocabulary_and_sequence_of_the_paper():
    config = MagvitConfig.paper("B", num_classes=174, num_special_tokens=16, task_token=True)
    assert (config.vocab_size, config.prefix_length + config.num_tokens) == (1215, 1026)
    assert MagvitConfig.paper("B", num_classes=101).vocab_size == 1127


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_heads": 3},
        {"num_special_tokens": 1},
        {"tasks": ("frame-predictoin",)},
        {"loss_groups": ()},
        {"loss_groups": ("masks",)},
        {"condition_mode": "prefix"},
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(wrong: dict):
    with pytest.raises(UserError):
        MagvitConfig(**{**SMALL.__dict__, **wrong})


def test_lists_from_json_give_the_same_configuration():
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL.__dict__.items()}
    assert replace(SMALL, **listed) == SMALL


def test_unknown_size_is_refused():
    with pytest.raises(UserError, match="XXL"):
        MagvitConfig.paper("XXL")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ network


def test_initial_weights_follow_the_recipe():
    model = small(hidden_size=64)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            assert bool((parameter == 1).all()), name
        elif name.endswith("bias"):
            assert bool((parameter == 0).all()), name
        else:
            assert float(parameter.detach().abs().max()) <= 0.04, name
            assert 0.015 < float(parameter.detach().std()) < 0.02, name  # cut at two sigma: 0.88 of 0.02


def test_the_output_matrix_is_the_embedding():
    model = small().eval()
    tokens = random_tokens(1)
    before = model.logits(tokens, "class-conditional")
    with torch.no_grad():
        model.token_embedding.weight[7] *= 2
    changed = (model.logits(tokens.clamp(max=6), "class-conditional") - before).abs()
    assert float(changed[..., 7].detach().max()) > 0
    assert not any(name.startswith("head.") and p.ndim == 2 and p.shape[0] == SMALL.vocab_size
                   for name, p in model.named_parameters())  # fmt: skip


def test_code_logits_are_the_first_rows_of_all_logits():
    model, tokens, label = small().eval(), random_tokens(), torch.tensor([0, 1, 4])
    ids = torch.cat([model.prefix("class-conditional", label, 3), tokens.flatten(1)], 1)
    everything = model(ids)[:, SMALL.prefix_length :, : SMALL.codebook_size]
    torch.testing.assert_close(model.logits(tokens, "class-conditional", label).flatten(1, 3), everything)


def test_every_token_sees_every_other():
    model, tokens = small().eval(), random_tokens(1)
    before = model.logits(tokens, "class-conditional")
    for position in ((0, 0, 0), (-1, -1, -1)):
        changed = tokens.clone()
        changed[0][position] = (changed[0][position] + 1) % SMALL.codebook_size
        assert bool(((model.logits(changed, "class-conditional") - before).abs().amax(-1) > 0).all())


def test_prefix_holds_task_and_class():
    model, label = small(), torch.tensor([0, 4])
    nothing = SMALL.unconditional_class_id
    assert model.prefix("class-conditional", label, 2).tolist() == [[-3, 20], [-3, 24]]
    assert model.prefix("class-conditional", None, 2).tolist() == [[-3, nothing]] * 2
    assert model.prefix("frame-prediction", label, 2).tolist() == [[-4, nothing]] * 2
    assert model.prefix("class-conditional-frame-prediction", label, 2).tolist() == [[-4, 20], [-4, 24]]
    assert model.prefix("inpaint-central", label, 2).tolist() == [[-6, nothing]] * 2
    assert model.prefix("frame-prediction", label, 2, unconditional=True).tolist() == [[-3, nothing]] * 2


def test_single_task_sequences_have_no_task_token():
    model = small(task_token=False, num_special_tokens=1)
    assert model.prefix("class-conditional", torch.tensor([2]), 1).tolist() == [[22]]


def test_without_full_generation_the_unconditional_pass_keeps_its_task():
    model = small(tasks=("frame-prediction", "outpaint-central"))
    assert model.prefix("outpaint-central", None, 1, unconditional=True).tolist() == [
        [-6, SMALL.unconditional_class_id]
    ]


def test_inpainting_may_have_its_own_token():
    model = small(separate_inpainting_token=True)
    assert model.prefix("inpaint-dynamic", None, 1)[0, 0] == -7
    assert model.prefix("outpaint-dynamic", None, 1)[0, 0] == -6


def test_the_class_slot_matters_and_differs_from_no_class():
    model, tokens = small().eval(), random_tokens(1)
    outputs = [
        model.logits(tokens, "class-conditional", label) for label in (None, torch.tensor([0]), torch.tensor([1]))
    ]
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])
    ignored = [model.logits(tokens, "frame-prediction", label) for label in (None, torch.tensor([0]))]
    assert torch.equal(*ignored)


@pytest.mark.parametrize("label", [-1, 6])
def test_labels_beyond_the_classes_are_refused(label: int):
    with pytest.raises(UserError, match="must lie in 0"):
        small().logits(random_tokens(1), "class-conditional", torch.tensor([label]))


def test_wrong_latent_shape_is_refused():
    with pytest.raises(UserError, match="shape"):
        small().logits(torch.zeros(1, 2, 4, 5, dtype=torch.long), "class-conditional")


# ------------------------------------------------------------------------------------------------------------ masking


@given(st.integers(0, 2**16), st.floats(0.001, 1), st.sampled_from(["cond->input", "input->input", "cond->cond"]))
def test_groups_partition_the_positions_with_loss(seed: int, ratio: float, mode: ConditionMode):
    tokens, condition_tokens = random_tokens(seed=seed), random_tokens(seed=seed + 1)
    condition_mask = torch.rand(SMALL.latent_shape, generator=seeded(seed)) < 0.4
    scores = torch.rand(tokens.shape, generator=seeded(seed + 2))
    masked = mask_tokens(tokens, scores, torch.tensor(ratio), condition_tokens, condition_mask, mode)
    groups = masked.is_masked.int() + masked.is_refined.int() + masked.is_reconstructed.int()
    protected = torch.zeros_like(condition_mask) if mode == "cond->input" else condition_mask
    assert bool((groups == (~protected).int()).all())
    assert bool(((masked.inputs == MASK_TOKEN) == masked.is_masked).all())
    assert bool((masked.inputs[masked.is_refined] == condition_tokens[masked.is_refined]).all())
    assert bool((masked.inputs[masked.is_reconstructed] == tokens[masked.is_reconstructed]).all())
    shown = condition_tokens if mode == "cond->cond" else tokens
    protected_positions = protected.expand_as(tokens)
    assert bool((masked.inputs[protected_positions] == shown[protected_positions]).all())
    selected = (masked.is_masked | masked.is_refined).flatten(1).sum(1)
    assert bool((selected == max(1, math.floor(torch.tensor(ratio) * int((~protected).sum())))).all())


def test_condition_positions_are_selected_as_often_as_others():
    tokens = random_tokens(64)
    condition_mask = torch.zeros(SMALL.latent_shape, dtype=torch.bool)
    condition_mask[0] = True
    scores = torch.rand(tokens.shape, generator=seeded())
    masked = mask_tokens(tokens, scores, torch.tensor(0.5), tokens, condition_mask)
    assert abs(int(masked.is_refined.sum()) / int(masked.is_masked.sum()) - 1) < 0.15


def test_baselines_mask_nothing_if_the_whole_clip_is_condition():
    tokens, everything = random_tokens(), torch.ones(SMALL.latent_shape, dtype=torch.bool)
    masked = mask_tokens(tokens, torch.rand(tokens.shape), torch.tensor(0.9), tokens, everything, "input->input")
    assert torch.equal(masked.inputs, tokens) and not bool(masked.is_reconstructed.any())


# --------------------------------------------------------------------------------------------------------------- loss


def test_cross_entropy_of_a_uniform_guess():
    logits, targets = torch.zeros(2, 3, 8), torch.zeros(2, 3, dtype=torch.long)
    loss, terms = masked_cross_entropy(logits, targets, torch.tensor([[1.0, 1, 0], [0, 0, 0]]), 0.1)
    assert float(loss) == pytest.approx(math.log(8) / 2)  # the second sample weighs nothing and counts 0
    assert terms.shape == (2, 3)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains(task: str):
    model = small()
    batch: MagvitBatch = {"tokens": random_tokens(), "label": torch.tensor([0, 1, 2]), "task": task,
             "condition_tokens": random_tokens(seed=1)}  # fmt: skip
    loss, parts = model.loss(batch, seeded())
    loss.backward()
    assert loss.isfinite() and set(parts) == {"mask_loss", "refine_loss", "recons_loss", "accuracy"}
    assert not any(value.requires_grad for value in parts.values())
    assert (parts["refine_loss"] > 0) == (task != "class-conditional")


def test_the_loss_is_the_mean_of_its_groups():
    model = small(dropout=0.0, label_smoothing=0.0)
    tokens = random_tokens()
    masked = mask_tokens(tokens, torch.rand(tokens.shape, generator=seeded()), torch.tensor(0.5), random_tokens(seed=1),
                         torch.arange(2)[:, None, None].expand(2, 4, 4) == 0)  # fmt: skip
    loss, parts = model.loss_of(tokens, masked, "frame-prediction", None)
    sizes = {name: int(masked.group(name).sum()) for name in ("mask", "refine", "recons")}
    mean = sum(parts[f"{name}_loss"] * size for name, size in sizes.items()) / tokens.numel()
    torch.testing.assert_close(loss.detach(), mean)


@pytest.mark.parametrize("groups", [("mask",), ("mask", "refine"), ("mask", "recons")], ids="+".join)
def test_only_the_chosen_groups_carry_loss(groups: tuple):
    model = small(dropout=0.0, loss_groups=groups)
    tokens, condition = random_tokens(1), random_tokens(1, seed=1)
    region = torch.zeros(SMALL.latent_shape, dtype=torch.bool)
    region[0] = True
    masked = mask_tokens(tokens, torch.rand(tokens.shape, generator=seeded()), torch.tensor(0.5), condition, region)
    loss, parts = model.loss_of(tokens, masked, "frame-prediction", None)
    sizes = {name: int(masked.group(name).sum()) for name in groups}
    mean = sum(parts[f"{name}_loss"] * size for name, size in sizes.items()) / sum(sizes.values())
    torch.testing.assert_close(loss.detach(), mean)


def test_equal_micro_batches_accumulate_to_the_whole():
    model = small(dropout=0.0)
    tokens, scores = random_tokens(4), torch.rand(4, *SMALL.latent_shape, generator=seeded())
    region = torch.rand(4, *SMALL.latent_shape, generator=seeded(1)) < 0.3
    masked = [mask_tokens(tokens[part], scores[part], torch.tensor(0.4), tokens[part], region[part], "input->input")
              for part in (slice(0, 4), slice(0, 2), slice(2, 4))]  # fmt: skip
    whole, first, second = (
        model.loss_of(tokens[part], m, "frame-prediction", None)[0]
        for part, m in zip((slice(0, 4), slice(0, 2), slice(2, 4)), masked, strict=True)
    )
    torch.testing.assert_close(whole, (first + second) / 2)


def test_the_same_generator_gives_the_same_loss():
    model = small(dropout=0.0)
    batch: MagvitBatch = {"tokens": random_tokens(), "label": torch.tensor([0, 1, 2]), "task": "class-conditional"}
    first, second, other = (model.loss(batch, seeded(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_dropped_labels_are_trained_as_no_class():
    labelled: MagvitBatch = {"tokens": random_tokens(), "label": torch.tensor([0, 1, 2]), "task": "class-conditional"}
    bare: MagvitBatch = {"tokens": random_tokens(), "task": "class-conditional"}
    kept, dropped = small(dropout=0.0), small(dropout=0.0, label_dropout=1 - 1e-9)
    assert torch.equal(dropped.loss(labelled, seeded())[0], kept.loss(bare, seeded())[0])
    assert not torch.equal(kept.loss(labelled, seeded())[0], kept.loss(bare, seeded())[0])
    some = small(label_dropout=0.5)._drop_labels(torch.zeros(400, dtype=torch.long), seeded())
    assert some is not None and 120 < int((some == SMALL.num_classes).sum()) < 280
    with pytest.raises(UserError, match="label_dropout"):
        small(label_dropout=1.0)


@pytest.mark.parametrize("task", ["frame-prediction", "class-conditional-frame-prediction", "inpaint-central"])
def test_the_class_slot_learns_the_class_of_the_context_frames(task: str):
    batch: MagvitBatch = {
        "tokens": random_tokens(),
        "label": torch.tensor([0, 1, 2]),
        "condition_tokens": random_tokens(seed=1),
        "task": task,
    }
    plain, model = small(dropout=0.0), small(dropout=0.0, class_loss=0.5)
    loss, parts = model.loss(batch, seeded())
    more = loss - plain.loss(batch, seeded())[0]
    if task == "inpaint-central":
        assert more == 0 and "class_loss" not in parts
    else:
        torch.testing.assert_close(more, 0.5 * parts["class_loss"])
        assert not parts["class_loss"].requires_grad


def test_a_model_without_frame_prediction_has_no_class_loss():
    task = "class-conditional-frame-prediction"
    batch: MagvitBatch = {
        "tokens": random_tokens(),
        "label": torch.tensor([0, 1, 2]),
        "condition_tokens": random_tokens(seed=1),
        "task": task,
    }
    assert "class_loss" not in small(tasks=(task,), class_loss=0.5).loss(batch, seeded())[1]


def test_class_logits_depend_on_the_context_frames_alone():
    model, tokens = small(dropout=0.0), random_tokens()
    later = torch.cat([tokens[:, :1], random_tokens(seed=1)[:, 1:]], dim=1)
    first = torch.cat([random_tokens(seed=1)[:, :1], tokens[:, 1:]], dim=1)
    logits = model.class_logits(tokens)
    assert torch.equal(model.class_logits(later), logits) and not torch.allclose(model.class_logits(first), logits)
    everything = model(torch.cat([model.prefix("frame-prediction", None, 3), tokens[:, 0].flatten(1)], dim=1))
    classes = everything[:, 1, SMALL.codebook_size : SMALL.codebook_size + SMALL.num_classes]
    torch.testing.assert_close(logits, classes)


@pytest.mark.parametrize(
    "wrong", [{"class_loss": -0.1}, {"class_loss": math.inf}, {"class_loss": 1.0, "num_classes": 0}]
)
def test_a_class_loss_that_cannot_be_is_refused(wrong: dict):
    with pytest.raises(UserError, match="class_loss"):
        small(**wrong)


def test_dropout_acts_in_training_only():
    model, without = small(dropout=0.5), small(dropout=0.0)
    without.load_state_dict(model.state_dict())
    batch: MagvitBatch = {"tokens": random_tokens(), "task": "class-conditional"}
    plain = without.loss(batch, seeded())[0]
    assert not torch.equal(model.loss(batch, seeded())[0], plain)
    assert torch.equal(model.eval().loss(batch, seeded())[0], plain)


def test_wrong_batches_are_refused():
    model, tokens = small(tasks=("frame-prediction",)), random_tokens()
    with pytest.raises(UserError, match="not trained"):
        model.loss({"tokens": tokens, "task": "inpaint-central"}, seeded())
    with pytest.raises(UserError, match="There is no task"):
        model.loss({"tokens": tokens, "task": "painting"}, seeded())
    with pytest.raises(UserError, match="condition_tokens"):
        model.loss({"tokens": tokens, "task": "frame-prediction"}, seeded())


def test_a_class_loss_without_labels_is_refused():
    batch: MagvitBatch = {"tokens": random_tokens(), "condition_tokens": random_tokens(), "task": "frame-prediction"}
    with pytest.raises(UserError, match="label of every clip"):
        small(class_loss=0.5).loss(batch, seeded())


def test_a_small_model_learns_a_constant_clip():
    model = small(dropout=0.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch: MagvitBatch = {"tokens": random_tokens(1).expand(4, -1, -1, -1), "label": torch.zeros(4, dtype=torch.long),
             "task": "class-conditional"}  # fmt: skip
    generator, losses = seeded(), []
    for _ in range(60):
        optimiser.zero_grad()
        loss, parts = model.loss(batch, generator)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 2.9 and losses[-1] < 0.5 and float(parts["accuracy"]) > 0.9


def test_five_context_frames_fill_two_latent_frames():
    config = MagvitConfig(1, 8, 2, 16, latent_shape=(4, 2, 2))
    rows = [int(config.condition_mask("frame-prediction", frames, 4)[:, 0, 0].sum()) for frames in (1, 4, 5, 8)]
    assert rows == [1, 1, 2, 2]
