"""The table of docs/speed.md: `mutoscope bench speed MODEL --against plain` for every bundled model.

    python benchmarks/speed_page.py OUT.json [--models par-shapes-4x ...] [--threads 1] [--repeats 2]

Every model runs in a process of its own, one after the other; models that are in OUT already are kept, so that an
interrupted run goes on. Prints the rows of the table in Markdown.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from timing import write_report

MODELS = (
    "par-shapes-16x",
    "par-shapes-4x",
    "magvit-shapes",
    "magi-shapes",
    "nova-shapes",
    "vq-shapes",
    "vae-shapes",
    "magi-doom",
)


def measured(model: str, threads: int, repeats: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "mutoscope", "bench", "speed", model, "--against", "plain", "--json"]
    options = ["--threads", str(threads), "--repeats", str(repeats)]
    return json.loads(subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True, text=True).stdout)


def markdown(report: dict[str, Any]) -> list[str]:
    return [
        f"| `{report['model']}` | {row['row']} | {row['seconds']:.3g} | {row['ratio']:.2f} | {row['gflop']:.2f} | "
        f"{row['bound_seconds']:.3g} | {row['fraction']:.2f} | {row['same_pixels']:.3f} |"
        for row in report["rows"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    found = json.loads(options.out.read_text())["models"] if options.out.exists() else {}
    for model in options.models:
        if model not in found:
            found[model] = measured(model, options.threads, options.repeats)
            write_report(options.out, {"models": found})
        print("\n".join(markdown(found[model])), flush=True)


if __name__ == "__main__":
    main()
