"""YAML as a recipe needs it: safe, ``1e-4`` a number, a key given twice an error, problems in one sentence.

A text from a stranger costs little and does nothing: no tags, no dates, no nesting beyond reason, and aliases that
would unfold to more than a recipe holds are refused before anything is built from them.
"""

from __future__ import annotations

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


WORDS = ("timestamp", "value", "merge")  # what YAML takes for more than a word, and a recipe does not
StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in WORDS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


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
    whole = node.tag.endswith(":int")
    try:
        found = loader.construct_yaml_int(node) if whole else loader.construct_yaml_float(node)
    except (ValueError, OverflowError):
        raise refusal(f"{node.value[:60]} cannot be read as a number", node.start_mark) from None
    if whole and abs(found) >= LARGEST_WHOLE_NUMBER:
        raise refusal(f"{node.value[:60]} is too large a number", node.start_mark)
    return found


def words(loader: StrictLoader, node: yaml.ScalarNode) -> str:
    """No escape sequences for the terminal that shows them, and nothing that cannot be written as UTF-8."""
    text = loader.construct_yaml_str(node)
    if found := CONTROL.search(text):
        raise refusal(f"the character U+{ord(found[0]):04X} has no place here", node.start_mark)
    return text


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, unique_keys)
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
