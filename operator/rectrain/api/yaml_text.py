"""YAML as job files have it: no key twice, numbers such as 1e-3, dates as text, nothing shared between two places."""

import re
from typing import Any

import yaml

try:
    from yaml import CSafeDumper as _SafeDumper  # six times as fast; PyYAML may have been built without it
except ImportError:
    from yaml import SafeDumper as _SafeDumper  # type: ignore[assignment]


def load_yaml(text: str) -> Any:
    """Return what a YAML or JSON text holds. What an alias repeats is copied, so each place can be changed alone.

    Raises:
        ValueError: The text is not valid YAML, has a key twice, is nested without end, or holds what is no text. The
            message is one line and begins with "line N: " where the place is known.
    """
    try:
        return _copy(yaml.load(text, Loader=_Loader))
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


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {_copy_key(key): _copy(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_copy(element) for element in node]
    if isinstance(node, str) and not _CHARACTERS.fullmatch(node):
        raise ValueError(f"the text {node!a} holds a character that is none: NUL, or half of a surrogate pair")
    return node


def _copy_key(key: Any) -> Any:
    if isinstance(key, bytes):
        raise ValueError(f"the key {key!r} is no text")
    return _copy(key)


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
