"""Reads and writes YAML such that ``1e-5`` is a number, ``no`` is a word, and a key given twice is an error.

PyYAML follows YAML 1.1, where ``1e-5`` is a string, ``010`` is eight and ``no`` is false.
Here scalars are read by the core schema of YAML 1.2, and written so that both versions read them alike.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

_INT = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"(?:~|null|Null|NULL|)$")
_RESOLVERS = (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT))


def _fault(message: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


class _Loader(yaml.SafeLoader):
    """Loads scalars by the core schema; a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _fault(f"the key {key!r} is not a word", key_node)
            if key in seen:
                raise _fault(f"the key {key!r} stands twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value, 10)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = node.value.lower().replace(".inf", "inf").replace(".nan", "nan")
    return float(text)


_Loader.yaml_implicit_resolvers = {None: [(f"tag:yaml.org,2002:{name}", pattern) for name, pattern in _RESOLVERS]}
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something other than a word."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern in _RESOLVERS:
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, None)


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    if not math.isfinite(value):
        text = ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    else:
        text = repr(value)
        if "e" in text and "." not in text:  # YAML 1.1 requires the point: 1e-05 -> 1.0e-05
            text = text.replace("e", ".0e", 1)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # Write line breaks as escapes, because PyYAML otherwise folds the rarer ones to spaces.
    style = '"' if any(mark in value for mark in "\n\r\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)


_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(str, _represent_text)


def read(text: str) -> Any:
    """Return the value of one YAML document; raise ``ValueError`` naming line and column."""
    try:
        value = yaml.load(text, _Loader)
        _refuse_cycles(value, ())
        return value
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{error.problem or error.context}{place}") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _refuse_cycles(value: Any, above: tuple[int, ...]) -> None:
    """Raise ``ValueError`` if an alias (``*name``) stands inside the value that it names."""
    if id(value) in above:
        raise ValueError("an alias stands inside of what it names")
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            _refuse_cycles(part, (*above, id(value)))


def write(value: Any) -> str:
    """Return ``value`` (mappings, lists, numbers, text, None) as YAML, keys in their own order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000))
