"""Correct the links from the documents into the code: file and line of every class, function and method.

    python scripts/refresh_doc_links.py [--check]

A link such as [`VQ3D.encode`](../src/mutoscope/tokenizers/vq3d.py#L251) names a class, a function, or a method of a
class. Where the file no longer defines the name, the link follows it to the file of the package that does; of several,
to the one whose path is most similar, with a note to look at it.
--check changes nothing and exits with status 1 if a link is wrong.
"""

import argparse
import ast
import os
import re
import sys
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "mutoscope"
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
UNKNOWN_LINE = 0  # in a link whose definition is gone; tests/test_docs.py fails for it
LINK = re.compile(r"\[`([\w.]+)`\]\(([^)#]+\.py)#L\d+\)")


@cache
def definitions(path: Path) -> dict[str, int]:
    """Line of every class and function of a file, and of every method as CLASS.METHOD."""
    found: dict[str, int] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = node.lineno
        if isinstance(node, ast.ClassDef):
            methods = (m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{method.name}": method.lineno for method in methods}
    return found


def locate(name: str, path: Path) -> tuple[Path, int] | None:
    """File and line of a definition, looked for in `path` first; None, with a message, if no file defines it."""
    if path.exists() and name in definitions(path):
        return path, definitions(path)[name]
    found = [other for other in sorted(PACKAGE.rglob("*.py")) if name in definitions(other)]
    if not found:
        print(f"No file of the package defines {name}, which was in {path}. Correct the link by hand.")
        return None
    nearest = max(found, key=lambda other: SequenceMatcher(None, str(path), str(other)).ratio())
    if len(found) > 1:
        print(f"{name} is defined in {len(found)} files; the link to {path} now goes to {nearest}. Is that right?")
    return nearest, definitions(nearest)[name]


def refreshed(text: str, folder: Path) -> str:
    """The text of a document in `folder` with every link into the code corrected."""

    def corrected(link: re.Match[str]) -> str:
        found = locate(link[1], Path(os.path.normpath(folder / link[2])))
        if found is None:
            return f"[`{link[1]}`]({link[2]}#L{UNKNOWN_LINE})"
        path, line = found
        return f"[`{link[1]}`]({os.path.relpath(path, folder)}#L{line})"

    return LINK.sub(corrected, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only report wrong links")
    check = parser.parse_args().check
    wrong = 0
    for path in filter(Path.exists, DOCUMENTS):
        before = path.read_text(encoding="utf-8")
        after = refreshed(before, path.parent)
        if after != before:
            wrong += 1
            print(f"{path.relative_to(ROOT)} {'has wrong links' if check else 'refreshed'}")
            if not check:
                path.write_text(after, encoding="utf-8")
    return int(check and wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
