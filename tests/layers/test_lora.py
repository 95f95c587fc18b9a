"""LoRA on whole networks: nothing changes at first, only the factors train, and merging keeps outputs and names."""

import copy

import pytest
import torch
from torch import nn

from mutoscope.errors import UserError
from mutoscope.families import family_of
from mutoscope.layers.lora import LoRAConfig, LoRALinear, add_lora, is_target, linear_layers, merge_lora
from mutoscope.models.base import AnyModel
from mutoscope.training.config import OptimConfig
from mutoscope.training.optim import decayed_parameters, make_ema, make_optimizer
from tiny_magi import tiny_magi
from tiny_models import tiny_model, tiny_par
from tiny_nova import tiny_nova

NETWORKS = {"magi": tiny_magi, "magvit": tiny_model, "nova": tiny_nova, "par": tiny_par}
CONFIG = LoRAConfig(r=3, alpha=6.0)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2, bias=False))


def with_random_factors(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.up, std=0.1)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_merging_gives_the_same_weights_and_the_names_of_the_plain_network(name: str):
    plain: AnyModel = NETWORKS[name]()
    changed = copy.deepcopy(plain)
    names = add_lora(changed, CONFIG, family_of(plain.config).lora_modules)
    effective = {name: layer.weight for name, layer in changed.named_modules() if isinstance(layer, LoRALinear)}
    assert set(effective) == set(names) and len(names) > 3
    assert all(torch.equal(effective[key], plain.state_dict()[f"{key}.weight"]) for key in names)
    with_random_factors(changed)
    wanted = {name: layer.weight.detach() for name, layer in changed.named_modules() if isinstance(layer, LoRALinear)}
    merged = merge_lora(changed).state_dict()
    assert {key: value.shape for key, value in merged.items()} == {k: v.shape for k, v in plain.state_dict().items()}
    for key, value in merged.items():
        layer = key.removesuffix(".weight")
        expected = wanted[layer] if layer in wanted else plain.state_dict()[key]
        assert torch.equal(value, expected), key
        assert torch.equal(value, plain.state_dict()[key]) == (layer not in wanted)


def test_outputs_before_and_after_merging_are_equal_up_to_rounding():
    network = small()
    x = torch.randn(5, 4)
    before = network(x)
    add_lora(network, CONFIG, ("0", "2"))
    assert torch.equal(network(x), before)  # up starts at zero
    with_random_factors(network)
    changed = network(x)
    assert not torch.allclose(changed, before)
    torch.testing.assert_close(merge_lora(network)(x), changed)
    assert not any(isinstance(module, LoRALinear) for module in network.modules())


def test_only_the_factors_train():
    network = small()
    frozen = {name: value.clone() for name, value in network.state_dict().items()}
    add_lora(network, CONFIG, ("0",))
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"0.down", "0.up"}
    optimizer = make_optimizer(network, OptimConfig(0.1, weight_decay=0.1))
    for _ in range(2):
        network(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()
    after = network.state_dict()
    assert torch.equal(after["0.base"], frozen["0.weight"]) and torch.equal(after["2.weight"], frozen["2.weight"])
    assert bool(after["0.up"].abs().sum() > 0)


def test_factors_get_neither_weight_decay_nor_orthogonal_updates():
    network = small()
    add_lora(network, CONFIG, ("0", "2"))
    assert not any(parameter.requires_grad for parameter in decayed_parameters(network))
    optimizer = make_optimizer(network, OptimConfig(0.1, weight_decay=0.1, muon_learning_rate=0.2))
    for group in optimizer.param_groups:
        if group["params"]:
            assert (group["weight_decay"], group["lr"], group["orthogonal"]) == (0.0, 0.1, False)


def test_averaged_weights_and_state_dicts_hold_base_and_factors():
    network = small()
    add_lora(network, CONFIG, ("0",))
    ema = make_ema(network, 0.5)
    assert ema is not None
    with_random_factors(network)
    ema.update_parameters(network)
    assert torch.equal(ema.module[0].base, network[0].base)
    torch.testing.assert_close(ema.module[0].up, network[0].up / 2)
    again = small()
    add_lora(again, CONFIG, ("0",))
    again.load_state_dict(network.state_dict())
    assert torch.equal(again[0].weight, network[0].weight)


def test_targets_are_the_ends_of_dotted_names():
    assert is_target("blocks.0.attention.qkv", "qkv") and is_target("blocks.0.attention.qkv", "attention.qkv")
    assert is_target("head.blocks.1.mlp.0", "head.blocks.*") and is_target("qkv", "qkv")
    assert not is_target("blocks.0.attention.my_qkv", "qkv") and not is_target("blocks.0.qkv.inner", "qkv")
    assert [name for name, *_ in linear_layers(small())] == ["0", "2"]


def test_named_targets_replace_the_defaults_and_unknown_ones_are_refused():
    network = tiny_model()
    names = add_lora(network, LoRAConfig(r=2, target_modules=("mlp_in",)), ("attention.qkv",))
    assert names == ("blocks.0.mlp_in",)
    with pytest.raises(UserError, match="'mlp_inn', which no linear layer is: did you mean 'mlp_in'"):
        add_lora(tiny_model(), LoRAConfig(target_modules=("mlp_inn",)), ())


@pytest.mark.parametrize("values", [{"r": 0}, {"alpha": 0.0}, {"alpha": float("nan")}])
def test_impossible_sizes_are_refused(values: dict[str, float]):
    with pytest.raises(UserError, match="lora"):
        LoRAConfig(**values)  # type: ignore[arg-type]
