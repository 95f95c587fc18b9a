"""Fine-tuning to another look: held-back loss before, after some updates, and of training from scratch beside it.

    python benchmarks/finetune.py OUT.json [--models magi-shapes nova-shapes] [--steps 100 500] [--batch-size 2]

Nine minutes on one core. The clips of eight frames are negatives of the synthetic dataset "shapes" (light grounds,
complementary colours), written as short videos into one folder per class with a caption beside each, as a user would
have them: 23 classes, of which all names are known to magi-shapes, and captions with the two new words "negative" and
"of". Fine-tuning and training from scratch read the same token cache, have the same batches and one thread; training
from scratch has the learning rates of the recipe by that name. The loss is that of training on held-back clips,
averaged over the same draws for every row.
"""

import argparse
import math
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from mutoscope import hub
from mutoscope.data.sources.registry import of_kind
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED
from mutoscope.data.sources.tokens import TokenCache, TokensData
from mutoscope.data.video.write import write_video
from mutoscope.families import family_of
from mutoscope.layers.lora import LoRAConfig
from mutoscope.models.base import AnyModel
from mutoscope.recipes.catalog import RECIPES
from mutoscope.runs.finetune import LORA_RATE, planned_finetuning, starting_recipe
from mutoscope.runs.start import start
from mutoscope.runs.text import open_text_encoder
from mutoscope.runs.train import open_cache, train
from mutoscope.training.callbacks import TrainEvent
from mutoscope.training.config import ModelRecipe, with_data
from mutoscope.training.distributed import join
from timing import Report, write_report

NUM_TRAINED, NUM_HELD_BACK = 384, 64  # clips
FPS, NUM_FRAMES = 8, 8
DRAWS = 2  # of the loss for every held-back clip
EVALUATED = 32  # clips per pass


def write_negatives(folder: Path, seed: int, count: int) -> Path:
    """Short videos of the dataset in negative, one folder per class, with captions beside them."""
    data = ShapesData(num_frames=NUM_FRAMES, height=32, width=32, seed=seed)
    source, names = data.open(), data.class_names()
    for first in range(0, count, EVALUATED):
        batch = source[range(first, min(first + EVALUATED, count))]
        for i, clip in enumerate(batch["video"].numpy()):
            path = folder / names[int(batch["label"][i])] / f"{first + i:04}.webm"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, 255 - clip, FPS)
            path.with_suffix(".txt").write_text(f"negative of {batch['caption'][i]}")
    return folder


class HeldBackLoss:
    """The training loss on held-back clips, the same draws every time."""

    def __init__(self, recipe: ModelRecipe, cache: TokenCache) -> None:
        self.prepare = family_of(recipe.model).batch_step(recipe.model, recipe.task_weights)
        self.cache, self.tasks = cache, len(recipe.task_weights)

    @torch.no_grad()
    def __call__(self, model: AnyModel) -> float:
        """Mean over all clips and draws."""
        losses = []
        for draw in range(DRAWS):
            for first in range(0, len(self.cache), EVALUATED):
                batch = self.prepare(self.cache[range(first, min(first + EVALUATED, len(self.cache)))], draw)
                generator = torch.Generator().manual_seed(1000 * draw + first)
                losses.append(float(model.loss(cast("dict", batch), generator)[0]))  # type: ignore[arg-type]
        return sum(losses) / len(losses)


def measured(recipe: ModelRecipe, loss: HeldBackLoss, steps: Sequence[int], out: Path) -> Report:
    """Held-back loss of the averaged weights after some updates, and processor seconds, evaluation included."""
    row: dict[str, object] = {}

    def evaluate(event: TrainEvent) -> None:
        if event.step in steps:
            row[f"after {event.step}"] = loss(cast(AnyModel, event.network))

    start = time.process_time()
    train(recipe, out, callbacks=(evaluate,), device="cpu")
    return row | {"processor_seconds": time.process_time() - start, "learning_rate": recipe.optim.peak_learning_rate}


def shared_clips(recipe: ModelRecipe, videos: Path, held_back: Path, out: Path) -> tuple[ModelRecipe, TokenCache]:
    """The recipe on the tokens of `videos`, and the tokens of `held_back`, with one text encoder for both."""
    process, tokenizer = join("cpu"), hub.load_tokenizer(recipe.tokenizer)
    text = open_text_encoder(recipe, out, process)
    cache = open_cache(recipe, tokenizer, out, process, text)
    other = replace(recipe, data=of_kind(recipe.data, "folder", str(held_back)))
    tokens = TokensData(path=str(cache.folder), num_frames=recipe.data.num_frames, fps=recipe.data.fps)
    encoder = None if text is None else str(text.folder)
    return (
        replace(recipe, data=tokens, text_encoder=encoder),
        open_cache(other, tokenizer, out / "held-back", process, text),
    )


def variants(recipe: ModelRecipe, scratch: ModelRecipe, lora_rate: float) -> dict[str, ModelRecipe]:
    """Fine-tuning, with LoRA, and from random weights with the learning rates of the model's own recipe."""
    slow = replace(recipe.optim, peak_learning_rate=lora_rate, muon_learning_rate=None)
    return {
        "fine-tuned": recipe,
        "fine-tuned with LoRA": replace(recipe, lora=LoRAConfig(), optim=slow),
        "from scratch": replace(recipe, start_from=None, optim=scratch.optim, model=recipe.model),
    }


def compare(name: str, arguments: argparse.Namespace, folder: Path) -> Report:
    """All rows of one model."""
    recipe = with_data(starting_recipe(name), None, str(folder / "videos"))
    steps = sorted(arguments.steps)
    loop = replace(
        recipe.loop,
        num_steps=steps[-1],
        batch_size=arguments.batch_size,
        sample_every=math.gcd(*steps),
        checkpoint_every=steps[-1],
        num_workers=0,
        threads=1,
        validation_share=0.0,
    )
    data = replace(recipe.data, num_frames=NUM_FRAMES)
    plan = planned_finetuning(replace(recipe, loop=loop, data=data), kept={"data.num_frames"})
    recipe, held_back = shared_clips(plan.recipe, folder / "videos", folder / "held-back", folder / name)
    own = RECIPES[name]()
    assert isinstance(own, ModelRecipe)
    loss = HeldBackLoss(recipe, held_back)
    rows: dict[str, object] = {}
    for row, variant in variants(recipe, own, LORA_RATE).items():
        if row in arguments.rows:
            print(name, row)
            rows[row] = {"before": loss(begun(variant))} | measured(variant, loss, steps, folder / name / row)
            print(rows[row])
    adapted = [line.replace(f"{folder}/", "") for line in plan.lines()]
    return {"adapted": adapted, "rows": rows}


def begun(recipe: ModelRecipe) -> AnyModel:
    """The network before its first update; also for a recipe that starts from random weights."""
    torch.manual_seed(recipe.loop.seed)
    model = family_of(recipe.model).network(recipe.model)
    start(recipe, model)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=["magi-shapes", "nova-shapes"])
    parser.add_argument("--rows", nargs="+", default=["fine-tuned", "fine-tuned with LoRA", "from scratch"])
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 500])
    parser.add_argument("--batch-size", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_negatives(folder / "videos", seed=0, count=NUM_TRAINED)
        write_negatives(folder / "held-back", seed=HELD_BACK_SEED, count=NUM_HELD_BACK)
        models = {model: compare(model, arguments, folder) for model in arguments.models}
    report: Report = {
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
        "dtype": "float32",
        "batch_size": arguments.batch_size,
        "num_frames": NUM_FRAMES,
        "clips": {"trained": NUM_TRAINED, "held_back": NUM_HELD_BACK, "draws": DRAWS},
        "models": models,
    }
    write_report(arguments.out, report)


if __name__ == "__main__":
    main()
