"""One file for each kind: a folder of modules, each with the section of its name, is a table by name.

    optimizers/lars.py   class Lars(Optimizer): name: Literal["lars"] ...      ->   {"lars": Lars, ...}

The folders lie on floors above, where a kind is built; a recipe finds them by name and imports none of them.
A file that is added to the folder, or to another on the ``__path__`` of its package, is a kind; one whose name begins
with ``_`` is what several kinds share.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Annotated, Any, TypeVar, Union, get_args

from pydantic import Field
from pydantic.fields import FieldInfo

from largebatch.errors import UserError
from largebatch.recipes.keys import Section

Kind = TypeVar("Kind", bound=Section)


FURTHER: dict[str, list[str]] = {}  # package -> folders of kinds beside its own: of whoever starts the program


def folders(package: str) -> list[str]:
    """Where the kinds of a package lie."""
    path = importlib.import_module(package).__path__
    path.extend(folder for folder in FURTHER.get(package, ()) if folder not in path)
    return list(path)


def sections_by_name(package: str, folders: Iterable[str], base: type[Kind]) -> dict[str, type[Kind]]:
    """Name -> section, in the order of names: of each module in the ``folders`` of a package its section."""
    return {name: kind_in(module(), name, base) for name, module in modules(package, folders).items()}


def modules(package: str, folders: Iterable[str]) -> dict[str, Callable[[], ModuleType]]:
    """Name -> what imports the module, in the order of names; refused where two files have one name."""
    files = [(module.name, folder) for folder in folders for module in pkgutil.iter_modules([folder])]
    names = sorted(name for name, _ in files if not name.startswith("_"))
    for name, again in itertools.pairwise(names):
        if name == again:
            where = " and ".join(folder for known, folder in files if known == name)
            raise UserError(f"{name} is the name of two files of {package}, in {where}; give one another name")
    return {name: functools.partial(importlib.import_module, f"{package}.{name}") for name in names}


def kind_in(module: ModuleType, name: str, base: type[Kind]) -> type[Kind]:
    """The one section in the module that is called so."""
    for section in vars(module).values():
        if isinstance(section, type) and issubclass(section, base) and section.__module__ == module.__name__:
            key = section.model_fields.get("name")
            if key is not None and get_args(key.annotation) == (name,):
                return section
    raise UserError(f'{module.__file__} holds no {base.__name__} with name: Literal["{name}"], as the file is called')


def take_fields(section: type[Section], fields: dict[str, tuple[Any, Any]]) -> None:
    """From now on the section has these fields, each its type and its value unless set (``...``: it must be)."""
    for name, (kind, default) in fields.items():
        info = FieldInfo.from_annotation(kind) if default is ... else FieldInfo.from_annotated_attribute(kind, default)
        section.__pydantic_fields__[name] = info
    section.model_rebuild(force=True)


def one_of(table: dict[str, type[Kind]]) -> Any:
    """The type of a key that holds any section of the table; its ``name`` says which."""
    return Annotated[Union[tuple(table.values())], Field(discriminator="name")]  # noqa: UP007  # of a tuple made here
