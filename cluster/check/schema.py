"""What a JSON Schema has against a document, in words and with lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry

from cluster.check.documents import Document, Finding, Keys, filled_in, nearest

WORDS = {
    "object": "keys and values",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
}


def schema_findings(
    document: Document,
    keys: Keys,
    schema: dict[str, Any],
    registry: Registry[Any] | None = None,
    hint: Callable[[str], str] = lambda key: "",
) -> Iterator[Finding]:
    """Each departure of the value at `keys` from its schema; `hint` may say where an unknown key belongs."""
    validator = Draft202012Validator(schema, registry=registry if registry is not None else Registry())
    for error in validator.iter_errors(document.get(*keys)):
        at = (*keys, *error.absolute_path)
        if error.validator == "additionalProperties" and isinstance(error.instance, dict):
            known = error.schema.get("properties", {})
            for key in _unknown(error):
                yield document.finding((*at, key), f"unknown key{hint(key) or nearest(key, known)}")
        elif error.validator == "required":
            found = re.match(r"'(.+)' is a required property", error.message)
            missing = found.group(1) if found else error.message
            strange = set(error.instance) - set(error.schema.get("properties", {}))
            if not any(f"{missing!r}?" in nearest(key, error.schema.get("properties", {})) for key in strange):
                yield document.finding((*at, missing), "is missing")
        elif filled_in(error.instance):
            yield document.finding(at, _reason(error))


def _unknown(error: ValidationError) -> list[str]:
    patterns = error.schema.get("patternProperties", {})
    return [
        key
        for key in error.instance
        if key not in error.schema.get("properties", {}) and not any(re.search(p, key) for p in patterns)
    ]


def _reason(error: ValidationError) -> str:
    value = error.instance
    if error.validator == "type":
        wanted = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        names = " or ".join(WORDS.get(str(kind), str(kind)) for kind in wanted if kind != "null")
        quotes = "; put it in quotes" if "string" in wanted and isinstance(value, (int, float, bool)) else ""
        return f"expected {names}, found {_kind(value)}{quotes}"
    if error.validator in ("oneOf", "anyOf"):
        return f"expected text or a number, found {_kind(value)}"
    if error.validator == "enum":
        return f"{value!r} is not one of its values{nearest(str(value), [str(name) for name in error.validator_value])}"
    return " ".join(error.message.split())[:200]


def _kind(value: object) -> str:
    kinds = {dict: "keys and values", list: "a list", str: "text", type(None): "nothing"}
    return kinds.get(type(value)) or f"{type(value).__name__} {value!r}"
