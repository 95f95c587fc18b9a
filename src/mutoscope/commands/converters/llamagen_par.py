"""Checkpoints of LlamaGen and PAR: transformers, and the image tokenizer VQ-16."""

from dataclasses import dataclass
from pathlib import Path

from mutoscope import hub
from mutoscope.commands.converters.base import Converted, Converter, named_tokenizer
from mutoscope.commands.converters.options import ConvertOptions
from mutoscope.errors import UserError
from mutoscope.interop import llamagen_par
from mutoscope.models.par import PARConfig
from mutoscope.text import encoder_kind


@dataclass(frozen=True)
class ImageTokenizer(Converter):
    """LlamaGen's VQ-16."""

    def convert(self, source: str, target: Path, options: ConvertOptions) -> Converted:
        checkpoint = llamagen_par.read_checkpoint(Path(source), options.ema)
        network = llamagen_par.load_tokenizer(checkpoint, llamagen_par.infer_tokenizer_config(checkpoint))
        side = 24 * network.spec.spatial_stride  # images of 384 pixels, the published size
        index = hub.ModelIndex("tokenizer", model=None, num_frames=1, height=side, width=side, fps=options.fps)
        hub.save_pretrained(target, index, tokenizer=network, half=options.half)
        return Converted(network, index.family)


@dataclass(frozen=True)
class Transformer(Converter):
    """A transformer of LlamaGen (`parallel` False) or PAR, for classes or captions."""

    parallel: bool
    takes_text_encoder = True

    def convert(self, source: str, target: Path, options: ConvertOptions) -> Converted:
        tokenizer = named_tokenizer(options.tokenizer)
        checkpoint = llamagen_par.read_checkpoint(Path(source), options.ema)
        config = llamagen_par.infer_transformer_config(
            checkpoint, options.grid, options.num_heads, options.rope_base, options.norm_eps
        )
        self._check(source, config, options.tokenizer, tokenizer.spec.vocab_size)
        encoder = checked_text_encoder(options.text_encoder, config)
        network, stride = llamagen_par.load_transformer(checkpoint, config), tokenizer.spec.spatial_stride
        _, rows, columns = config.latent_shape
        index = hub.ModelIndex(
            family="par",
            num_frames=1,
            height=rows * stride,
            width=columns * stride,
            fps=options.fps,
            tasks=("class-conditional",) if config.num_classes is not None else (),
            text_encoder=encoder,
        )
        hub.save_pretrained(target, index, tokenizer=tokenizer, model=network, half=options.half)
        return Converted(network, index.family)

    def _check(self, source: str, config: PARConfig, tokenizer: str | None, num_codes: int | None) -> None:
        if self.parallel != (config.num_parallel > 1):
            found = "par" if config.num_parallel > 1 else "llamagen"
            raise UserError(f"{source} predicts {config.num_parallel} tokens per step: convert it as {found}.")
        if num_codes != config.codebook_size:
            raise UserError(
                f"{source} has {config.codebook_size} codes, the tokenizer {tokenizer!r} {num_codes}: they do not "
                "belong together."
            )


def checked_text_encoder(named: str | None, config: PARConfig) -> str | None:
    """The absolute path of a text encoder whose features fit the model; its weights are not loaded."""
    if named is None:
        return None
    if config.caption_size is None:
        raise UserError("This model reads class labels, not text: omit --text-encoder.")
    folder = Path(named).expanduser().resolve()
    size = encoder_kind(folder).feature_size(folder)
    if size != config.caption_size:
        raise UserError(f"The text encoder {named!r} gives {size} channels, this model reads {config.caption_size}.")
    return str(folder)
