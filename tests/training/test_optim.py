import math

import pytest
import torch
from torch import nn

from mutoscope.errors import UserError
from mutoscope.models.magvit import Magvit, MagvitConfig
from mutoscope.training.config import OptimConfig
from mutoscope.training.optim import (
    clip_gradients,
    decayed_parameters,
    learning_rate_factor,
    make_ema,
    make_optimizer,
    make_scheduler,
    set_learning_rate,
    warmed_decay,
)


def magvit() -> Magvit:
    return Magvit(MagvitConfig(1, 8, 2, 16, codebook_size=7, latent_shape=(1, 2, 2), tasks=("class-conditional",)))


def test_the_schedule_warms_up_from_zero_and_falls_to_zero_on_a_cosine():
    factors = [learning_rate_factor(step, 4, 12) for step in range(12)]
    assert factors[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for step in range(4, 12):
        assert factors[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * (step - 4) / 8)))
    assert factors[8] == pytest.approx(0.5) and 0 < factors[-1] < 0.04


def test_without_warm_up_the_first_update_has_the_peak_rate():
    assert learning_rate_factor(0, 0, 10) == 1.0


def test_the_first_update_of_a_warmed_up_run_changes_nothing():
    model = nn.Linear(3, 3)
    before = model.weight.clone()
    config = OptimConfig(peak_learning_rate=0.1, warmup_steps=2, weight_decay=0.5)
    optimizer = make_optimizer(model, config)
    scheduler = make_scheduler(optimizer, config, 10)
    for step in range(2):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
        assert torch.equal(model.weight, before) == (step == 0)


@pytest.mark.parametrize("warmup", [10, 11, -1])
def test_a_warm_up_that_does_not_fit_is_refused(warmup):
    with pytest.raises(UserError, match="warmup_steps"):
        config = OptimConfig(warmup_steps=warmup)
        make_scheduler(make_optimizer(nn.Linear(1, 1), config), config, 10)


def test_decay_acts_on_dense_and_attention_matrices_only():
    model = magvit()
    decayed = {id(p) for p in decayed_parameters(model)}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    block = "blocks.0."
    assert names == {
        block + "attention.qkv.weight",
        block + "attention.output.weight",
        block + "mlp_in.weight",
        block + "mlp_out.weight",
        "head.dense.weight",
    }


def test_the_optimizer_holds_every_parameter_once():
    model = magvit()
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.045))
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.045]


def test_decay_is_decoupled_from_the_gradient():
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    optimizer = make_optimizer(model, OptimConfig(peak_learning_rate=0.1, weight_decay=0.5))
    model.weight.grad, model.bias.grad = torch.zeros(1, 1), torch.zeros(1)
    optimizer.step()
    assert model.weight.item() == pytest.approx(1 - 0.1 * 0.5)


def test_a_tied_output_matrix_counts_as_an_embedding():
    embedding, output = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    output.weight = embedding.weight
    assert decayed_parameters(nn.ModuleList([embedding, output])) == []


def test_without_decay_and_beta1_it_is_plain_adam():
    config = OptimConfig(peak_learning_rate=0.1, beta1=0.0, beta2=0.99, eps=1e-8)
    ours, plain = nn.Linear(2, 2), nn.Linear(2, 2)
    plain.load_state_dict(ours.state_dict())
    reference = torch.optim.Adam(plain.parameters(), lr=0.1, betas=(0.0, 0.99), eps=1e-8)
    for model, optimizer in ((ours, make_optimizer(ours, config)), (plain, reference)):
        for scale in (1.0, -0.3, 2.0):
            optimizer.zero_grad()
            (scale * model(torch.tensor([[1.0, -2.0]]))).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, plain.weight)


def test_averaged_weights_start_from_the_initial_ones_without_bias():
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    ema = make_ema(model, 0.9)
    nn.init.zeros_(model.weight)
    ema.update_parameters(model)
    assert ema.module.weight.item() == pytest.approx(0.9)
    assert make_ema(model, None) is None


def test_a_warmed_average_follows_the_weights_from_the_first_step_on():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema, expected = make_ema(model, 0.5, warmup=True), 0.0
    for step, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5]):
        nn.init.constant_(model.weight, float(step + 1))
        ema.update_parameters(model)
        expected = decay * expected + (1 - decay) * (step + 1)
        assert ema.module.weight.item() == pytest.approx(expected)
        assert warmed_decay(0.5, step) == pytest.approx(decay)


def test_a_warmed_average_continues_from_its_state():
    model = nn.Linear(3, 2)
    averages = [make_ema(model, 0.9, warmup=True)]
    for step in range(6):
        if step == 3:
            averages.append(make_ema(nn.Linear(3, 2), 0.9, warmup=True))
            averages[1].load_state_dict(averages[0].state_dict())
        nn.init.constant_(model.weight, float(step))
        for ema in averages:
            ema.update_parameters(model)
    found = [ema.module.state_dict()["weight"] for ema in averages]
    assert torch.equal(*found) and not torch.equal(found[0], model.weight)


def test_clipping_bounds_the_global_norm_and_reports_the_one_before():
    model = nn.Linear(2, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    assert clip_gradients(model, None).item() == pytest.approx(5.0)
    assert clip_gradients(model, 1.0).item() == pytest.approx(5.0)
    assert clip_gradients(model, None).item() == pytest.approx(1.0, abs=1e-5)


def test_a_resumed_optimiser_takes_the_rate_of_the_present_schedule():
    model = nn.Linear(1, 1)
    config = OptimConfig(peak_learning_rate=2.0)
    optimizer = make_optimizer(model, config)
    scheduler = make_scheduler(optimizer, config, 8)
    set_learning_rate(optimizer, scheduler, 4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0)


def test_embeddings_are_decayed_only_when_the_recipe_says_so():
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4))
    for decayed, expected in ((False, {0.0}), (True, {0.1})):
        optimizer = make_optimizer(model, OptimConfig(weight_decay=0.1, decay_embeddings=decayed))
        found = {g["weight_decay"] for g in optimizer.param_groups if any(p is model[0].weight for p in g["params"])}
        assert found == expected
        assert sum(len(g["params"]) for g in optimizer.param_groups) == 3


def test_decay_of_tensors_excludes_vectors_and_a_models_head():
    model = nn.ModuleDict({"body": nn.Linear(3, 4), "table": nn.Embedding(2, 3), "head": nn.Linear(4, 2)})
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.1, decay_tensors=True))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(model["body"].weight), id(model["table"].weight)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 5


def test_a_network_clipped_beside_the_first_one_cannot_hide_a_gradient_that_is_not_finite():
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    for network, gradient in ((first, 1.0), (second, float("inf"))):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
    both = nn.ModuleList([first, second])
    assert torch.isnan(clip_gradients(both, 1.0, [first, second]))
    assert torch.isfinite(clip_gradients(both, 1.0, [first]))
