"""Recipes of neural Doom: four scenarios of ViZDoom in one model, steered by left, right, forward and attack.

The data are recorded first, from packages alone (`pip install 'mutoscope[worlds]'`), 14 minutes on two cores:

    mutoscope record doom recordings/doom --episodes 320 --max-frames 200 --height 96 --width 128 --endless
    mutoscope train magi-doom --data recordings/doom --out runs/magi-doom

`magi-doom` trains its tokenizer first, by `vae-doom`. Nothing in these recipes is made for Doom but the sizes: they
train on any recording with actions, by their flags.
"""

from collections.abc import Callable

from mutoscope.data.sources.clips import LeRobotData
from mutoscope.models.magi import MAGIConfig
from mutoscope.tokenizers.causal3d import Causal3DConfig
from mutoscope.training.config import (
    LoopConfig,
    ModelRecipe,
    OptimConfig,
    Recipe,
    RolloutConfig,
    TokenizerRecipe,
)

HEIGHT, WIDTH, FPS = 96, 128, 8.75
NUM_FRAMES = 16  # 1.8 seconds
NUM_CLASSES = 4  # scenarios
