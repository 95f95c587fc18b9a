"""Published FAR files: transformers, and the DC-AE autoencoders whose latents they read."""

from pathlib import Path

from mutoscope import hub
from mutoscope.actions import ActionSpec
from mutoscope.commands.converters.base import Converted, Converter, named_tokenizer
from mutoscope.commands.converters.options import ConvertOptions
from mutoscope.errors import UserError
from mutoscope.interop import far
from mutoscope.models.far import FARConfig
from mutoscope.tokenizers.base import TokenizerSpec

GRID = 8, 8  # rows and columns of the latents of all published models
FRAMES = ConvertOptions.num_frames


class DCAutoencoder(Converter):
    """A DC-AE."""

    def convert(self, source: str, target: Path, options: ConvertOptions) -> Converted:
        path = Path(source)
        network = far.load_autoencoder(far.read_checkpoint(path, "DC-AE"), path)
        rows, columns = options.grid or GRID
        stride = network.spec.spatial_stride
        index = hub.ModelIndex(
            "tokenizer", model=None, num_frames=1, height=rows * stride, width=columns * stride, fps=options.fps
        )
        hub.save_pretrained(target, index, tokenizer=network, half=options.half)
        return Converted(network, index.family)


class FARTransformer(Converter):
    """A transformer; the name of a published file says how long its clips were."""

    def convert(self, source: str, target: Path, options: ConvertOptions) -> Converted:
        path, tokenizer = Path(source), named_tokenizer(options.tokenizer)
        stored, spec, settings = far.read_checkpoint(path, "FAR"), tokenizer.spec, far.released(path)
        frames = settings.num_frames if settings and options.num_frames == FRAMES else options.num_frames
        window = options.window or (settings.window if settings else min(frames, FRAMES))
        channels = self._channels(spec, options.tokenizer)
        rows, columns = options.grid or GRID
        config = far.infer_config(stored, path, channels, (frames, rows, columns), window)
        network = far.load_transformer(stored, config, path)
        index = self._index(config, spec, options, settings.guidance_scale if settings else 1.0)
        hub.save_pretrained(target, index, tokenizer=tokenizer, model=network, half=options.half)
        return Converted(network, index.family)

    def _channels(self, spec: TokenizerSpec, named: str | None) -> int:
        if spec.latent_channels is None or not spec.per_frame:
            raise UserError(
                f"FAR reads continuous latents of single frames, the tokenizer {named!r} gives others: name the DC-AE "
                "that the model was trained with (mutoscope convert dc-ae)."
            )
        return spec.latent_channels

    def _index(
        self, config: FARConfig, spec: TokenizerSpec, options: ConvertOptions, guidance_scale: float
    ) -> hub.ModelIndex:
        frames, rows, columns = config.latent_shape
        return hub.ModelIndex(
            family="far",
            num_frames=spec.num_frames(frames),
            height=rows * spec.spatial_stride,
            width=columns * spec.spatial_stride,
            fps=options.fps,
            tasks=config.tasks,
            sampling={"num_decoding_steps": 50, "guidance_scale": guidance_scale},
            actions=named_actions(config.action_size, options.action_names),
        )


def named_actions(size: int | None, names: tuple[str, ...] | None) -> ActionSpec | None:
    """One button per action. Raises UserError for another number of names than the model has actions."""
    if names is not None and len(names) != (size or 0):
        raise UserError(f"This model has {size or 0} actions, --action-names gives {len(names)}.")
    if size is None:
        return None
    return ActionSpec.plain(names or [f"action_{i}" for i in range(size)], "buttons")
