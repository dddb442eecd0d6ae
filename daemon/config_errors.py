"""What is wrong with a setting, in the words of who wrote it: pydantic's findings as one line.

State: none. Rule: the line names the setting, where it was set, what it may be and what it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manifest.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_SHOWN_CHARACTERS = 60
_EXPECTED = {
    "int_": "a whole number",
    "float_": "a number",
    "finite_number": "a finite number",
    "bool_": "true or false",
    "string_": "text in quotes",
    "path_": "a path in quotes",
}
"""What is expected, by how the type of pydantic's finding begins."""
_LIMITS = {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")}
_SECTION_EXPECTED = frozenset(("model_type", "model_attributes_type", "dict_type"))


def explain(
    error: ValidationError, names: Sequence[str], origins: Mapping[str, str], file: Path | None
) -> ConfigurationError:
    """The first thing that is wrong. ``names`` are all settings, ``origins`` where those that are set were set."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    name = ".".join(location[:2])
    # What is no setting can only stand in the file: options and variables are known by their names.
    origin = origins.get(name) or (str(file) if file else "the settings")
    if first["type"] == "extra_forbidden":
        keys = [known for known in names if known.startswith(f"{location[0]}.")] if len(location) > 1 else []
        keys = keys or sorted({known.partition(".")[0] for known in names})
        return ConfigurationError(f"{name} in {origin} is no setting: remove it, or use one of {', '.join(keys)}")
    if first["type"] in _SECTION_EXPECTED:
        return ConfigurationError(f"{name} in {origin} is a section: write its settings below [{name}]")
    return ConfigurationError(f"{name} in {origin}: {_finding(first)} (see docs/CONFIGURATION.md)")


def _finding(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    expected = next((text for start, text in _EXPECTED.items() if kind.startswith(start)), None)
    if kind == "literal_error":
        expected = str(context["expected"]).replace("'", "")
    elif kind in _LIMITS:
        key, words = _LIMITS[kind]
        expected = f"{words} {context[key]}"
    if expected is not None:
        return f"expected {expected}, got {_shown(error['input'])}"
    return error["msg"].removeprefix("Value error, ")


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
