"""Opens all hostile files with all verbs: `python -m hostile [PART OF A NAME] [--every N]` in the folder `tests`.

Prints each promise that is not kept, and writes counts, the largest memory and the longest time to
`benchmarks/results/hostile_files.json` where no part of a name is given.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from hostile.cases import all_cases
from hostile.harness import Outcome, outcomes, prepared

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "hostile_files.json"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Open hostile files with all verbs.")
    parser.add_argument("part", nargs="?", default="", help="of a kind or name: only these files")
    parser.add_argument("--every", type=int, default=1, help="open one file of so many")
    parser.add_argument("--first", type=int, default=0, help="from this one on")
    options = parser.parse_args(arguments)
    part = options.part
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="hostile-models-") as name:
        prepared(Path(name))
        for case in [case for case in all_cases() if part in f"{case.kind}: {case.name}"][
            options.first :: options.every
        ]:
            for outcome in outcomes(case, Path(name)):
                found.append(outcome)
                if outcome.faults or part:
                    kept = ", ".join(outcome.faults) or "ok"
                    print(f"{case.kind}: {case.name[:100]} | {outcome.line} | {kept}", flush=True)
                    cost = f"{outcome.memory >> 20} MB, {outcome.seconds:.1f} s"
                    print(f"    {cost}: {outcome.message[-300:]!r}", flush=True)
    report = summarised(found)
    print(json.dumps({name: value for name, value in report.items() if name != "largest"}, indent=1))
    if not part:
        report["one_file_of"] = options.every
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(outcome.faults for outcome in found))


def summarised(found: list[Outcome]) -> dict[str, object]:
    """Counts and extremes of all outcomes."""
    largest = sorted(found, key=lambda outcome: -outcome.memory)[:5]
    longest = sorted(found, key=lambda outcome: -outcome.seconds)[:5]
    return {
        "files": len({outcome.case.name for outcome in found}),
        "openings": len(found),
        "files_by_kind": dict(Counter(kind for kind, _ in {(o.case.kind, o.case.name) for o in found})),
        "openings_by_verb": dict(Counter(outcome.line.split()[0] for outcome in found)),
        "executed": sum(outcome.executed for outcome in found),
        "status_2": sum(outcome.status == 2 for outcome in found),
        "promises_not_kept": dict(Counter(fault for outcome in found for fault in outcome.faults)),
        "largest_memory_bytes": max(outcome.memory for outcome in found),
        "longest_processor_seconds": round(max(outcome.seconds for outcome in found), 2),
        "largest": [[o.case.name[:80], o.line, o.memory] for o in largest],
        "longest": [[o.case.name[:80], o.line, round(o.seconds, 2)] for o in longest],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
