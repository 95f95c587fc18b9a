"""Draw the house: the parts of the package as rooms on floors, from the imports between them.

    python scripts/draw_house.py [docs/images/house.svg] [--check]

A room is a folder or a file directly in src/mutoscope. Every room is on the lowest floor that is above all rooms it
imports; an arrow means "imports", and arrows that follow from others (A to C beside A to B to C) are omitted. Nothing
is drawn by hand, so the picture is right as long as it is drawn again: --check exits with status 1 if it is not.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "mutoscope"
OUT = ROOT / "docs" / "images" / "house.svg"

# Files every room may import; drawn as the ground below the house.
GROUND = tuple(
    "errors checks json_config meta_device actions state_dicts declared pickles writing waiting arithmetic".split()
)
# The words under the name of a room; a room without words is drawn with its name alone.
WORDS = {
    "cli": "verbs, exit statuses",
    "commands": "one file per verb",
    "studies": "claims, entropy, speed",
    "runs": "train, tokenize, export",
    "recipes": "configurations only",
    "evaluation": "networks, metrics, protocols",
    "extension": "longer and wider clips",
    "pipeline": "call to clips",
    "families": "MAGVIT, PAR, NOVA, MAGI",
    "hub": "model folders",
    "model_index": "what a folder says",
    "interop": "official weights",
    "training": "loops, checkpoints",
    "sampling": "decoding procedures",
    "models": "networks and losses",
    "tokenizers": "pixels to tokens",
    "layers": "building blocks",
    "data": "video files, sources",
    "text": "encoders of prompts",
    "worlds": "environments to recordings",
    "playground": "server and page",
}
ROOM_WIDTH, ROOM_HEIGHT, STAIR_WIDTH, GAP, FLOOR_GAP, MARGIN, ROOF = 170, 46, 14, 24, 44, 40, 90  # pixels
SWEEPS = 8  # passes over the floors that untangle the arrows; more change nothing
Place = tuple[str, str]  # (room, ""), or (room, imported room) where their arrow passes a floor
INK, WALL, PAPER, ARROW = "#1f2933", "#9aa5b1", "#f5f7fa", "#52606d"


def room_of(path: Path) -> str:
    """The part of the package a file belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_rooms(path: Path) -> Iterator[str]:
    """Parts of the package that a file imports anywhere, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "mutoscope":
            names = [f"mutoscope.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (name.split(".")[1] for name in names if name.startswith("mutoscope."))


def import_graph() -> dict[str, set[str]]:
    """Room -> the rooms it imports, without the ground, itself, and the package's own doors."""
    files = [path for path in PACKAGE.rglob("*.py") if not room_of(path).startswith("__")]
    rooms = {room_of(path) for path in files} - set(GROUND)
    graph: dict[str, set[str]] = {room: set() for room in rooms}
    for path in files:
        if (room := room_of(path)) in rooms:
            graph[room] |= (set(imported_rooms(path)) & rooms) - {room}
    return graph


def reachable(graph: dict[str, set[str]], room: str) -> set[str]:
    """Every room that `room` depends on, directly or not."""
    found: set[str] = set()
    waiting = list(graph[room])
    while waiting:
        other = waiting.pop()
        if other not in found:
            found.add(other)
            waiting += graph[other]
    return found


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph without the arrows that follow from others."""
    return {
        room: {other for other in others if not any(other in reachable(graph, third) for third in others - {other})}
        for room, others in graph.items()
    }


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """Rooms by floor, lowest first; raises SystemExit if rooms import each other in a circle."""
    for room in graph:
        if room in reachable(graph, room):
            sys.exit(f"{room} imports itself through other rooms; there is no floor for it.")
    level: dict[str, int] = {}
    while len(level) < len(graph):
        for room, others in graph.items():
            if room not in level and others <= set(level):
                level[room] = 1 + max((level[other] for other in others), default=-1)
    return [sorted(room for room in level if level[room] == n) for n in range(1 + max(level.values()))]


def stairs(stories: list[list[str]], graph: dict[str, set[str]]) -> tuple[list[list[Place]], list[list[Place]]]:
    """Places by floor, and the way of every arrow as places from top to bottom.

    A place is a room, or a stair: the part of an arrow that passes a floor.
    """
    level = {room: n for n, rooms in enumerate(stories) for room in rooms}
    places: list[list[Place]] = [[(room, "") for room in rooms] for rooms in stories]
    ways: list[list[Place]] = []
    for room, others in sorted(graph.items()):
        for other in sorted(others):
            passed = range(level[room] - 1, level[other], -1)
            for n in passed:
                places[n].append((room, other))
            ways.append([(room, ""), *((room, other) for _ in passed), (other, "")])
    return places, ways


def arranged(places: list[list[Place]], ways: list[list[Place]], width: float) -> dict[tuple[int, Place], float]:
    """Horizontal centre of every place: floors are sorted by the mean position of their neighbours, down and up."""
    level = {place: n for n, floor in enumerate(places) for place in floor if not place[1]}
    neighbours: dict[tuple[int, Place], set[tuple[int, Place]]] = {}
    for way in ways:
        numbered = [(level[way[0]] - i, place) for i, place in enumerate(way)]
        for above, below in pairwise(numbered):
            neighbours.setdefault(above, set()).add(below)
            neighbours.setdefault(below, set()).add(above)
    centre: dict[tuple[int, Place], float] = {}
    for n, floor in enumerate(places):
        centre |= spread_out(n, floor, width)
    order = list(range(len(places)))
    for _ in range(SWEEPS):
        for n in (*order, *reversed(order)):
            mean = {
                place: sum(centre[other] for other in neighbours[n, place]) / len(neighbours[n, place])
                if (n, place) in neighbours
                else centre[n, place]
                for place in places[n]
            }
            places[n].sort(key=lambda place: (mean[place], place))
            centre |= spread_out(n, places[n], width)
    return centre


def spread_out(level: int, floor: list[Place], width: float) -> dict[tuple[int, Place], float]:
    """Centres of the places of one floor, side by side with equal free space between them."""
    widths = [ROOM_WIDTH if not other else STAIR_WIDTH for _, other in floor]
    free = (width - 2 * MARGIN - sum(widths)) / (len(floor) + 1)
    x, centres = MARGIN + free, {}
    for place, own in zip(floor, widths, strict=True):
        centres[level, place] = x + own / 2
        x += own + free
    return centres


def text(x: float, y: float, words: str, size: int, weight: str = "normal", fill: str = INK) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
        f'text-anchor="middle">{escape(words)}</text>'
    )


def draw() -> str:
    """The house as SVG."""
    graph = reduced(import_graph())
    stories = floors(graph)
    places, ways = stairs(stories, graph)
    width = 2 * MARGIN + max(
        sum(GAP + (ROOM_WIDTH if not other else STAIR_WIDTH) for _, other in floor) for floor in places
    )
    height = ROOF + len(stories) * (ROOM_HEIGHT + FLOOR_GAP) + 70
    centre = arranged(places, ways, width)
    top = [ROOF + FLOOR_GAP / 2 + (len(stories) - 1 - n) * (ROOM_HEIGHT + FLOOR_GAP) for n in range(len(stories))]
    parts = [*house(width, height), *arrows(ways, centre, top), *rooms(centre, top)]
    parts.append(text(width / 2, height - 22, "every room may import " + ", ".join(GROUND), 13, fill=ARROW))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif">',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0,0 L8,4 L0,8 z" fill="{ARROW}"/></marker></defs>',
            *parts,
            "</svg>\n",
        ]
    )


def house(width: float, height: float) -> list[str]:
    """Roof, walls and ground."""
    ground, middle = height - 48, width / 2
    return [
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<path d="M{MARGIN / 2},{ROOF} L{middle},12 L{width - MARGIN / 2},{ROOF}" fill="none" stroke="{WALL}" '
        'stroke-width="3"/>',
        f'<path d="M{MARGIN / 2},{ROOF} V{ground} H{width - MARGIN / 2} V{ROOF}" fill="none" stroke="{WALL}" '
        'stroke-width="3"/>',
        text(middle, ROOF - 22, "src/mutoscope", 18, "bold"),
    ]


def arrows(ways: list[list[Place]], centre: dict[tuple[int, Place], float], top: list[float]) -> list[str]:
    """A line from every room down its stairs to each room it imports."""
    level = {place: n for n, place in centre if not place[1]}
    found = []
    for way in ways:
        first = level[way[0]]
        x, y = centre[first, way[0]], top[first] + ROOM_HEIGHT
        path = f"M{x:.0f},{y:.0f}"
        for n, place in zip(range(first - 1, -1, -1), way[1:], strict=False):
            to_x, to_y = centre[n, place], top[n] - (0 if place[1] else 2)
            bend = (to_y - y) / 2
            path += f" C{x:.0f},{y + bend:.0f} {to_x:.0f},{to_y - bend:.0f} {to_x:.0f},{to_y:.0f}"
            x, y = to_x, to_y
            if place[1]:
                y += ROOM_HEIGHT
                path += f" L{x:.0f},{y:.0f}"
        found.append(f'<path d="{path}" fill="none" stroke="{ARROW}" stroke-width="1.3" marker-end="url(#tip)"/>')
    return found


def rooms(centre: dict[tuple[int, Place], float], top: list[float]) -> list[str]:
    """A box with a name and a few words per room."""
    found = []
    for (n, (room, other)), x in sorted(centre.items()):
        if other:
            continue
        found.append(
            f'<rect x="{x - ROOM_WIDTH / 2:.0f}" y="{top[n]:.0f}" width="{ROOM_WIDTH}" height="{ROOM_HEIGHT}" rx="6" '
            f'fill="{PAPER}" stroke="{INK}" stroke-width="1.5"/>'
        )
        words = WORDS.get(room)
        found.append(text(x, top[n] + (20 if words else 28), room, 15, "bold"))
        if words:
            found.append(text(x, top[n] + 37, words, 11, fill=ARROW))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=OUT)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    arguments = parser.parse_args()
    picture = draw()
    if arguments.check:
        current = arguments.out.exists() and arguments.out.read_text(encoding="utf-8") == picture
        if not current:
            print(f"{arguments.out} is out of date: run python scripts/draw_house.py", file=sys.stderr)
        return int(not current)
    arguments.out.write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
