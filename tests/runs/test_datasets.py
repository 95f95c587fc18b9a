"""The papers' recipes train on miniature copies of their datasets: two updates of tiny networks, the rest unchanged.

Sizes of one recipe differ by their networks alone, which are shrunk here, so that one size of each is tested.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from miniatures import moving
from mutoscope import hub
from mutoscope.data.sources.datasets.source import DatasetData
from mutoscope.data.sources.registry import of_kind
from mutoscope.data.sources.tokens import TokenCache
from mutoscope.evaluation.engine import PROTOCOLS
from mutoscope.families import FAMILIES
from mutoscope.models.par import PARConfig
from mutoscope.pipeline import VideoPipeline
from mutoscope.recipes import catalog
from mutoscope.recipes.magvit_paper import DATASETS
from mutoscope.runs.export import BENCHMARKS
from mutoscope.runs.train import train
from mutoscope.tokenizers.causal3d import Causal3D, Causal3DConfig
from mutoscope.tokenizers.discriminator import DiscriminatorConfig, PatchDiscriminatorConfig
from mutoscope.tokenizers.vq2d import VQ2D, VQ2DConfig
from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig
from mutoscope.training.config import from_json, to_json
from tiny_nova import save_tiny_autoencoder

Miniature = Callable[[str], Path]
RECIPES: dict[str, Callable[[], Any]] = {**catalog.RECIPES}
SIDE, CODES = 16, 16
VQ3D_TINY = VQ3DConfig(
    filters=4, channel_multipliers=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True), embedding_dim=4,
    codebook_size=CODES, num_groups=2,
)  # fmt: skip
VQ2D_TINY = VQ2DConfig(8, (1, 1), 1, CODES, 4, CODES, num_groups=8)
CAUSAL_TINY = Causal3DConfig(8, (1, 1, 2), 1, (True, True), num_groups=8, num_bits=4)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # every miniature lacks something


def shrunk(name: str, folder: Path, **changes: Any) -> Any:
    """A recipe for two updates at 16×16 on a copy of its dataset; one clip per video where it takes several."""
    recipe = RECIPES[name]()
    loop = replace(
        recipe.loop, num_steps=2, batch_size=2, accumulation=1, num_workers=0, log_every=1, autocast="none", threads=1
    )
    single = {"windows": 1, "crops": 1} if isinstance(recipe.data, DatasetData) else {}
    data = replace(recipe.data, path=str(folder), height=SIDE, width=SIDE, **single)
    return replace(recipe, data=data, loop=loop, optim=replace(recipe.optim, warmup_steps=1), **changes)


def saved(folder: Path, tokenizer: torch.nn.Module, num_frames: int) -> str:
    """A tokenizer with random weights, as an untrained run would leave it."""
    index = hub.ModelIndex("tokenizer", num_frames, SIDE, SIDE, model=None)
    return str(hub.save_pretrained(folder, index, tokenizer))


@pytest.mark.parametrize("dataset", DATASETS)
def test_magvit_tokenizers_train(miniature: Miniature, tmp_path: Path, dataset: str):
    adversarial = RECIPES[f"magvit-vq-b-{dataset}"]().adversarial
    adversarial = replace(adversarial, discriminator=DiscriminatorConfig(4, (2, 2, 2), (16, SIDE, SIDE)))
    folder = miniature(DATASETS[dataset].kind)
    recipe = shrunk(f"magvit-vq-b-{dataset}", folder, tokenizer=VQ3D_TINY, adversarial=adversarial)
    assert recipe.data.random_crops and recipe.data.num_frames == 16 and recipe.data.frame_stride == 1
    assert train(recipe, tmp_path / "run").finished
    index = hub.load_index(tmp_path / "run")
    assert index.data["kind"] == recipe.data.kind and index.data["split"] == "train"
    names = recipe.data.class_names()
    assert index.class_names == (tuple(names) if names else None)


@pytest.mark.parametrize("dataset", DATASETS)
def test_magvit_transformers_train(miniature: Miniature, tmp_path: Path, dataset: str):
    tokenizer = saved(tmp_path / "vq", VQ3D(VQ3D_TINY), 16)
    sizes = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "mlp_size": 16, "latent_shape": (4, 4, 4)}
    model = RECIPES[f"magvit-b-{dataset}"]().model
    model = replace(model, **sizes, codebook_size=CODES, num_classes=2 if model.num_classes else 0)
    folder = miniature(DATASETS[dataset].kind)
    recipe = shrunk(f"magvit-b-{dataset}", folder, tokenizer=tokenizer, model=model)
    assert train(recipe, tmp_path / "run").finished
    cache = TokenCache(tmp_path / "run" / "tokens")
    assert cache.num_clips == recipe.data.open().num_clips
    index = hub.load_index(tmp_path / "run")
    assert (index.class_names is not None) == (recipe.data.kind in ("ucf101", "kinetics600", "ssv2", "objectron"))
    if "class-conditional" in index.tasks:
        assert index.class_names is not None
        clip = VideoPipeline.from_pretrained(tmp_path / "run")(class_label=index.class_names[1], num_decoding_steps=2)
        assert clip.frames.shape == (16, SIDE, SIDE, 3)


def test_magvits_2d_tokenizer_trains_on_imagenet(miniature: Miniature, tmp_path: Path):
    name = "magvit-2d-vq-b-imagenet"
    flat = replace(VQ3D_TINY, temporal_downsample=(False, False), per_frame=True)
    adversarial = RECIPES[name]().adversarial
    adversarial = replace(adversarial, discriminator=DiscriminatorConfig(4, (2, 2, 2), (1, SIDE, SIDE), per_frame=True))
    recipe = shrunk(name, miniature("imagenet"), tokenizer=flat, adversarial=adversarial)
    assert recipe.data.kind == "imagenet" and train(recipe, tmp_path / "run").finished
    assert hub.load_index(tmp_path / "run").class_names == ("n01440764", "n02105855")


def test_vq16_trains_on_imagenet(miniature: Miniature, tmp_path: Path):
    adversarial = replace(
        RECIPES["vq16-imagenet"]().adversarial, discriminator=PatchDiscriminatorConfig(4, 1), start_step=1
    )
    recipe = shrunk("vq16-imagenet", miniature("imagenet"), tokenizer=VQ2D_TINY, adversarial=adversarial)
    assert train(recipe, tmp_path / "run").finished


@pytest.mark.parametrize("name", ["llamagen-B-imagenet", "par-B-4x-imagenet", "par-B-16x-imagenet"])
def test_par_trains_on_ten_crops_of_imagenet(miniature: Miniature, tmp_path: Path, name: str):
    recipe = RECIPES[name]()
    sizes = {"codebook_size": CODES, "latent_shape": (1, 8, 8), "num_classes": 2, "mlp_size": 16}
    model = PARConfig(1, 16, 2, num_parallel=recipe.model.num_parallel, attention_dropout=0.1, **sizes)
    recipe = shrunk(name, miniature("imagenet"), tokenizer=saved(tmp_path / "vq", VQ2D(VQ2D_TINY), 1), model=model)
    assert train(recipe, tmp_path / "run").finished
    assert TokenCache(tmp_path / "run" / "tokens").num_clips == 60
    assert hub.load_index(tmp_path / "run").class_names == ("n01440764", "n02105855")


def test_the_causal_tokenizer_trains_on_ucf101_at_eight_frames_per_second(miniature: Miniature, tmp_path: Path):
    adversarial = RECIPES["causal-ucf101"]().adversarial
    adversarial = replace(adversarial, discriminator=DiscriminatorConfig(4, (2, 2, 2), (17, SIDE, SIDE)))
    recipe = shrunk("causal-ucf101", miniature("ucf101"), tokenizer=CAUSAL_TINY, adversarial=adversarial)
    assert (recipe.data.num_frames, recipe.data.frame_stride, recipe.data.fps) == (17, 3, 8)
    assert train(recipe, tmp_path / "run").finished


@pytest.mark.parametrize("num_parallel", [1, 4, 16])
def test_par_trains_on_ucf101(miniature: Miniature, tmp_path: Path, num_parallel: int):
    tokenizer = Causal3D(CAUSAL_TINY)
    sizes = {"codebook_size": CODES, "latent_shape": tokenizer.spec.latent_shape(17, SIDE, SIDE), "mlp_size": 16}
    model = PARConfig(1, 16, 2, num_parallel=num_parallel, num_classes=2, attention_dropout=0.1, **sizes)
    folder = saved(tmp_path / "causal", tokenizer, 17)
    recipe = shrunk(f"par-XL-{num_parallel}x-ucf101", miniature("ucf101"), tokenizer=folder, model=model)
    assert train(recipe, tmp_path / "run").finished
    assert hub.load_index(tmp_path / "run").class_names == ("ApplyEyeMakeup", "HandstandPushups")


@pytest.mark.parametrize("setting", ["ucf101", "ucf101-cosmos", "kinetics600"])
def test_magi_trains_on_its_data_sets(miniature: Miniature, tmp_path: Path, setting: str):
    name = f"magi-B-{setting}"
    frames, latents = RECIPES[name]().data.num_frames, RECIPES[name]().model.latent_shape[0]
    vae = Causal3D(replace(CAUSAL_TINY, bottleneck="kl", temporal_downsample=(latents < 16,) * 2, latent_channels=4))
    small = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "head_layers": 1, "head_size": 16}
    shapes = {"latent_channels": 4, "latent_shape": vae.spec.latent_shape(frames, SIDE, SIDE)}
    model = replace(RECIPES[name]().model, **small, **shapes)
    folder = saved(tmp_path / "vae", vae, frames)
    sampling = {"num_decoding_steps": 2, "num_diffusion_steps": 2}
    miniature_of = miniature(setting.removesuffix("-cosmos"))
    recipe = shrunk(name, miniature_of, tokenizer=folder, model=model, sampling=sampling)
    assert train(recipe, tmp_path / "run").finished
    assert {"unconditional", "frame-prediction"} <= set(hub.load_index(tmp_path / "run").tasks)


@pytest.mark.parametrize("name", ["far-L-ucf101-128-cond", "far-B-bair"])
def test_far_trains_on_its_datasets(miniature: Miniature, tmp_path: Path, name: str):
    vae = Causal3D(replace(CAUSAL_TINY, bottleneck="kl", temporal_downsample=(False, False), latent_channels=4))
    recipe, frames = RECIPES[name](), 4
    sizes = {"hidden_size": 32, "num_layers": 1, "rotary_channels": (4, 6, 6), "latent_channels": 4}
    shape = vae.spec.latent_shape(frames, SIDE, SIDE)
    model = replace(recipe.model, **sizes, latent_shape=shape, num_classes=recipe.model.num_classes and 2)
    folder = saved(tmp_path / "vae", vae, frames)
    recipe = shrunk(name, miniature(recipe.data.kind), tokenizer=folder, model=model)
    recipe = replace(recipe, data=replace(recipe.data, num_frames=frames), sampling={"num_decoding_steps": 2})
    assert train(recipe, tmp_path / "run").finished
    index = hub.load_index(tmp_path / "run")
    wanted = "class-conditional" if recipe.model.num_classes else "frame-prediction"
    assert index.family == "far" and wanted in index.tasks


def test_recipes_name_protocols_that_exist():
    outside = {"imagenet", "imagenet-reconstruction", "ucf101-reconstruction", *BENCHMARKS}
    known = {*PROTOCOLS, *outside}
    named = {name: getattr(recipe(), "protocol", "shapes") for name, recipe in RECIPES.items()}
    assert {name: protocol for name, protocol in named.items() if protocol not in known} == {}


def nova(name: str, frames: int, words: int) -> Any:
    """A recipe's model with fewer and narrower layers, reading captions of that many different words."""
    small = {"hidden_size": 32, "temporal_layers": 1, "temporal_heads": 1, "spatial_layers": 2, "spatial_heads": 1}
    head = {"head_layers": 1, "head_size": 24, "latent_channels": 3, "latent_shape": (frames, 8, 8)}
    return replace(RECIPES[name]().model, **small, **head, num_time_slots=frames, text_size=5 * words, text_length=20)


@pytest.mark.slow
def test_nova_trains_on_captioned_images_and_then_on_captioned_videos(miniature: Miniature, tmp_path: Path):
    pytest.importorskip("cv2")
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.fromarray(moving(1, 24, 32, 60 + 40 * number)[0]).save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "images" / f"{number}.txt").write_text(f"waves number {number}")
    autoencoder = str(save_tiny_autoencoder(tmp_path / "vae"))
    sampling = {"num_decoding_steps": 2, "num_diffusion_steps": 2, "guidance_scale": 2.0}
    shared = {"tokenizer": autoencoder, "text_encoder": "words", "sampling": sampling}
    images = shrunk("nova-0.3B-1024", tmp_path / "images", **shared, model=nova("nova-0.3B-1024", 1, words=5))
    assert train(images, tmp_path / "run").finished
    videos = shrunk("nova-0.6B-video", miniature("ssv2"), **shared, model=nova("nova-0.6B-video", 3, words=12))
    data = replace(of_kind(videos.data, "ssv2"), num_frames=3)
    assert train(replace(videos, data=data), tmp_path / "video").finished
    clip = VideoPipeline.from_pretrained(tmp_path / "video")(prompt="pushing a cup from left to right")
    assert clip.frames.shape == (3, SIDE, SIDE, 3)


# --------------------------------------------------------------------------------------------------- data settings


def test_settings_survive_their_json_and_describe_the_clips(miniature: Miniature):
    recipe = RECIPES["magvit-b-bair"]()
    assert from_json(to_json(recipe), "recipe", [family.config for family in FAMILIES.values()]) == recipe
    assert (recipe.data.windows, recipe.data.mirrored, recipe.data.kind) == (15, True, "bair")
    data = replace(recipe.data, path=str(miniature("bair")))
    assert data.open().num_clips == 4 * 15 * 2
    described = data.describe()
    assert described["windows"] == 15 and described["class_names"] == []
    assert data.examples(2)["path"][0] != data.examples(2)["path"][1]  # not two windows of one video


def test_mirrored_clips_are_those_of_bair_tokenizers_and_of_one_paper_on_ucf101():
    mirrored = {name for name in RECIPES if getattr(RECIPES[name]().data, "mirrored", False)}
    published = {name for name in RECIPES if name.startswith("far-") and "ucf101" in name}
    assert published < mirrored and all("bair" in name for name in mirrored - published)
    assert "far-B-bair" not in mirrored
