"""The kinds of published checkpoints that can be converted."""

from mutoscope.commands.converters.base import Converter
from mutoscope.commands.converters.far import DCAutoencoder, FARTransformer
from mutoscope.commands.converters.llamagen_par import ImageTokenizer, Transformer
from mutoscope.commands.converters.magvit_flax import MagvitFlax
from mutoscope.commands.converters.nova import NOVAFolder

CONVERTERS: dict[str, Converter] = {
    "llamagen": Transformer(parallel=False),
    "par": Transformer(parallel=True),
    "vq16": ImageTokenizer(),
    "magvit-flax": MagvitFlax(),
    "nova": NOVAFolder(),
    "far": FARTransformer(),
    "dc-ae": DCAutoencoder(),
}
"""By the kind of checkpoint."""
