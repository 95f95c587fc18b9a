"""What keeps streams alive: the same model without noise, without intervals, without own rollouts, two seeds each.

    mutoscope record doom-basic,doom-health-gathering recordings/ablation --episodes 120 --max-frames 120 --height 48 \\
        --width 64 --endless
    python benchmarks/world_ablation.py recordings/ablation runs/ablation --updates 1500

Everything is a command of `mutoscope`, so that every run can be repeated or continued by hand: one tokenizer, then
eight models with equal updates on it, each measured by the protocol "world". Runs that are finished are not repeated.
The table goes to FOLDER/ablation.json and to the terminal.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SEEDS = (0, 1)
COMMON = ("--data.tasks-as-classes", "True", "--model.clean-first-frame", "True", "--data.max-gap", "60")
FULL = ("--data.intervals", "1", "1", "1", "2", "--rollouts.share", "0.25")
VARIANTS: dict[str, tuple[str, ...]] = {
    "full": FULL,
    "without noise": (*FULL, "--model.noise-levels", "0"),
    "without intervals": ("--rollouts.share", "0.25"),
    "without own rollouts": ("--data.intervals", "1", "1", "1", "2"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--tokenizer-updates", type=int, default=1200)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    tokenizer = arguments.out / "tokenizer"
    steps = ("--loop.num-steps", str(arguments.tokenizer_updates), "--loop.threads", str(arguments.threads))
    if not (tokenizer / "model_index.json").is_file():
        mutoscope("train", "tokenizer", "--data", str(arguments.recording), "--out", str(tokenizer), *steps)
    rows = [
        {"variant": name, "seed": seed, **figures(arguments, tokenizer, name, seed)}
        for seed in SEEDS
        for name in VARIANTS
    ]
    (arguments.out / "ablation.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=2))
    return 0


def figures(arguments: argparse.Namespace, tokenizer: Path, name: str, seed: int) -> dict[str, object]:
    """Trains one variant with one seed, if need be, and measures it."""
    out = arguments.out / f"{name.replace(' ', '-')}-{seed}"
    if not (out / "model_index.json").is_file():
        loop = {
            "num-steps": arguments.updates,
            "seed": seed,
            "threads": arguments.threads,
            "batch-size": 8,
        }
        flags = [part for key, value in loop.items() for part in (f"--loop.{key}", str(value))]
        chosen = (*COMMON, *VARIANTS[name], *flags, "--rollouts.start-step", str(arguments.updates // 3))
        resume = ("--resume",) if (out / "checkpoints").is_dir() else ()
        data = ("--data", str(arguments.recording), "--tokenizer", str(tokenizer), "--out", str(out))
        mutoscope("train", "magi", *data, *chosen, *resume)
    answer = mutoscope("evaluate", str(out), "--protocol", "world", "--reference", str(arguments.recording), "--json")
    return json.loads(answer)


def mutoscope(*arguments: str) -> str:
    """Runs one command; its output. Its progress goes to the terminal."""
    command: Sequence[str] = (sys.executable, "-m", "mutoscope", *arguments)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
