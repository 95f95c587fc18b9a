"""Published NOVA folders in the layout of diffusers."""

from dataclasses import replace
from pathlib import Path

from mutoscope import hub
from mutoscope.commands.converters.base import Converted, Converter
from mutoscope.commands.converters.options import ConvertOptions
from mutoscope.errors import UserError


class NOVAFolder(Converter):
    """Transformer and autoencoder in one folder of ours, which names the folder of the text encoder."""

    reads_folder = True

    def convert(self, source: str, target: Path, options: ConvertOptions) -> Converted:
        folder = hub.open_folder(source)
        if folder.index.family != "nova":
            raise UserError(f"{source!r} holds a model of the family {folder.index.family!r}, not a published NOVA.")
        network, encoder = folder.load_model(), folder.text_encoder_path
        index = replace(
            folder.index, tokenizer="./tokenizer", model="./model", text_encoder=str(encoder) if encoder else None
        )
        hub.save_pretrained(target, index, tokenizer=folder.load_tokenizer(), model=network, half=options.half)
        return Converted(network, index.family)
