"""Every recipe by name."""

from collections.abc import Callable, Mapping

from mutoscope.recipes import doom, far_paper, magi_paper, magvit_paper, own_data, par_paper, shapes, text_to_video
from mutoscope.training.config import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    **own_data.RECIPES,
    **doom.RECIPES,
    **shapes.RECIPES,
    **magvit_paper.RECIPES,
    **magi_paper.RECIPES,
    **par_paper.RECIPES,
    **far_paper.RECIPES,
    **text_to_video.RECIPES,
}

RECORDED_BY: Mapping[str, str] = doom.RECORDED_BY
"""Recipes on data that anyone can record again, and the commands that do."""
