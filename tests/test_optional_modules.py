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

# Hidden rather than refused, so that find_spec("scipy") is None as on a machine without it.
BLOCK = """
import sys
from importlib.machinery import PathFinder

BLOCKED = set(sys.argv[1].split(","))

class HidingFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = HidingFinder
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
from mutoscope import VideoPipeline
from mutoscope.runs.train import train
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.training.config import LoopConfig, ModelRecipe, OptimConfig, TokenizerRecipe
from small_shapes_model import TASKS, small_magvit_config, small_tokenizer_config

data, optim, loop = ShapesData(), OptimConfig(), LoopConfig(num_steps=2, batch_size=2, num_workers=0, threads=1)
assert train(TokenizerRecipe("small-tokenizer", data, small_tokenizer_config(), optim, loop), "tokenizer").finished

weights = dict.fromkeys(TASKS, 1.0)
recipe = ModelRecipe("small-magvit", "tokenizer", data, small_magvit_config(), optim, loop, weights, cache_clips=4)
assert train(recipe, "model").finished  # on tokens that the run caches first

pipeline = VideoPipeline.from_pretrained("model")
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
    assert "No module named 'av'" in run_blocked("import av", tmp_path).stderr
