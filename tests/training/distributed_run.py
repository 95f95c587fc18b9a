"""Trains the fakes under torchrun or alone: `python -m training.distributed_run OUT ACCUMULATION [resume]`."""

import sys

from mutoscope.training.tokenizer_trainer import train_tokenizer
from mutoscope.training.trainer import train_model
from training.fakes import FakeModel, FakeSource, FakeTokenizer, features_recipe, tokenizer_recipe


def main(out: str, accumulation: int, resume: bool) -> None:
    options = {"accumulation": accumulation, "batch_size": 8, "num_steps": 6, "checkpoint_every": 3, "ema_decay": 0.9}
    options |= {"ema_warmup": True, "validation_share": 0.25, "validate_every": 2}
    source, stage_1, stage_2 = FakeSource(20), tokenizer_recipe(**options), features_recipe(**options, clip_norm=0.1)
    train_tokenizer(FakeTokenizer(), stage_1, source, f"{out}/tokenizer", resume=resume, device="cpu")
    train_model(FakeModel(0, 0), stage_2, source, f"{out}/model", resume=resume, device="cpu")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), resume=sys.argv[3:] == ["resume"])
