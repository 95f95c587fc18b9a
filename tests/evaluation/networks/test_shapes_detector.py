import torch

from mutoscope.data.sources.shapes.world import COLORS, ShapesConfig, ShapesWorld
from mutoscope.evaluation.networks.shapes_detector import colors_in_sight, shapes_agree


def clips(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First frames, and the colours that are in them."""
    found = [ShapesWorld(ShapesConfig(num_frames=1), seed=5).clip(i) for i in range(count)]
    present = torch.zeros(count, len(COLORS), dtype=torch.bool)
    for row, clip in zip(present, found, strict=True):
        row[[shape.color for shape in clip.objects]] = True
    return torch.stack([torch.from_numpy(clip.frames[0]) for clip in found]), present


def test_shapes_of_real_frames_are_found():
    frames, present = clips(60)
    assert shapes_agree(frames, present).float().mean() > 0.9
    assert (colors_in_sight(frames) == present).float().mean() > 0.98


def test_a_missing_a_foreign_and_a_faded_shape_are_noticed():
    frames, present = clips(1)
    assert shapes_agree(frames, present).all()
    assert not shapes_agree(frames, torch.zeros_like(present)).any()
    foreign = frames.clone()
    foreign[:, :8, :8] = torch.tensor([235, 75, 217]) if not present[0, COLORS.index("magenta")] else 247
    assert not shapes_agree(foreign, present).any()
    faded = (0.4 * frames.float() + 0.6 * 102).to(torch.uint8)
    assert not shapes_agree(faded, present).any()


def test_leading_axes_are_kept():
    frames, _ = clips(4)
    assert torch.equal(colors_in_sight(frames.view(2, 2, 32, 32, 3)).flatten(0, 1), colors_in_sight(frames))
