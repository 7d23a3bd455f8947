"""A mistake in a recipe as one sentence: the path of the key, the value, what would be valid."""

from __future__ import annotations

import reprlib
from typing import Any, TypeVar

import pydantic
from pydantic import BaseModel

from largebatch.errors import UserError, suggestion

Kind = TypeVar("Kind", bound=BaseModel)

JSON_KINDS = ("dict", "list", "str", "int", "float", "bool", "null", "[key]")  # of a model's argument, as pydantic says
SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother, SHORT.maxlist, SHORT.maxdict, SHORT.maxlong = 3, 60, 60, 6, 6, 40


def shown(value: Any) -> str:
    """The value as it was written, where that is short."""
    return SHORT.repr(value)


def section_of(kind: type[Kind], written: object, source: str, no_keys: str) -> Kind:
    """A section from a file of its own; UserError, one sentence, for what it cannot hold (``no_keys``: no mapping)."""
    if not isinstance(written, dict):
        raise UserError(no_keys)
    try:
        return kind.model_validate(written)
    except pydantic.ValidationError as error:
        raise UserError(f"{source}: {sentence(error, kind)}") from None


def sentence(error: pydantic.ValidationError, whole: type[BaseModel]) -> str:
    """The first thing wrong, as one sentence with the key's path, the value and what would be valid."""
    problem = error.errors(include_url=False)[0]
    path, section = [], whole
    for part in problem["loc"]:
        fields = _fields(section)
        if isinstance(part, str) and section is not None and part not in fields and part in _tags(section):
            section = _tags(section)[part]  # the tag of a union names a choice, not a key
            continue
        if path[:1] == ["model"] and len(path) > 1 and part in JSON_KINDS:
            continue
        if path == ["phases"] and isinstance(part, int):
            part += 1  # they are counted from 1
        path.append(str(part)[:60])
        section = fields.get(part) if isinstance(part, str) else None
    key, value = ".".join(path), problem["input"]
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            siblings = _fields(_section_at(problem["loc"][:-1], whole))
            return f"unknown key {key}{suggestion(path[-1], list(siblings))}"
        case "model_type" | "model_attributes_type" | "dict_type":
            keys = f"{key}.KEY=..., or {key}: {{KEY: ...}}"
            return f"{key} = {shown(value)} is a value where keys are expected; write {keys}"
        case "invalid_key":
            return f"{key} cannot be a key, which is a word"
        case "missing":
            return f"{key} is missing"
        case "union_tag_invalid":
            tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
            return f"{key}.name = {context['tag'][:60]} is not known{suggestion(context['tag'][:60], tags)}"
        case "union_tag_not_found":
            return _nameless(key, value, _tags(section))
        case "literal_error":
            known = f"{key} = {shown(value)} is not known; valid: {context['expected'].replace(chr(39), '')}"
            switch = "; to switch the optimizer, replace the section: 'optimizer={name: lamb}'"
            return known + (switch if key == "optimizer.variant" else "")
        case "value_error":
            return f"{key}: {context['error']}" if key == "averaging.lr" else str(context["error"])
        case "bool_type":
            return f"{key} = {shown(value)} should be true or false"
        case "tuple_type":
            return f"{key} = {shown(value)} should be a list, in square brackets"
        case "string_type":
            return f"{key} = {shown(value)} should be text; what YAML takes for something else is text in quotes"
        case _:
            message = problem["msg"].removeprefix("Input ").removeprefix("Value ")
            return f"{key} = {shown(value)} {message[0].lower()}{message[1:]}"


def _nameless(key: str, value: Any, choices: dict[str, Any]) -> str:
    """A section that does not say which it is: a slip in the word, or a key that belongs to one of them."""
    for given in value if isinstance(value, dict) else ():
        owners = [name for name, choice in choices.items() if given in _fields(choice)]
        if not owners:
            given = str(given)[:60]
            return f"unknown key {key}.{given}{suggestion(given, ['name', *sorted(_all_fields(choices))])}"
        return f"{key}.name is missing; {key}.{given} belongs to {key}.name = {' or '.join(owners)}"
    return f"{key}.name is missing"


def _all_fields(choices: dict[str, Any]) -> set[str]:
    return {field for choice in choices.values() for field in _fields(choice)} - {"name"}


def _section_at(loc: tuple[Any, ...], whole: type[BaseModel]) -> Any:
    section: Any = whole
    for part in loc:
        if not isinstance(part, str):  # one of several alike
            continue
        fields = _fields(section)
        section = fields[part] if part in fields else _tags(section).get(part)
    return section


def _fields(section: Any) -> dict[str, Any]:
    """Key -> the model below it, or the tuple of models it may be, or None for a plain value."""
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        return {}
    below: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        models = tuple(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
        below[field.alias or name] = None if not models else models[0] if len(models) == 1 else models
    return below


def _tags(section: Any) -> dict[str, Any]:
    choices = section if isinstance(section, tuple) else ()
    return {c.model_fields["name"].annotation.__args__[0]: c for c in choices}
