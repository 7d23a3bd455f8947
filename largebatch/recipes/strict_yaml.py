"""YAML as a recipe needs it: safe, ``1e-4`` a number, a key given twice an error, problems in one sentence.

One table says which words are more than text, for reading and for writing: what :func:`written` writes, :func:`parse`
reads as it was. Numbers are decimal; what YAML 1.1 reads in another base (``0100`` as 64, ``1:30`` as 90) is refused.

A text from a stranger costs little and does nothing: no tags, no dates, no nesting beyond reason, and aliases that
would unfold to more than a recipe holds are refused before anything is built from them.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from largebatch.errors import UserError

LONGEST_TEXT = 1 << 16  # the longest recipe here has 3,000
DEEPEST = 32
MOST_VALUES = 50_000  # with every alias unfolded
LARGEST_WHOLE_NUMBER = 10**30
CONTROL = re.compile(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]")


class StrictLoader(yaml.SafeLoader):
    """Safe YAML in which ``1e-4`` is a number and a key given twice is an error."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            short = tag.replace("tag:yaml.org,2002:", "!!")[:60]
            raise refusal(
                f"could not determine a constructor for the tag {short}; write plain values", event.start_mark
            )
        self.depth += 1
        if self.depth > DEEPEST:
            raise refusal(f"more than {DEEPEST} sections inside one another", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_DECIMAL = r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?"
_ELSEWHERE = (  # of YAML 1.1 or 1.2, or of Python: numbers there, and no number that a recipe means
    r"[-+]?(?:0[0-9_]+|0[bB][01_]+|0[oO][0-7_]+|0[xX][0-9a-fA-F_]+|[0-9][0-9_]*_[0-9_]*"
    r"|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?|[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))"
    r"|\.(?:nan|NaN|NAN)"
)
_NUMBERS = list("-+.0123456789")
_RESOLVERS = (  # the first that matches holds
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)", list("yYnNtTfFoO")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", _NUMBERS),
    ("float", r"(?!0[0-9])" + _DECIMAL, _NUMBERS),
    ("float", _ELSEWHERE, _NUMBERS),
)


class StrictDumper(yaml.SafeDumper):
    """Writes what :class:`StrictLoader` reads."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for dialect in (StrictLoader, StrictDumper):
    dialect.yaml_implicit_resolvers = {}
    for tag, pattern, beginnings in _RESOLVERS:
        dialect.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), beginnings)


def unique_keys(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise refusal("a key must be a word", key_node.start_mark)
        key = loader.construct_object(key_node)
        if key == "<<":
            raise refusal("merge keys << are not read; write the keys out", key_node.start_mark)
        if key in seen:
            raise refusal(f"the key {str(key)[:60]} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


def number(loader: StrictLoader, node: yaml.ScalarNode) -> int | float:
    text = node.value[:60]
    if not re.fullmatch(_DECIMAL, node.value) or re.match("[-+]?0[0-9]", node.value):
        problem = f"{text} is no decimal number; write it with digits alone, such as 100, 0.5 or 1e-4"
        raise refusal(f"{problem}, or as text in quotes", node.start_mark)
    try:
        found = (int if node.tag.endswith(":int") else float)(node.value)
    except ValueError:  # more digits than Python takes
        raise refusal(f"{text} cannot be read as a number", node.start_mark) from None
    if abs(found) >= LARGEST_WHOLE_NUMBER if isinstance(found, int) else math.isinf(found):
        raise refusal(f"{text} is too large a number", node.start_mark)
    return found


def nothing(loader: StrictLoader, node: yaml.ScalarNode) -> None:
    if node.value == "~":
        raise refusal("~ is nothing to YAML and a folder to the shell; write null, or the folder", node.start_mark)


def words(loader: StrictLoader, node: yaml.ScalarNode) -> str:
    text = loader.construct_yaml_str(node)
    if problem := unfit(text):
        raise refusal(problem, node.start_mark)
    return text


def unfit(text: str) -> str | None:
    """What forbids a text: escape sequences for the terminal that shows it, or what cannot be written as UTF-8."""
    found = CONTROL.search(text)
    return f"the character U+{ord(found[0]):04X} has no place here" if found else None


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, unique_keys)
StrictLoader.add_constructor("tag:yaml.org,2002:null", nothing)
StrictLoader.add_constructor("tag:yaml.org,2002:int", number)
StrictLoader.add_constructor("tag:yaml.org,2002:float", number)
StrictLoader.add_constructor("tag:yaml.org,2002:str", words)


def parse(text: str, source: str) -> Any:
    if len(text) > LONGEST_TEXT:
        raise UserError(f"{source}: more than {LONGEST_TEXT:,} characters, which no recipe needs")
    try:
        loader = StrictLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        values_in(node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise UserError(f"{source}{where}: {problem[:200]}") from None


def written(value: Any, source: str) -> str:
    """The text that :func:`parse` reads as ``value``: plain maps, lists, numbers and texts."""
    text = yaml.dump(value, Dumper=StrictDumper, sort_keys=False, allow_unicode=True)
    if len(text) > LONGEST_TEXT:
        raise UserError(f"{source}: more than {LONGEST_TEXT:,} characters, which no recipe needs")
    return text


def values_in(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a node unfolds to. Each is counted once, however often it is named."""
    if node in known:
        if not known[node]:
            raise refusal("an alias inside of what it stands for", node.start_mark)
        return known[node]
    known[node] = 0
    below = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = [part for item in below for part in (item if isinstance(item, tuple) else (item,))]
    known[node] = 1 + sum(values_in(part, known) for part in parts)
    if known[node] > MOST_VALUES:
        raise refusal(f"its aliases unfold to more than {MOST_VALUES:,} values", node.start_mark)
    return known[node]


def refusal(problem: str, mark: yaml.Mark) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)
