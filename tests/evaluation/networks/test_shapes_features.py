"""The feature network of the shapes dataset: sizes, loss, augmentation, and its file."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mutoscope.data.sources.shapes.world import (
    CLASS_NAMES,
    COLORS,
    MOTIONS,
    SHAPES,
    ShapesConfig,
    ShapesWorld,
    shapes_batch,
)
from mutoscope.errors import UserError
from mutoscope.evaluation.networks.shapes_features import (
    CHOICE_HEADS,
    PRESENCE_HEADS,
    LabelledClips,
    ShapesFeatures,
    ShapesFeaturesConfig,
    augment,
    load_shapes_features,
    save_shapes_features,
    to_float,
    weights_sha256,
)

TINY = ShapesFeaturesConfig(stem_channels=8, stage_channels=(8, 16, 16), embedding_size=12)


def network(config: ShapesFeaturesConfig = TINY) -> ShapesFeatures:
    torch.manual_seed(0)
    return ShapesFeatures(config).eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int, start: int = 0, **config) -> LabelledClips:
    found = shapes_batch(ShapesWorld(ShapesConfig(**config)), range(start, start + count))
    return {"video": found["video"], "attributes": found["attributes"]}


def test_defaults_fit_the_world_and_one_megabyte_in_half_precision():
    config = ShapesFeaturesConfig()
    assert (config.num_classes, config.num_shapes) == (len(CLASS_NAMES), len(SHAPES))
    assert (config.num_colors, config.num_motions) == (len(COLORS), len(MOTIONS))
    assert sum(p.numel() for p in ShapesFeatures(config).parameters()) <= 480_000


@pytest.mark.parametrize("shape", [(8, 32, 32), (16, 32, 32), (9, 17, 40), (17, 64, 64), (16, 16, 16)])
def test_any_frame_size_and_length_from_eight_frames_gives_one_embedding(shape):
    with torch.inference_mode():
        embedding = network()(torch.zeros(2, 3, *shape))
    assert embedding.shape == (2, TINY.embedding_size)
    assert embedding.isfinite().all()


def test_shorter_clips_are_refused():
    with pytest.raises(UserError, match="at least 8 frames, found 7"):
        network()(torch.zeros(1, 3, 7, 32, 32))


def test_a_clip_is_read_alike_alone_and_in_a_batch():
    video = to_float(batch(3)["video"])
    with torch.inference_mode():
        together, alone = network()(video), network()(video[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


def test_every_head_answers_every_option():
    logits = network().predict(torch.zeros(2, TINY.embedding_size))
    assert list(logits) == [*CHOICE_HEADS, *PRESENCE_HEADS]
    assert {head: values.shape[1] for head, values in logits.items()} == TINY.head_sizes()


def test_bytes_become_minus_one_to_one_with_channels_first():
    frames = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(1, 2, 4, 5, 3)
    video = to_float(frames)
    assert video.shape == (1, 3, 2, 4, 5)
    torch.testing.assert_close(video[0, :, 0, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_loss_starts_near_chance_and_reaches_every_parameter():
    net = network().train()
    loss, parts = net.loss(batch(16), generator())
    assert set(parts) == {*CHOICE_HEADS, *PRESENCE_HEADS, "class_accuracy"}
    assert parts["class"].item() == pytest.approx(math.log(23), abs=0.7)
    assert loss.item() == pytest.approx(sum(parts[head].item() for head in (*CHOICE_HEADS, *PRESENCE_HEADS)), rel=1e-5)
    loss.backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_loss_is_small_only_for_the_truth():
    data, net = batch(4), network()
    right = data["attributes"]
    logits = {}
    for head, size in TINY.head_sizes().items():
        index = right[head] - 1 if head == "num_objects" else right[head]
        logits[head] = (
            index.float() if head in PRESENCE_HEADS else torch.nn.functional.one_hot(index, size)
        ) * 40.0 - 20.0
    net.predict = lambda embedding: logits
    loss, parts = net.loss(data, generator())
    assert loss.item() < 1e-3
    assert parts["class_accuracy"] == 1
    wrong = {**right, "num_objects": right["num_objects"] % 3 + 1}
    assert net.loss({"video": data["video"], "attributes": wrong}, generator())[1]["num_objects"].item() > 10


def test_loss_depends_on_nothing_but_the_generator():
    data, net = batch(2), network()
    first, again, other = (net.loss(data, generator(seed))[0].item() for seed in (0, 0, 1))
    assert first == again != other


def test_augmentation_stays_in_range_and_treats_clips_one_by_one():
    video = to_float(batch(8)["video"])
    before = video.clone()
    changed = augment(video, ShapesFeaturesConfig(), generator())
    assert torch.equal(video, before)
    assert changed.min() >= -1 and changed.max() <= 1
    means = (changed - video).mean(dim=(1, 2, 3, 4))
    assert means.std() > 0.01  # one brightness for all would leave no deviation


def test_augmentation_can_be_switched_off():
    off = ShapesFeaturesConfig(noise=0, brightness=0, contrast=0, soften_share=0)
    video = to_float(batch(2)["video"])
    assert torch.equal(augment(video, off, generator()), video)


def test_softening_removes_detail():
    soft = ShapesFeaturesConfig(noise=0, brightness=0, contrast=0, soften_share=1)
    video = to_float(batch(4)["video"])
    roughness = [v.diff(dim=-1).square().mean() for v in (augment(video, soft, generator()), video)]
    assert roughness[0] < 0.8 * roughness[1]


def test_saving_and_loading_keeps_the_readings_to_half_precision(tmp_path):
    net = network()
    sha256 = save_shapes_features(net, tmp_path)
    loaded, loaded_sha256 = load_shapes_features(tmp_path)
    assert loaded_sha256 == sha256 == weights_sha256(tmp_path)
    assert loaded.config == TINY
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    video = to_float(batch(2)["video"])
    torch.testing.assert_close(loaded(video), net(video), atol=2e-2, rtol=2e-2)
    assert load_file(tmp_path / "model.safetensors")["stem.weight"].dtype == torch.float16


def test_the_hash_is_that_of_the_weights(tmp_path):
    net = network()
    first = save_shapes_features(net, tmp_path)
    with torch.no_grad():
        net.heads.bias[0] += 1
    assert save_shapes_features(net, tmp_path) != first


def test_a_missing_folder_says_what_to_train(tmp_path):
    with pytest.raises(UserError, match="train the recipe `shapes-features`"):
        load_shapes_features(tmp_path / "nowhere")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    save_shapes_features(network(), tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != "stem.bias"}, weights)
    with pytest.raises(UserError, match="does not belong"):
        load_shapes_features(tmp_path)
    weights.write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        load_shapes_features(tmp_path)
    config.write_text(json.dumps({"class": "VQ3D"}))
    with pytest.raises(UserError, match="not ShapesFeatures"):
        load_shapes_features(tmp_path)


@pytest.mark.slow
def test_training_learns_colours_within_a_few_steps():
    config = ShapesFeaturesConfig(stem_channels=16, stage_channels=(16, 32, 32), noise=0, brightness=0, contrast=0)
    net, rng = network(config).train(), generator()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for step in range(120):
        loss, parts = net.loss(batch(8, step * 8, num_frames=8, height=16, width=16, max_objects=1), rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(parts["color"].item())
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
