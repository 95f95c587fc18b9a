"""Put the line numbers of the documents' links into the code right again.

    python scripts/refresh_doc_links.py

A link such as [`VQ3D.encode`](../src/mutoscope/tokenizers/vq3d.py#L251) names a class, a function, or a method of a
class.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[`([\w.]+)`\]\(([^)#]+)#L\d+\)")


def line_of(name: str, path: Path) -> int:
    """Line on which a class, a function or a method is defined; exits with a message if there is none."""
    lines, start = path.read_text(encoding="utf-8").splitlines(), 0
    for part in name.split("."):
        definition = re.compile(rf"\s*(def|class) {part}\b")
        found = [i for i in range(start, len(lines)) if definition.match(lines[i])]
        if not found:
            sys.exit(f"{path} does not define {name}.")
        start = found[0]
    return start + 1


def refresh(document: Path) -> bool:
    """Whether anything had to change."""
    before = document.read_text(encoding="utf-8")
    after = LINK.sub(
        lambda m: f"[`{m[1]}`]({m[2]}#L{line_of(m[1], document.parent / m[2])})",
        before,
    )
    document.write_text(after, encoding="utf-8")
    return after != before


if __name__ == "__main__":
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        if refresh(path):
            print(f"{path.relative_to(ROOT)} refreshed")
