"""The core imports, trains and samples where nothing but its own libraries is installed: not even PyAV."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# Optional, or installed beside the package by chance. `av` is a dependency but must only be missed by video files.
BLOCKED = [
    "av", "beartype", "cv2", "diffusers", "fastapi", "huggingface_hub", "hypothesis", "imageio", "matplotlib",
    "pytest", "pytorch_msssim", "scipy", "tensorboard", "torchmetrics", "torchvision", "transformers", "uvicorn",
    "wandb", "webdataset", "websockets",
]  # fmt: skip

BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocker())
"""

IMPORT_EVERYTHING = """
import importlib, pkgutil
import mutoscope
for module in pkgutil.walk_packages(mutoscope.__path__, "mutoscope."):
    importlib.import_module(module.name)
for name in mutoscope.__all__:
    getattr(mutoscope, name)
"""

TRAIN_AND_SAMPLE = """
import torch
from mutoscope import VideoPipeline, VideoClip
from mutoscope.data.loader import ItemSource, ShapesSource
from mutoscope.data.shapes import ShapesConfig, ShapesWorld
from mutoscope.models.magvit import Magvit
from mutoscope.tokenizers.vq3d import VQ3D
from mutoscope.training.config import DataConfig, LoopConfig, ModelRecipe, OptimConfig, TokenizerRecipe
from mutoscope.training.tokenizer_trainer import train_tokenizer
from mutoscope.training.trainer import train_model
from tiny_models import save_tiny_model, tiny_magvit_config, tiny_tokenizer_config

data, optim, loop = DataConfig(), OptimConfig(), LoopConfig(num_steps=2, batch_size=2, num_workers=0, threads=1)
clips = ShapesSource(ShapesWorld(ShapesConfig(), seed=0))

recipe = TokenizerRecipe("tiny-tokenizer", data, tiny_tokenizer_config(), optim, loop)
tokenizer = VQ3D(recipe.tokenizer)
assert train_tokenizer(tokenizer, recipe, clips, "tokenizer").finished

batch = clips[[0, 1, 2, 3]]
with torch.no_grad():
    tokens = tokenizer.eval().encode(tokenizer.from_uint8(batch["video"]))
cache = ItemSource([{"tokens": t, "label": label} for t, label in zip(tokens, batch["label"])])
recipe = ModelRecipe("tiny-magvit", "tokenizer", data, tiny_magvit_config(), optim, loop)
model = Magvit(recipe.model)
prepare = lambda batch, step: batch | {"task": "class-conditional"}
assert train_model(model, recipe, cache, "model", prepare_batch=prepare).finished

pipeline = VideoPipeline.from_pretrained(save_tiny_model("saved", tokenizer, model))
clip = pipeline(class_label="square-spin", num_decoding_steps=2)
assert clip.frames.shape == (16, 32, 32, 3)
clip = pipeline(context=clip.frames[:1], num_decoding_steps=2)
clip.save("sheet.png")
"""


def run_blocked(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BLOCK + program, ",".join(BLOCKED)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_module_imports_without_optional_modules(tmp_path: Path):
    done = run_blocked(IMPORT_EVERYTHING, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_core_trains_and_samples_without_optional_modules(tmp_path: Path):
    done = run_blocked(TRAIN_AND_SAMPLE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_blocked_modules_are_really_absent(tmp_path: Path):
    done = run_blocked("import av", tmp_path)
    assert "blocked by the test" in done.stderr
