"""Reading hand-written YAML: whatever is wrong with the file is one line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from zenrepro.errors import InputError


def read_yaml(path: Path) -> Any:
    """The decoded content of a YAML file. Raises InputError naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    return decode_yaml(text, str(path))


def decode_yaml(text: str, place: str) -> Any:
    """The content of YAML text. Raises InputError naming ``place``, also for a key given twice."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a safe loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{place}: not YAML: {' '.join(str(error).split())}") from None


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A safe loader that refuses a key that stands twice in one mapping: one of the two would be
    lost silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    "in a mapping", node.start_mark, f"key {key.value!r} twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping
