"""The autoregressive baseline against its official implementation (arXiv 2212.05199, Tab. 6)."""

import torch

from mutoscope.interop import magvit_flax
from mutoscope.models.magvit.baselines import MagvitAR, MagvitARConfig
from parity.cases import Case, assert_close, family, for_each

CASES = family("magvit")


def model_of(case: Case) -> MagvitAR:
    """Only the vocabulary and the longest sequence are described, so all rows count as codes of one flat clip."""
    described = case.info["config"]
    assert not described["attention_bias"]
    config = MagvitARConfig(
        described["layers"], described["emb_dim"], described["heads"], described["mlp"],
        codebook_size=described["vocab"] - 2, latent_shape=(1, 1, described["max_len"] - 1),
        layer_norm_eps=described["layernorm_epsilon"], dropout=0.0,
    )  # fmt: skip
    model = MagvitAR(config).eval()
    model.load_state_dict(magvit_flax.from_flax(case.under("params/"), magvit_flax.autoregressive_layout(config)))
    return model


@for_each(CASES, "*lm_forward*")
def test_cached_decoding(case: Case):
    """The recorded training mode hides code 0 and the begin token from attention, a defect; decoding does not."""
    model, ids, expected = model_of(case), case.tensors["input_ids"], case.tensors["logits_cached_decode"]
    cache = model.new_cache(len(ids))
    with torch.no_grad():
        step_by_step = torch.cat([model(ids[:, i : i + 1], cache) for i in range(ids.shape[1])], dim=1)
        assert_close(step_by_step, expected, atol=1e-4, what="one by one")
        assert_close(model(ids), expected, atol=1e-4, what="all at once")


@for_each(CASES, "*lm_forward*")
def test_conversion_goes_both_ways(case: Case):
    model = model_of(case)
    layout, flax = magvit_flax.autoregressive_layout(model.config), case.under("params/")
    back = magvit_flax.to_flax(model.state_dict(), layout, model.config.num_heads)
    assert back.keys() == flax.keys() and all(torch.equal(back[name], flax[name]) for name in flax)
