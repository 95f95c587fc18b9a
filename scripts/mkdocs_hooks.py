"""Additions of `mkdocs build` to docs/: cards, CONTRIBUTING, CHANGELOG, API pages of whole packages, working links.

The documents link to files of the repository (`../src/mutoscope/…`, `../README.md`), which a reader of the repository
can follow and a reader of the site cannot. The hook copies the cards and the two root documents into the site, and
turns a link to any other repository file into the name of that file. In docs/api a line `::: mutoscope.PACKAGE.**`
stands for one `:::` directive per module of that package, so that no page lists modules that moved.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#|<)([^)#\s]+)(#[^)\s]*)?\)")
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
CARD = "MODEL_CARD.md"
EVERY_MODULE = re.compile(r"^::: (mutoscope\.[\w.]+)\.\*\*$", re.MULTILINE)


def cards() -> dict[str, Path]:
    """Page in the site and file of every model card."""
    found = sorted((ROOT / "src" / "mutoscope" / "zoo").glob(f"*/{CARD}"))
    return {f"cards/{path.parent.name}.md": path for path in found}


def generated_pages() -> dict[str, Path]:
    """Pages of the site that are not in docs/, with the files they are copied from."""
    return cards() | {page: ROOT / name for name, page in ROOT_PAGES.items() if name != "README.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lists the cards in the navigation."""
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Model cards" in entry:
            entry["Model cards"] = [{Path(page).stem: page} for page in cards()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to the site."""
    for page, path in generated_pages().items():
        files.append(File.generated(config, page, content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of one page to pages of the site, or to the names of files outside it."""
    markdown = EVERY_MODULE.sub(lambda directive: "\n\n".join(map("::: {}".format, modules_of(directive[1]))), markdown)
    here = page.file.src_uri
    source = generated_pages().get(here, ROOT / "docs" / here)
    return "".join(
        line if is_code else LINK.sub(lambda link: rewritten(link, source.parent, here), line)
        for line, is_code in with_fences(markdown)
    )


def modules_of(package: str) -> list[str]:
    """Dotted names of the modules of a package, by folder and name; files that only mark a folder are omitted."""
    folder = ROOT / "src" / Path(*package.split("."))
    found = [path for path in sorted(folder.rglob("*.py")) if path.name != "__init__.py"]
    found += [path for path in sorted(folder.rglob("__init__.py")) if len(path.read_text(encoding="utf-8")) > 200]
    parts = (path.relative_to(ROOT / "src").with_suffix("").parts for path in found)
    return sorted(".".join(part for part in names if part != "__init__") for names in parts)


def with_fences(markdown: str) -> list[tuple[str, bool]]:
    """Every line, and whether it belongs to a fenced block."""
    lines, inside = [], False
    for line in markdown.splitlines(keepends=True):
        fence = line.startswith("```")
        lines.append((line, inside or fence))
        inside ^= fence
    return lines


def rewritten(link: re.Match[str], folder: Path, here: str) -> str:
    """One link, as it works from the page `here` of the site."""
    text, target, anchor = link[1], os.path.normpath(folder / link[2]), link[3] or ""
    path = Path(target)
    if path.is_relative_to(ROOT / "docs"):
        page = str(path.relative_to(ROOT / "docs"))
    else:
        by_file = {file: page for page, file in generated_pages().items()} | {ROOT / "README.md": "index.md"}
        page = by_file.get(path, "")
    if page:
        return f"[{text}]({os.path.relpath(page, os.path.dirname(here) or '.')}{anchor})"
    name = os.path.relpath(path, ROOT)
    return text if text.startswith("`") else f"{text} (`{name}`)"
