"""Dependencies between the parts go in one direction; parsed from the imports, so that nothing has to be loaded."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "mutoscope"
FILES = sorted(PACKAGE.rglob("*.py"))

_MODELS = {"layers", "tokenizers", "models"}
_SAMPLING = _MODELS | {"sampling"}
_FAMILIES = _SAMPLING | {"data", "text", "model_index", "families"}
_PIPELINE = _FAMILIES | {"hub", "pipeline"}
_TRAINING = _MODELS | {"data", "training"}
_EVALUATION = _PIPELINE | {"extension", "evaluation"}
_RUNS = _EVALUATION | _TRAINING | {"recipes", "runs"}

# They import at most each other.
LEAVES = set(
    "errors checks json_config meta_device actions ownership state_dicts terminal declared pickles writing waiting "
    "arithmetic".split()
)

# part -> the parts it may import besides the leaves (docs/architecture.md draws these arrows)
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "checks": set(),
    "json_config": set(),
    "actions": set(),
    "meta_device": set(),
    "state_dicts": {"declared", "pickles"},
    "ownership": set(),
    "terminal": set(),
    "declared": set(),
    "pickles": {"declared"},
    "waiting": set(),
    "arithmetic": set(),
    "writing": {"ownership"},
    "layers": {"layers"},
    "data": {"data"},
    "worlds": {"data", "worlds"},
    "tokenizers": {"layers", "tokenizers"},
    "models": {"layers", "models"},
    "sampling": {"layers", "sampling"},  # samplers know no architecture
    "text": {"text"},
    "interop": _MODELS | {"interop"},
    "model_index": set(),
    "families": _FAMILIES,
    "hub": _FAMILIES | {"interop", "hub"},
    "pipeline": _PIPELINE,
    "extension": _PIPELINE,
    "playground": _PIPELINE | {"worlds", "playground"},
    "evaluation": _EVALUATION,
    "training": _TRAINING,
    "recipes": _TRAINING | {"recipes", "sampling", "text", "interop"},
    "runs": _RUNS,
    "studies": _RUNS | {"studies"},
    "commands": _RUNS | {"studies", "interop", "worlds", "playground", "commands"},
    "cli": {"commands", "cli"},
    "__main__": {"cli"},
    "__init__": _PIPELINE,
}

# What a module may import when it is itself imported; everything else waits inside the function that needs it.
CORE_LIBRARIES = {"torch", "numpy", "einops", "safetensors", "jaxtyping", "tyro", "tqdm", "PIL"}

GLOBAL_DRAWS = set(
    "bernoulli multinomial normal poisson rand rand_like randint randint_like randn randn_like randperm".split()
)
IN_PLACE_DRAWS = set("bernoulli_ cauchy_ exponential_ geometric_ log_normal_ normal_ random_ uniform_".split())
INITIALISERS = re.compile(r"__init__$|reset_parameters$|_?init(ialize)?_")
EXPLICIT_NUMPY_GENERATORS = {"Generator", "PCG64", "Philox", "SeedSequence", "default_rng"}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def module_name(path: Path) -> str:
    parts = ("mutoscope", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(node: ast.AST, path: Path) -> list[str]:
    """Absolute dotted names that one import statement may bind: `from a import b` yields `a` and `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = module_name(path).split(".")
        drop = node.level - (path.name == "__init__.py")
        base = ".".join([*package[: len(package) - drop], *([node.module] if node.module else [])])
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything of this package that a file imports anywhere, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, name) for name in imported_names(node, path) if name.startswith("mutoscope."))


def test_parsing_understands_every_form_of_import():
    source = "import mutoscope.hub\nfrom mutoscope import cli\nfrom ..layers import masks\nfrom . import base\n"
    path = PACKAGE / "models" / "magvit.py"
    names = [imported_names(node, path) for node in ast.parse(source).body]
    assert names == [
        ["mutoscope.hub"],
        ["mutoscope", "mutoscope.cli"],
        ["mutoscope.layers", "mutoscope.layers.masks"],
        ["mutoscope.models", "mutoscope.models.base"],
    ]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_follow_the_arrows(path: Path):
    part = part_of(path)
    assert part in MAY_IMPORT, f"say in MAY_IMPORT what the new part {part!r} may import"
    parts = {p for p in MAY_IMPORT if p != "__init__"}
    for line, name in own_imports(path):
        target = name.split(".")[1]
        if target in parts:
            allowed = MAY_IMPORT[part] | ({"errors"} if part in LEAVES else LEAVES)
            assert target in allowed, f"{path}:{line}: {part} must not import {target}"


def test_every_part_on_disk_has_a_rule():
    on_disk = {part_of(path) for path in FILES}
    assert on_disk <= set(MAY_IMPORT), on_disk - set(MAY_IMPORT)


def test_models_never_import_each_other():
    """Each paper has a folder, whose files import each other and the contract in `base`."""
    for path in PACKAGE.glob("models/**/*.py"):
        allowed = {"base", path.parent.name} - {"models"}
        for line, name in own_imports(path):
            _, part, *module = name.split(".")
            assert part != "models" or module == [] or module[0] in allowed, f"{path}:{line} imports {name}"


def module_level_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements run on import: through `if`, `try` and class bodies, not into functions or TYPE_CHECKING."""
    for statement in body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from module_level_statements(statement.orelse)
            continue
        yield statement
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from module_level_statements(getattr(statement, field, []))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_core_libraries_are_imported_at_module_level(path: Path):
    for statement in module_level_statements(ast.parse(path.read_text()).body):
        for name in imported_names(statement, path):
            top = name.split(".")[0]
            known = top in sys.stdlib_module_names or top in CORE_LIBRARIES or top == "mutoscope"
            assert known, f"{path}:{statement.lineno}: import {name} inside the function that needs it"
            assert not name.startswith("torch.utils.tensorboard"), f"{path}:{statement.lineno}: needs an extra"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_needs_torchvision(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not any(name.split(".")[0] == "torchvision" for name in imported_names(node, path)), path


def walk_outside_initialisation(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those of constructors and `initialize…`: weights start from the generator the trainer seeds."""
    yield node
    for child in ast.iter_child_nodes(node):
        name = getattr(child, "name", None)
        if not (isinstance(child, ast.FunctionDef) and INITIALISERS.match(str(name))):
            yield from walk_outside_initialisation(child)


def hidden_draws(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Calls that take random numbers from a global generator, and `.cuda()` calls."""
    for node in walk_outside_initialisation(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        has_generator = any(keyword.arg in ("generator", None) for keyword in node.keywords)
        if owner == "torch" and name in GLOBAL_DRAWS and not has_generator:
            yield node.lineno, f"torch.{name} without generator="
        if name in IN_PLACE_DRAWS and not has_generator and not owner.endswith("init"):
            yield node.lineno, f".{name} without generator="
        if owner in ("np.random", "numpy.random") and name not in EXPLICIT_NUMPY_GENERATORS:
            yield node.lineno, f"{owner}.{name} uses NumPy's global state"
        if owner == "random" and name not in ("Random",):
            yield node.lineno, f"random.{name} uses the global state"
        if name == "cuda" and owner != "torch":
            yield node.lineno, ".cuda()"


def test_hidden_draws_are_recognised():
    bad = "torch.randn(3)\nx.uniform_(0, 1)\nnp.random.rand(2)\nrandom.random()\nx.cuda()"
    seeded = "torch.randn(3, generator=g)\nx.exponential_(generator=g)\nnp.random.default_rng(0)"
    initial = "def __init__():\n    torch.randn(3)\nnn.init.normal_(w)"
    assert [line for line, _ in hidden_draws(ast.parse(bad))] == [1, 2, 3, 4, 5]
    assert not list(hidden_draws(ast.parse(f"{seeded}\n{initial}")))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_every_random_draw_takes_a_generator_and_no_device_is_hidden(path: Path):
    found = list(hidden_draws(ast.parse(path.read_text())))
    assert not found, f"{path}: {found}"


@pytest.mark.parametrize("path", [p for p in FILES if part_of(p) in _MODELS], ids=module_name)
def test_dropout_takes_its_draws_from_the_clips(path: Path):
    """PyTorch's draws from the global generator, so that a loss would depend on how its batch is split."""
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if re.search(r"\b(F|nn|functional)\.\w*[dD]ropout", call)]


def test_type_checkers_see_the_public_names_that_are_imported_lazily():
    """`mutoscope/__init__.py` lists them twice: once to import on first use, once for editors."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    seen = {a.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    seen = {name: module for name, module in seen.items() if str(module).startswith("mutoscope")}
    [lazily] = [node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)]
    assert seen == ast.literal_eval(lazily)


# Where a family may be named: its own files (named after it, or one of these), its recipes and studies, the readers of
# published checkpoints and tables. Everything else asks FAMILIES.
FAMILY_ROOMS = re.compile(
    r"(families|interop|recipes|studies|zoo)/|models/(magvit|par|nova|magi|far)/"
    r"|sampling/(masked|parallel_ar|frame_ar|frame_stream|frame_flow)"
    r"|commands/converters/|evaluation/protocols/published"
)
METRIC_CONVENTIONS = {("evaluation/metrics/ssim.py", "magvit")}  # a way to compute SSIM, named after its paper
# "far" and "FAR" are also words: there, only names of classes and of models count.
FAMILY_NAME = re.compile(
    r"(magvit|par|nova|magi)\b|far-\w|(Magvit|PAR|NOVA|MAGI)([A-Z][a-z]\w*|_\w+)?$|FAR([A-Z][a-z]\w*|_FAMILY)$"
)


def names_and_strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of every identifier and string of a file except docstrings."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias):
            yield node.lineno, node.name.split(".")[-1]


def test_family_names_are_recognised():
    code = (
        "'All of magvit.'\nMagvitCall\ny = 'nova'\nx.par\nimport a.magi\nparameter = 'magvitish'\nFARCall\nfar = 'far'"
    )
    found = [text for _, text in names_and_strings(ast.parse(code)) if FAMILY_NAME.match(text)]
    assert sorted(found) == ["FARCall", "MagvitCall", "magi", "nova", "par"]


@pytest.mark.parametrize(
    "path", [path for path in FILES if not FAMILY_ROOMS.match(path.relative_to(PACKAGE).as_posix())], ids=module_name
)
def test_no_family_is_named_outside_its_rooms(path: Path):
    relative = path.relative_to(PACKAGE).as_posix()
    for line, text in names_and_strings(ast.parse(path.read_text())):
        if FAMILY_NAME.match(text) and (relative, text) not in METRIC_CONVENTIONS:
            raise AssertionError(f"{relative}:{line}: {text!r}: ask the family's declaration instead")
