"""Parts of whoever starts the program, by the names that a recipe calls them.

Code comes with the command line (``--with my_parts.py``), with installed packages (entry points of the group
``largebatch``, each a module that registers what it has), or with the script that calls ``largebatch``. A recipe holds
names alone: none of its keys is ever imported, or taken for a file with code.

    @lb.models.register("my_net")
    def my_net(num_classes: int, width: int = 64) -> nn.Module: ...        # model: {name: my_net, width: 32}
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from largebatch.errors import UserError, first_words, in_one_line

GROUP = "largebatch"  # of entry points
HANDED_OVER = "own"  # before the names of parts that a script handed over, as objects: own/Net
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}")

Kind = TypeVar("Kind")
Thing = TypeVar("Thing")


def handed_over(thing: Any) -> str:
    """What a part is called that a script handed over: ``own/Net``."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    called = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    return f"{HANDED_OVER}/{re.sub(r'[^A-Za-z0-9_]', '', called.__name__) or 'part'}"


class Code(NamedTuple):
    """Where a part is written."""

    name: str  # its module and its name there
    file: str | None  # None: typed into a session
    sha256: str | None  # of the file, or of what was typed; None: no source is known


def code_of(thing: Any) -> Code:
    """Of a class, a function, one with arguments filled in, or an object of a class."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        thing = type(thing)
    name = f"{getattr(thing, '__module__', '?')}.{getattr(thing, '__qualname__', '?')}"
    try:
        file = Path(inspect.getsourcefile(thing) or "")
        if file.is_file():
            return Code(name, str(file), hashlib.sha256(file.read_bytes()).hexdigest())
        return Code(name, None, hashlib.sha256(inspect.getsource(thing).encode()).hexdigest())
    except (TypeError, OSError):
        return Code(name, None, None)


@dataclass(frozen=True)
class Registered(Generic[Kind]):
    kind: Kind
    code: Code


class Registry(Generic[Kind]):
    """Parts of one kind: ``made`` turns what is registered, with its traits, into what the kind's table holds.

    ``taken`` are the names of the package's own.
    """

    def __init__(self, key: str, made: Callable[..., Kind], taken: Callable[[], list[str]]) -> None:
        self.key, self.made, self.taken = key, made, taken
        self.parts: dict[str, Registered[Kind]] = {}
        self.listeners: list[Callable[[], object]] = []  # they made something of all names, and make it anew
        ALL[key] = self

    def register(self, name: str, **traits: Any) -> Callable[[Thing], Thing]:
        """Before a class or a function: a recipe's ``name`` means it from now on, in this process."""

        def registered(thing: Thing) -> Thing:
            self.add(name, thing, **traits)
            return thing

        return registered

    def add(self, name: str, thing: Any, code: Code | None = None, **traits: Any) -> None:
        """``code``: where it is written, if not where the thing's own class is."""
        code = code or code_of(thing)
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise UserError(f"{self.key} = {str(name)[:60]!r} is no name; valid: letters, digits, and _ . / - in it")
        before = self.parts.get(name)
        if name in self.taken() or (before is not None and before.code[:2] != code[:2]):
            other = before.code.file or before.code.name if before is not None else "largebatch itself"
            raise UserError(f"{self.key} = {name} is there already, from {other}; register it under another name")
        self.parts[name] = Registered(self.made(name, thing, **traits), code)
        try:
            self._changed()
        except Exception as error:
            del self.parts[name]
            if before is not None:
                self.parts[name] = before
            raise UserError(f"{self.key} = {name} fits no recipe: {first_words(error)}") from error

    @contextlib.contextmanager
    def holding(self, name: str, thing: Any, code: Code | None = None) -> Iterator[None]:
        """Inside, the name means ``thing``."""
        before = self.parts.pop(name, None)
        try:
            self.add(name, thing, code)
            yield
        finally:
            self.parts.pop(name, None)
            if before is not None:
                self.parts[name] = before
            self._changed()

    def _changed(self) -> None:
        for listener in self.listeners:
            listener()

    def names(self) -> list[str]:
        load_installed()
        return sorted(self.parts)

    def known(self) -> dict[str, Kind]:
        """By name."""
        return {name: self.parts[name].kind for name in self.names()}

    def get(self, name: str) -> Kind | None:
        load_installed()
        if (found := self.parts.get(name)) is not None:
            return found.kind
        if name.partition("/")[0] == HANDED_OVER:
            raise UserError(
                f"{self.key} = {name[:60]} was handed over by a script, which alone has it; call lb.train there, or "
                "register it under a name of its own and give its file by --with"
            )
        return None

    def code(self, name: str) -> Code | None:
        """Of a registered part; None for the package's own."""
        return self.parts[name].code if name in self.parts else None


ALL: dict[str, Registry[Any]] = {}  # by the key of a recipe that holds the name
_installed: list[str] | None = None  # what entry points have been imported


def load_installed() -> None:
    """Once: import the modules that installed packages name in the group of entry points."""
    global _installed
    if _installed is not None:
        return
    _installed = []
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist is not None else "an installed package"
            _installed = None
            raise UserError(
                f"{package} gives largebatch parts in {point.value}, which does not import: {in_one_line(error)}; mend "
                "or uninstall it"
            ) from error
        _installed.append(point.value)


_loaded: list[Path] = []  # files of --with


def as_options() -> list[str]:
    """For a command that is started anew: the same files."""
    return [word for file in _loaded for word in ("--with", str(file))]


def load_file(file: Path) -> None:
    """``--with``: import a file of parts, which registers them.

    It is a module with the name of the file, so that processes that read its data sets can import it as well.
    """
    name, folder = file.stem, str(file.resolve().parent)
    if not file.is_file():
        raise UserError(f"--with {file}: there is no such file; it takes a file of Python that registers parts")
    if file.suffix != ".py" or not name.isidentifier():
        raise UserError(f"--with {file}: it takes a file of Python whose name Python can import, such as my_parts.py")
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.has_location or not Path(spec.origin or "").samefile(file):
        raise UserError(f"--with {file}: {name} is the name of another module already; give the file another name")
    _loaded.append(file)
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UserError(f"--with {file} does not import: {in_one_line(error)}") from error


def in_words() -> str:
    """``data.name: my_set; model.name: my_net``; empty where nothing is registered."""
    load_installed()
    return "; ".join(f"{key}: {', '.join(sorted(table.parts))}" for key, table in sorted(ALL.items()) if table.parts)


def code(key: str, name: str) -> Code | None:
    """Of the part with this name in the registry of ``key``; None for the package's own."""
    return ALL[key].code(name) if key in ALL else None
