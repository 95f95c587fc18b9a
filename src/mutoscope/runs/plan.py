"""What a run is going to do: the recipe on the data it is started with, and the sentences that say so beforehand."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mutoscope import hub
from mutoscope.data.sources.survey import DataSurvey
from mutoscope.errors import UserError
from mutoscope.runs.adapt import Adaptation, adapted
from mutoscope.runs.checks import check_model_fits
from mutoscope.runs.frame_size import Machine
from mutoscope.runs.networks import tokenizer_spec, tokenizer_stage
from mutoscope.training.config import FeaturesRecipe, ModelRecipe, Recipe
from mutoscope.training.tokenizer_trainer import supports_bfloat16

MAX_NAMES = 8  # classes or actions that a sentence lists


def machine_of(device: str | None) -> Machine:
    """The kind of machine that decides the frame size of recipes for own data."""
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return "cpu" if chosen.startswith("cpu") else "gpu"
