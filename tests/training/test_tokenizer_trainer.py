from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.layers.batch_means import WholeMean, all_at_hand
from mutoscope.layers.draws import Draws
from mutoscope.tokenizers.base import TokenizerOutput, VideoTokenizer
from mutoscope.tokenizers.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    PatchDiscriminator,
    PatchDiscriminatorConfig,
)
from mutoscope.tokenizers.perceptual import PerceptualLoss, ResNet, ResNetConfig
from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig
from mutoscope.training.callbacks import ReconstructionSheet, paired_sheet
from mutoscope.training.config import AdversarialConfig
from mutoscope.training.tokenizer_trainer import AdversarialLoss, train_tokenizer
from mutoscope.training.tracking import read_log
from training.fakes import FakeModel, FakeSource, FakeTokenizer, features_recipe, tokenizer_recipe

TINY = VQ3DConfig(
    filters=4,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    temporal_downsample=(True,),
    embedding_dim=4,
    codebook_size=8,
    num_groups=2,
    padding="zero",
)


def logged(folder, name="loss"):
    return [line[name] for line in read_log(folder / "log.jsonl")]


def test_the_loss_is_the_sum_of_its_logged_parts_and_falls(tmp_path):
    train_tokenizer(FakeTokenizer(), tokenizer_recipe(num_steps=60, batch_size=8), FakeSource(), tmp_path)
    total = np.array(logged(tmp_path, "reconstruction")) + logged(tmp_path, "commitment")
    np.testing.assert_allclose(logged(tmp_path), total, rtol=1e-5)
    assert logged(tmp_path)[-1] < 0.5 * logged(tmp_path)[0]


def test_a_real_tokenizer_resumes_bit_for_bit(tmp_path):
    recipe = tokenizer_recipe(num_steps=4, checkpoint_every=2, ema_decay=0.9, clip_norm=1.0)
    torch.manual_seed(0)
    start = VQ3D(TINY).state_dict()

    def fresh():
        tokenizer = VQ3D(TINY)
        tokenizer.load_state_dict(start)
        return tokenizer

    whole = train_tokenizer(fresh(), recipe, FakeSource(), tmp_path / "whole").network
    train_tokenizer(fresh(), recipe, FakeSource(), tmp_path / "cut")
    (tmp_path / "cut" / "checkpoints" / "step-00000004.pt").unlink()  # as if killed before it was written
    resumed = train_tokenizer(VQ3D(TINY), recipe, FakeSource(), tmp_path / "cut", resume=True).network
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path):
    for accumulation in (1, 2):
        recipe = tokenizer_recipe(accumulation=accumulation)
        train_tokenizer(FakeTokenizer(), recipe, FakeSource(), tmp_path / str(accumulation))
    assert logged(tmp_path / "1") == pytest.approx(logged(tmp_path / "2"), rel=1e-5)


def test_sample_sheets_show_each_clip_above_its_reconstruction(tmp_path):
    clips = FakeSource()[[0, 1]]["video"]  # (2, 2, 4, 4, 3)
    recipe = tokenizer_recipe(num_steps=4, sample_every=2)
    sheet = ReconstructionSheet(clips, every_nth_frame=1)
    train_tokenizer(FakeTokenizer(), recipe, FakeSource(), tmp_path, callbacks=[sheet])
    files = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert files == [f"reconstruction-{step:08d}.png" for step in (1, 2, 4)]
    image = np.asarray(Image.open(tmp_path / "samples" / files[0]))
    assert (image[:4, :4] == clips[0, 0].numpy()).all()
    assert (image == paired_sheet(clips, clips)).mean() < 1  # the rows of reconstructions differ


def test_a_reconstruction_sheet_of_something_else_is_refused(tmp_path):
    from mutoscope.training.trainer import train_model

    sheet = ReconstructionSheet(FakeSource()[[0]]["video"])
    with pytest.raises(UserError, match="needs a tokenizer, found FakeModel"):
        train_model(FakeModel(), features_recipe(num_steps=3), FakeSource(), tmp_path, callbacks=[sheet])


DISCRIMINATOR = DiscriminatorConfig(4, (2,), (2, 4, 4))
ADVERSARIAL = AdversarialConfig(DISCRIMINATOR, lecam_weight=0.1)


def test_each_network_gets_its_own_gradient_from_the_one_loss():
    torch.manual_seed(0)
    tokenizer, discriminator = VQ3D(TINY), Discriminator(DISCRIMINATOR)
    objective = AdversarialLoss(tokenizer, discriminator, ADVERSARIAL)
    video = torch.rand(2, 3, 2, 4, 4) * 2 - 1
    total, terms = objective.losses(video)
    assert torch.isclose(total, torch.stack(list(terms.values())).sum())
    mine = {"reconstruction", "commitment", "codebook", "entropy", "generator"}
    assert set(terms) == mine | {"discriminator", "r1", "lecam"}
    for name, network, other in (
        ("tokenizer", tokenizer, discriminator),
        ("discriminator", discriminator, tokenizer),
    ):
        _, terms = objective.losses(video)
        own = [value for term, value in terms.items() if (term in mine) == (name == "tokenizer")]
        torch.stack(own).sum().backward()
        assert any(p.grad is not None for p in network.parameters()), name
        assert all(p.grad is None for p in other.parameters()), name
        network.zero_grad()


def test_the_averages_of_the_logits_move_after_they_were_used():
    torch.manual_seed(0)
    objective = AdversarialLoss(VQ3D(TINY), Discriminator(DISCRIMINATOR), replace(ADVERSARIAL, lecam_decay=0.5))
    video = torch.rand(2, 3, 2, 4, 4) * 2 - 1
    real_mean = objective.discriminator((video + 1) / 2).mean()
    for _ in range(2):  # micro-batches of one update
        objective.losses(video)
        assert objective.average_real == 0
    objective.updated()
    assert torch.isclose(objective.average_real, 0.5 * real_mean)


def test_a_perceptual_distance_joins_the_loss_but_not_the_checkpoints():
    frozen = torch.nn.Conv3d(3, 4, 1)
    objective = AdversarialLoss(
        VQ3D(TINY),
        Discriminator(DISCRIMINATOR),
        ADVERSARIAL,
        perceptual=lambda real, fake: (frozen(real) - frozen(fake)).square().mean(),
    )
    _, terms = objective.losses(torch.rand(1, 3, 2, 4, 4) * 2 - 1)
    assert terms["perceptual"] > 0
    assert not any(p is frozen.weight for p in objective.parameters())


def test_an_adversarial_run_resumes_bit_for_bit_and_trains_the_discriminator(tmp_path):
    recipe = replace(tokenizer_recipe(num_steps=4, checkpoint_every=2, ema_decay=0.9), adversarial=ADVERSARIAL)

    def run(out, resume=False):
        torch.manual_seed(0)
        tokenizer, discriminator = VQ3D(TINY), Discriminator(DISCRIMINATOR)
        before = discriminator.logit.weight.clone()
        result = train_tokenizer(tokenizer, recipe, FakeSource(), out, discriminator=discriminator, resume=resume)
        assert resume or not torch.equal(before, discriminator.logit.weight)
        return [*result.network.parameters(), *discriminator.parameters()]

    whole = run(tmp_path / "whole")
    run(tmp_path / "cut")
    (tmp_path / "cut" / "checkpoints" / "step-00000004.pt").unlink()  # as if killed before it was written
    resumed = run(tmp_path / "cut", resume=True)
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


class Darkening(VideoTokenizer):
    """A network without products, which autocast does not touch."""

    def forward_train(
        self, video: Tensor, draws: Draws | None = None, whole: WholeMean = all_at_hand
    ) -> TokenizerOutput:
        return TokenizerOutput(0.9 * video - 0.05, video, {})


@pytest.mark.parametrize("patches", [False, True])
def test_comparisons_of_clips_do_not_depend_on_autocast(patches: bool):
    torch.manual_seed(0)
    side = 16 if patches else 4
    discriminator: nn.Module = (
        PatchDiscriminator(PatchDiscriminatorConfig(4, 1)) if patches else Discriminator(DISCRIMINATOR)
    )
    config = replace(ADVERSARIAL, gan_loss="hinge") if patches else ADVERSARIAL
    discriminator.eval()  # the norms of patches keep their averages
    perceptual = PerceptualLoss(ResNet(ResNetConfig((1,), 4, 5)))
    video = torch.rand(2, 3, 2, side, side) * 2 - 1

    def terms() -> dict[str, Tensor]:
        objective = AdversarialLoss(Darkening(), discriminator, config, perceptual)
        objective.average_real.fill_(0.1)
        found = objective.losses(video)[1]
        return {name: term.detach() for name, term in found.items()}

    plain = terms()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = terms()
    assert {"generator", "discriminator", "r1", "lecam", "perceptual"} <= set(plain)
    assert all(torch.equal(under[name], plain[name]) for name in plain), (under, plain)
