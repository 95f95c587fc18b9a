"""Train a tokenizer and a video model on a folder of your own videos, then generate from them.

    python examples/train_on_a_folder.py my_videos --tokenizer-steps 8000 --model-steps 6000 --batch-size 16

The sub-folders of the folder are the classes; one is enough. Without a folder, eight short videos of moving shapes in
two classes are written first. The default steps take about a minute on two CPU cores and show only that everything
works: the generated clips are noise. Expect recognisable clips after some thousand steps of each stage.

The three stages are those of the command line: `mutoscope train vq-shapes --data.kind folder ...`, `mutoscope train
par-shapes-4x --tokenizer ...`, `mutoscope generate`. Writes tokenizer/, model/ and samples.png below --out.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from mutoscope import ShapesConfig, ShapesWorld, VideoPipeline, write_video
from mutoscope.data.sources.recorded_data import FolderData
from mutoscope.errors import UserError
from mutoscope.models.par import PARConfig
from mutoscope.recipes.catalog import RECIPES
from mutoscope.runs.train import train
from mutoscope.training.config import ModelRecipe, OptimConfig, TokenizerRecipe

SIZE, NUM_FRAMES = 32, 16  # clips of both recipes; other sizes need another model.latent_shape


def write_videos(folder: Path) -> None:
    """Two classes of four videos each, for a first try without videos of your own."""
    shapes = ShapesWorld(ShapesConfig(height=40, width=48, num_frames=24), seed=0)
    for number in range(8):
        path = folder / ("left" if number % 2 else "right") / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, shapes.clip(number).frames, fps=8)


def train_tokenizer(data: FolderData, out: Path, steps: int, batch_size: int) -> None:
    """Stage 1: from pixels to 8x8x8 tokens of 512 codes and back."""
    recipe = RECIPES["vq-shapes"]()
    assert isinstance(recipe, TokenizerRecipe)
    recipe = replace(
        recipe,
        name="folder-tokenizer",
        data=data,
        optim=with_warmup(recipe.optim, steps),
        loop=replace(recipe.loop, num_steps=steps, batch_size=batch_size),
    )
    train(recipe, out, device="cpu")


def train_model(data: FolderData, tokenizer: Path, out: Path, steps: int, batch_size: int, num_classes: int) -> None:
    """Stage 2: a class-conditional transformer on the tokens, which are encoded once."""
    recipe = RECIPES["par-shapes-4x"]()
    assert isinstance(recipe, ModelRecipe) and isinstance(recipe.model, PARConfig)
    recipe = replace(
        recipe,
        name="folder-model",
        data=data,
        tokenizer=str(tokenizer),
        model=replace(recipe.model, num_classes=num_classes),
        optim=with_warmup(recipe.optim, steps),
        loop=replace(recipe.loop, num_steps=steps, batch_size=batch_size),
    )
    train(recipe, out, device="cpu")


def with_warmup(optim: OptimConfig, steps: int) -> OptimConfig:
    """The recipe's optimizer with a warm-up of at most a tenth of the updates."""
    return replace(optim, warmup_steps=min(optim.warmup_steps, steps // 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="?", help="folder of videos (default: write a few)")
    parser.add_argument("--out", type=Path, default=Path("outputs/trained"), help="folder for the models")
    parser.add_argument("--tokenizer-steps", type=int, default=20)
    parser.add_argument("--model-steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4, help="clips per update")
    options = parser.parse_args()

    videos = options.videos or options.out / "videos"
    if options.videos is None:
        write_videos(videos)
    data = FolderData(path=str(videos), num_frames=NUM_FRAMES, height=SIZE, width=SIZE)
    try:
        num_classes = len(data.class_names())
    except UserError as error:
        parser.error(str(error))
    if not num_classes:
        parser.error(f"{videos} has no sub-folders; put the videos of each class into one, all into one if need be")

    train_tokenizer(data, options.out / "tokenizer", options.tokenizer_steps, options.batch_size)
    train_model(
        data,
        options.out / "tokenizer",
        options.out / "model",
        options.model_steps,
        options.batch_size,
        num_classes,
    )
    pipeline = VideoPipeline.from_pretrained(options.out / "model")
    pipeline(class_label=0, seed=0).save(options.out / "samples.png", scale=4)
    print(f"{options.out / 'model'} is a model folder; {options.out / 'samples.png'} shows one clip")


if __name__ == "__main__":
    main()
