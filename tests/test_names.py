"""The law of names: what a thing is called says what it is without its neighbours, and once in the package."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import REPOSITORY

PACKAGE = REPOSITORY / "largebatch"
SAYS_NOTHING = {"found", "own", "here", "told"}  # of what was found, or whose own
LONGEST = 60  # lines of a function

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(body: list[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    """Classes and functions that others may use, with the methods of those classes."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and (not node.name.startswith("_") or node.name == "__init__"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def signature(node: Function | ast.ClassDef) -> list[str]:
    """The names that a reader of an interface meets: a function's and its parameters', or the fields of a class."""
    if isinstance(node, ast.ClassDef):
        fields = [line for line in node.body if isinstance(line, ast.Assign | ast.AnnAssign)]
        return [name for line in fields for target in ast.walk(line) if (name := given(target))]
    return [node.name, *(one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg))]


def given(node: ast.AST) -> str | None:
    """The name that is given here to something, if one is."""
    match node:
        case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name) | ast.arg(name):
            return name
        case ast.Name(name, ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            return name
    return None


def breaches(tree: ast.Module) -> Iterator[str]:
    """What of the law one file breaks."""
    for node in public(tree.body):
        yield from (f"{node.name}: {name} says nothing" for name in signature(node) if name in SAYS_NOTHING)
    for node in ast.walk(tree):
        name = given(node)
        if name is None:
            continue
        if name.lower().endswith("_s"):
            yield f"{name} is possessive"
        if isinstance(node, ast.Attribute) and name in SAYS_NOTHING:
            yield f"{ast.unparse(node)} says nothing"
        if isinstance(node, Function) and (lines := 1 + (node.end_lineno or 0) - node.lineno) > LONGEST:
            yield f"{name} has {lines} lines"


def called_alike(trees: dict[Path, ast.Module]) -> dict[str, list[str]]:
    """Class name -> the files that have it, where it stands there more than once."""
    places = defaultdict(list)
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(file)
    return {
        name: [str(file.relative_to(PACKAGE)) for file in files] for name, files in places.items() if len(files) > 1
    }


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {file: ast.parse(file.read_text()) for file in sorted(PACKAGE.rglob("*.py"))}


def test_a_name_says_what_a_thing_is(trees):
    assert not [(str(file.relative_to(PACKAGE)), breach) for file, tree in trees.items() for breach in breaches(tree)]


def test_a_class_is_called_once(trees):
    assert len(trees) > 100
    assert not called_alike(trees)


LONG = "\n".join(["def long():", *["    pass"] * LONGEST])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("def seen(found): ...", ["seen: found says nothing"]),
        ("class A:\n    def __init__(self, *, own=1): ...", ["__init__: own says nothing"]),
        ("class A:\n    async def b(self, *here, **told): ...", ["b: here says nothing", "b: told says nothing"]),
        ("class A:\n    here: int\n    a, told = 1, 2", ["A: here says nothing", "A: told says nothing"]),
        ("def told(): ...", ["told: told says nothing"]),
        ("def a(self):\n    self.own = 1", ["self.own says nothing"]),
        ("ddp_s = 1", ["ddp_s is possessive"]),
        ("def is_machine_s(rank_s): _OF_S = 1",
         ["is_machine_s is possessive", "rank_s is possessive", "_OF_S is possessive"]),
        (LONG, [f"long has {LONGEST + 1} lines"]),
        (LONG.replace("\n    pass", "", 1), []),
        ("def _seen(found):\n    told = found\n    def own(here): ...", []),  # nobody else meets them
        ("def a(b):\n    found = b.here\n    return found.told, c(own=1)", []),  # others' names
    ],
)  # fmt: skip
def test_the_law_finds_what_it_forbids(text: str, wanted: list[str]):
    assert sorted(breaches(ast.parse(text))) == sorted(wanted)


def test_the_law_finds_classes_that_are_called_alike():
    room, other = PACKAGE / "data/a.py", PACKAGE / "optim/b.py"
    two, one, twice = (
        ast.parse(t) for t in ("class A:\n    class B: ...", "class B: ...", "class C: ...\nclass C: ...")
    )
    assert called_alike({room: two, other: one}) == {"B": ["data/a.py", "optim/b.py"]}
    assert called_alike({room: two, other: twice}) == {"C": ["optim/b.py", "optim/b.py"]}
    assert not called_alike({room: two})
