"""The floors of the package, lowest first, and their picture: who imports whom, read from the imports themselves."""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "largebatch"
FLOORS = (  # a room imports from floors below it: science stands below the machine, and does not know it
    "terminal", "errors", "optim", "plan", "recipes", "records", "report", "data", "models", "tasks", "optimizers",
    "diagnostics", "machine", "checkpoint", "engines", "steps", "methods", "run", "studies", "api", "cli", "__main__",
)  # fmt: skip
WITHOUT_TORCH = ("terminal", "errors", "plan", "recipes", "records", "report")
ROW, LEFT, TOP, CELL, MOST_SIGNS = 26, 150, 92, 26, 92


def room_of(file: Path, package: Path = PACKAGE) -> str:
    return file.relative_to(package).parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """What of ours a file imports, and ``deepspeed`` if it does: ``{"optim.lars", "errors", ...}``."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "largebatch":
                imported.add(rest)
            if top == "deepspeed":
                imported.add("deepspeed")
    return imported


def imported_rooms() -> dict[str, dict[str, int]]:
    """Room -> rooms of ours that its files import -> how many of its files do."""
    counts: dict[str, dict[str, int]] = {room: {} for room in FLOORS}
    for file in sorted(PACKAGE.rglob("*.py")):
        if (room := room_of(file)) in counts:
            for other in {name.partition(".")[0] for name in imports(file)} & counts.keys() - {room}:
                counts[room][other] = counts[room].get(other, 0) + 1
    return counts


def what_it_is(room: str) -> str:
    """The first sentence of its docstring."""
    folder = PACKAGE / room / "__init__.py"
    text = ast.get_docstring(ast.parse((folder if folder.exists() else PACKAGE / f"{room}.py").read_text())) or ""
    sentence = text.split("\n\n")[0].replace("\n", " ").split(". ")[0].replace("``", "").rstrip(".")
    return sentence if len(sentence) <= MOST_SIGNS else sentence.split(": ")[0][:MOST_SIGNS]


def picture() -> str:
    """An SVG: a row for each room, a dot where it imports the room of the column; all dots lie left of the diagonal."""
    rooms, counts = [room for room in FLOORS if room != "__main__"], imported_rooms()
    right = LEFT + CELL * len(rooms)
    width, height = right + 620, TOP + ROW * len(rooms) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, room in enumerate(rooms):
        x = LEFT + CELL * number + CELL / 2
        parts.append(f'<text x="{x + 4:g}" y="{TOP - 8}" transform="rotate(-60 {x + 4:g} {TOP - 8})">{room}</text>')
    for number, room in enumerate(reversed(rooms)):
        y = TOP + ROW * number
        fill = "#eef4ea" if room in WITHOUT_TORCH else "#f4f4f4"
        parts.append(f'<rect x="0" y="{y + 1}" width="{width}" height="{ROW - 2}" fill="{fill}"/>')
        parts.append(f'<text x="{LEFT - 10}" y="{y + 18}" text-anchor="end" font-weight="bold">{room}</text>')
        parts.append(f'<text x="{right + 12}" y="{y + 18}" fill="#444444">{escape(what_it_is(room))}</text>')
        here = LEFT + CELL * rooms.index(room)
        parts.append(f'<rect x="{here + 3}" y="{y + 4}" width="{CELL - 6}" height="{ROW - 8}" fill="#c9d6e3"/>')
        for other, files in sorted(counts[room].items()):
            x, radius = LEFT + CELL * rooms.index(other) + CELL / 2, min(9, 3 + files**0.5)
            title = f"<title>{room} imports {other} in {files} file{'s' if files > 1 else ''}</title>"
            parts.append(f'<circle cx="{x:g}" cy="{y + ROW / 2:g}" r="{radius:.1f}" fill="#2b5c8a">{title}</circle>')
    words = "A dot: the room of the row imports that of the column, in more files where it is larger. Green: no torch."
    parts.append(f'<text x="{LEFT}" y="{height - 14}" fill="#444444">{words}</text>')
    return "\n".join([*parts, "</svg>", ""])
