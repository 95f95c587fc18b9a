from dataclasses import replace
from typing import Literal

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.tokenizers.discriminator import Discriminator, DiscriminatorConfig
from mutoscope.tokenizers.inflation import Inflation, inflate
from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig

CONFIG = VQ3DConfig(4, (1, 2), 1, (False,), 4, 8, num_groups=2)


def networks(**changes) -> tuple[VQ3D, VQ3D]:
    torch.manual_seed(0)
    return VQ3D(replace(CONFIG, per_frame=True)), VQ3D(replace(CONFIG, **changes))


def test_a_centrally_inflated_encoder_first_treats_frames_separately():
    flat, deep = networks(padding="zero")
    inflate(flat, deep, "central")
    frame = torch.rand(1, 3, 1, 8, 8) * 2 - 1
    clip = frame.expand(-1, -1, 4, -1, -1)  # equal frames, so that the norm statistics agree too
    flat.config = replace(flat.config, padding="zero")
    with torch.no_grad():
        kernels = [m for m in deep.encoder.modules() if isinstance(m, torch.nn.Conv3d) and m.weight.shape[2] == 3]
        assert kernels and all((m.weight[:, :, [0, 2]] == 0).all() for m in kernels)
        latents = deep.encode_to_latents(clip)
    assert torch.allclose(latents, latents[:, :, :1].expand_as(latents), atol=1e-5)


@pytest.mark.parametrize("method", ["central", "average"])
def test_inflated_and_2d_networks_agree_on_a_still_clip(method: Inflation):
    """Reflection keeps a still clip still, so both ways of inflating leave the result of every layer unchanged."""
    flat, deep = networks()
    inflate(flat, deep, method)
    clip = (torch.rand(1, 3, 1, 8, 8) * 2 - 1).expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        assert torch.allclose(flat.encode_to_latents(clip), deep.encode_to_latents(clip), atol=1e-4)
        tokens = flat.encode(clip)
        assert torch.allclose(flat.decode(tokens), deep.decode(tokens), atol=1e-4)


def test_the_discriminator_is_inflated_where_its_dense_layer_fits():
    config = DiscriminatorConfig(4, (2, 2), (4, 8, 8))
    flat, deep = Discriminator(replace(config, per_frame=True)), Discriminator(config)
    inflate(flat, deep)
    assert torch.equal(deep.dense.weight, flat.dense.weight)
    assert torch.equal(deep.conv_in.weight[:, :, 1], flat.conv_in.weight[:, :, 0])


def test_networks_that_are_no_counterparts_are_refused():
    flat, _ = networks()
    with pytest.raises(UserError, match="different layouts"):
        inflate(flat, VQ3D(replace(CONFIG, num_res_blocks=2)))
    with pytest.raises(UserError, match="does not fit"):
        inflate(flat, VQ3D(replace(CONFIG, embedding_dim=8)))
    with pytest.raises(UserError, match="central or average"):
        inflate(flat, VQ3D(CONFIG), "sideways")  # pyright: ignore[reportArgumentType]


def test_the_2d_tokenizer_treats_frames_separately_and_has_its_published_size():
    flat, _ = networks()
    clip = torch.rand(2, 3, 4, 8, 8) * 2 - 1
    together, alone = flat.encode(clip), torch.cat([flat.encode(clip[:, :, [i]]) for i in range(4)], dim=1)
    assert flat.spec.temporal_stride == 1 and torch.equal(together, alone)
    assert flat.forward_train(clip).reconstruction.shape == clip.shape
    sizes: tuple[tuple[Literal["B", "L"], int], ...] = (("B", 13_809_667), ("L", 53_104_387))
    for size, count in sizes:
        with torch.device("meta"):
            network = VQ3D(VQ3DConfig.paper(size, per_frame=True))
        assert sum(p.numel() for p in network.parameters()) == count
    with pytest.raises(UserError, match="cannot halve time"):
        replace(CONFIG, per_frame=True, temporal_downsample=(True,))
