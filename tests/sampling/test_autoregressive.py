import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.models.magvit.baselines import MagvitAR, MagvitARConfig
from mutoscope.sampling.autoregressive import AutoregressiveSampler, AutoregressiveSamplerConfig, TokenCondition

CONFIG = MagvitARConfig(2, 16, 2, 24, codebook_size=11, num_classes=3, latent_shape=(2, 2, 3), dropout=0.0)


def model() -> MagvitAR:
    torch.manual_seed(0)
    return MagvitAR(CONFIG).eval()


def draw(seed: int = 0, **options):
    sampler = AutoregressiveSampler(AutoregressiveSamplerConfig(**options))
    return list(sampler.sample(model(), TokenCondition(2, torch.tensor([0, 2])), torch.Generator().manual_seed(seed)))


def test_frames_are_reported_as_they_finish_and_never_change_afterwards():
    events = draw()
    assert [event.frames for event in events] == [slice(0, 1), slice(1, 2)]
    assert [event.is_last for event in events] == [False, True]
    assert torch.equal(events[0].tokens[:, 0], events[1].tokens[:, 0])
    assert torch.stack([event.decided for event in events]).sum(0).eq(1).all()
    assert events[-1].confidence.isfinite().all()


def test_one_seed_gives_one_result():
    assert torch.equal(draw(3)[-1].tokens, draw(3)[-1].tokens)
    assert not torch.equal(draw(3)[-1].tokens, draw(4)[-1].tokens)


def test_without_temperature_every_token_is_the_most_probable_one_given_those_before():
    tokens = draw(temperature=0.0)[-1].tokens
    network = model()
    sequence = torch.cat([network.prefix(torch.tensor([0, 2]), None, 2), tokens.flatten(1)], 1)
    with torch.no_grad():
        expected = network(sequence[:, :-1])[:, 1:, :11].argmax(-1)
    assert torch.equal(tokens.flatten(1), expected)


def test_a_negative_temperature_is_refused():
    with pytest.raises(UserError, match="temperature"):
        AutoregressiveSamplerConfig(temperature=-1.0)
