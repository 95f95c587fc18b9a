"""The families of models. A sixth one is its own files and one more entry here."""

from mutoscope.errors import UserError
from mutoscope.families.base import AnyFamily as AnyFamily
from mutoscope.families.base import Call as Call
from mutoscope.families.base import Family as Family
from mutoscope.families.base import Request as Request
from mutoscope.families.base import Steering as Steering
from mutoscope.families.far import FAR_FAMILY
from mutoscope.families.magi import MAGI_FAMILY
from mutoscope.families.magvit import MAGVIT_FAMILY
from mutoscope.families.nova import NOVA_FAMILY
from mutoscope.families.par import PAR_FAMILY
from mutoscope.json_config import nearest
from mutoscope.models.base import ModelConfig

FAMILIES: dict[str, AnyFamily] = {
    family.name: family for family in (MAGVIT_FAMILY, PAR_FAMILY, NOVA_FAMILY, MAGI_FAMILY, FAR_FAMILY)
}
"""By the name in `model_index.json`."""


def family_named(name: str) -> AnyFamily:
    """The family of a model folder. Raises UserError for an unknown name."""
    if name not in FAMILIES:
        raise UserError(f"model_index.json names the family {name!r}: {nearest(name, FAMILIES)}")
    return FAMILIES[name]


def family_of(config: ModelConfig) -> AnyFamily:
    """The family of a configuration. Raises UserError for one that no family declares."""
    for family in FAMILIES.values():
        if family.config is type(config):
            return family
    raise UserError(f"No family has models of {type(config).__name__}: known are {', '.join(FAMILIES)}.")
