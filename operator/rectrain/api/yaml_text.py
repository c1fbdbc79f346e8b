"""YAML as job files have it: no key twice, numbers such as 1e-3, dates as text, nothing shared between two places.

What it reads, kubectl reads as the same; where the two would differ, it asks for quotes.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import yaml

try:
    from yaml import CSafeDumper as _SafeDumper  # six times as fast; PyYAML may have been built without it
except ImportError:
    from yaml import SafeDumper as _SafeDumper  # type: ignore[assignment]


def load_yaml(text: str) -> Any:
    """Return what a YAML or JSON text holds. What an alias repeats is copied, so each place can be changed alone.

    Raises:
        ValueError: The text is not valid YAML, holds several documents, has a key twice, is nested or repeated without
            end, or holds what is no text. The message is one line and begins with "line N: " where the place is known.
    """
    try:
        documents = [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
        if len(documents) > 1:
            raise ValueError(f"it holds {len(documents)} documents, and must hold one")
        return _copy(documents[0], itertools.count(1)) if documents else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ValueError(where + " ".join(problem.split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply, or an alias holds itself") from None


def dump_yaml(document: Any) -> str:
    """Return YAML that `load_yaml` reads back as the same, with mappings in their order."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


_MOST_VALUES = 1_000_000
"""Aliases of aliases make of a few lines more values than a machine can hold."""


def _copy(node: Any, numbers: Iterator[int]) -> Any:
    if next(numbers) > _MOST_VALUES:
        raise ValueError(f"it holds more than {_MOST_VALUES:,} values, with what its aliases repeat")
    if isinstance(node, dict):
        return {_copy_key(key, numbers): _copy(value, numbers) for key, value in node.items()}
    if isinstance(node, list):
        return [_copy(element, numbers) for element in node]
    if isinstance(node, str) and not _CHARACTERS.fullmatch(node):
        raise ValueError(f"the text {node!a} holds a character that is none: NUL, or half of a surrogate pair")
    return node


def _copy_key(key: Any, numbers: Iterator[int]) -> Any:
    if isinstance(key, bytes):
        raise ValueError(f"the key {key!r} is no text")
    return _copy(key, numbers)


_CHARACTERS = re.compile(r"[^\0\ud800-\udfff]*")


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != _MERGE:
                if (key_node.tag, key_node.value) in seen:
                    problem = f"the key {key_node.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen.add((key_node.tag, key_node.value))
        return super().construct_mapping(node, deep=deep)


class _Dumper(_SafeDumper):
    """YAML in which text that the loader would take for a number is quoted, and nothing is written as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Write text of several lines as such."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_str)

_MERGE = "tag:yaml.org,2002:merge"

# YAML 1.1 reads 1e-3 as text; a learning rate is written that way by everyone.
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)$"),
        list("-+0123456789."),
    )

# Kubernetes reads dates as text, and no field of a job is a date that a user writes.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def _put_first(class_: Any, tag: str, pattern: str, first: str) -> None:
    for character in first:
        resolvers = class_.yaml_implicit_resolvers
        resolvers[character] = [(tag, re.compile(pattern)), *resolvers.get(character, [])]


# To kubectl a plain y is a truth value, to PyYAML it is text; and a number to the base of 60 is PyYAML's alone.
_TRUTH, _TRUTHS = "!truth", r"^[yYnN]$"
_put_first(_Loader, _TRUTH, _TRUTHS, "yYnN")
_put_first(_Loader, "tag:yaml.org,2002:str", r"^[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?$", "-+0123456789")
# What the dumper would resolve it puts in quotes.
_put_first(_Dumper, _TRUTH, _TRUTHS, "yYnN")
_put_first(_Dumper, "!octal", r"^[-+]?0o[0-7]+$", "-+0")


def _refuse_truth(_: _Loader, node: yaml.ScalarNode) -> NoReturn:
    problem = f"{node.value} is text to some and a truth value to kubectl: put it in quotes"
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.add_constructor(_TRUTH, _refuse_truth)
