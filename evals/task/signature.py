"""A Python function's signature and docstring -> the JSON schema of its arguments. The file is read, never imported or run."""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evals.errors import did_you_mean

SIMPLE = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "None": "null"}
LISTS = {"list", "List", "Sequence", "Iterable", "Collection"}
MAPPINGS = {"dict", "Dict", "Mapping"}
KNOWN = "str, int, float, bool, list[…], dict[str, …], Literal[…], Optional[…], or … | None"
SECTION = re.compile(r"(?:Args|Arguments|Parameters|Params):\s*")
OTHER_SECTION = re.compile(r"(?:Returns?|Raises|Yields?|Examples?|Notes?):\s*")
ARGUMENT = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)")
MAX_NESTING = 20


class SignatureError(Exception):
    """Why a function cannot be told to a model. `line` counts from 1 in its file; 0 means the file as a whole."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(frozen=True)
class Signature:
    """`parameters` is the JSON schema of the keyword arguments that the function may be called with."""

    description: str
    parameters: dict[str, Any]


def read_signature(source: str, function: str) -> Signature:
    """What a top-level function of a source file takes. Raises SignatureError.

    Annotations become types, an argument with a default is not required, the docstring's first paragraph is the description
    and its `Args:` those of the arguments. An argument without an annotation may be any JSON value.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in strings
            body = ast.parse(source).body
            return _signature(body, function)
    except SyntaxError as error:
        raise SignatureError(f"no Python: {error.msg}", error.lineno or 0) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise SignatureError(f"no Python that can be read: {error}") from error


def _signature(body: list[ast.stmt], function: str) -> Signature:
    found = [one for one in body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    node = next((one for one in reversed(found) if one.name == function), None)
    if node is None:
        meant = did_you_mean(function, [one.name for one in found])
        raise SignatureError(f"no function {function!r} is defined at the top level of this file{meant}")
    if isinstance(node, ast.AsyncFunctionDef):
        raise SignatureError(f"{function} is an `async def`, and is called plainly: write `def`", node.lineno)
    description, said = _docstring(ast.get_docstring(node) or "")
    return Signature(description, _parameters(node, said))


def _parameters(node: ast.FunctionDef, said: Mapping[str, str]) -> dict[str, Any]:
    given = node.args
    for many, stars in ((given.vararg, "*"), (given.kwarg, "**")):
        if many is not None:
            raise SignatureError(f"{node.name} takes {stars}{many.arg}: name its arguments, so that a model can", many.lineno)
    if given.posonlyargs:
        first = given.posonlyargs[0]
        raise SignatureError(f"{node.name} takes {first.arg!r} by position only, and is called by name", first.lineno)
    defaults: list[ast.expr | None] = [None] * (len(given.args) - len(given.defaults))
    pairs = [
        *zip(given.args, [*defaults, *given.defaults], strict=True),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
    ]
    properties: dict[str, Any] = {}
    for one, default in pairs:
        schema = _type(one.annotation, one.annotation.lineno) if one.annotation is not None else {}
        if said.get(one.arg):
            schema = {**schema, "description": said[one.arg]}
        known = _literal(default)
        if default is not None and known is not None:
            schema = {**schema, "default": known}
        properties[one.arg] = schema
    required = [one.arg for one, default in pairs if default is None]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _literal(node: ast.expr | None) -> Any:
    """A default that JSON can hold, else None."""
    try:
        value = ast.literal_eval(node) if node is not None else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if isinstance(value, str | int | float | bool) and finite else None


def _type(node: ast.expr, line: int, depth: int = 0) -> dict[str, Any]:
    """The JSON schema of an annotation."""
    if depth > MAX_NESTING:
        raise SignatureError("this annotation is nested too deeply", line)
    if isinstance(node, ast.Constant):
        if node.value is None:
            return {"type": "null"}
        if isinstance(node.value, str):
            try:
                return _type(ast.parse(node.value, mode="eval").body, line, depth + 1)
            except (SyntaxError, ValueError) as error:
                raise SignatureError(f"the annotation {node.value[:60]!r} is no Python", line) from error
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _either([_type(node.left, line, depth + 1), _type(node.right, line, depth + 1)])
    if isinstance(node, ast.Subscript):
        return _subscript(_name(node.value), _items(node.slice), line, depth)
    name = _name(node)
    if name in SIMPLE:
        return {"type": SIMPLE[name]}
    if name in {"Any", "object"}:
        return {}
    if name in LISTS:
        return {"type": "array"}
    if name in MAPPINGS:
        return {"type": "object"}
    raise _unknown(node, line)


def _subscript(name: str, items: list[ast.expr], line: int, depth: int) -> dict[str, Any]:
    inner = [] if name == "Literal" else [_type(one, line, depth + 1) for one in items[: 1 if name == "Annotated" else None]]
    if name == "Literal":
        values = [one.value for one in items if isinstance(one, ast.Constant)]
        if len(values) == len(items) and all(value is None or isinstance(value, str | int | bool) for value in values):
            return {"enum": values}
    if name == "Annotated" and inner:
        told = [one.value for one in items[1:] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        return {**inner[0], "description": told[0]} if told else inner[0]
    if name == "Optional" and len(inner) == 1:
        return _either([*inner, {"type": "null"}])
    if name == "Union" and inner:
        return _either(inner)
    if name in LISTS and len(inner) == 1:
        return {"type": "array", "items": inner[0]}
    if name in MAPPINGS and len(inner) == 2 and inner[0] == {"type": "string"}:
        return {"type": "object", "additionalProperties": inner[1]}
    raise SignatureError(f"the annotation {name}[…] has no JSON schema: use {KNOWN}", line)


def _either(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    flat = [inner for one in schemas for inner in (one["anyOf"] if set(one) == {"anyOf"} else [one])]
    if {} in flat:
        return {}
    if all(set(one) == {"type"} for one in flat):
        types = [kind for one in flat for kind in (one["type"] if isinstance(one["type"], list) else [one["type"]])]
        return {"type": list(dict.fromkeys(types))}
    return {"anyOf": flat}


def _items(node: ast.expr) -> list[ast.expr]:
    return list(node.elts) if isinstance(node, ast.Tuple) else [node]


def _name(node: ast.expr) -> str:
    """The last part of a dotted name, so that `typing.Literal` is `Literal`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _unknown(node: ast.expr, line: int) -> SignatureError:
    return SignatureError(f"the annotation {ast.unparse(node)[:60]!r} has no JSON schema: use {KNOWN}", line)


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph on one line, and what the `Args:` section (Google's style) says of each argument."""
    lines = text.splitlines()
    start = next((at for at, line in enumerate(lines) if SECTION.fullmatch(line.strip())), len(lines))
    first: list[str] = []
    for line in lines[:start]:
        if not line.strip() or OTHER_SECTION.fullmatch(line.strip()):
            break
        first.append(line.strip())
    return " ".join(first), _arguments(lines[start + 1 :])


def _arguments(lines: list[str]) -> dict[str, str]:
    said: dict[str, str] = {}
    current, outer = "", -1
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if indent == 0:
            break
        outer = indent if outer < 0 else outer
        found = ARGUMENT.fullmatch(line.strip()) if indent <= outer else None
        if found:
            current = found[1]
            said[current] = found[2].strip()
        elif current:
            said[current] = f"{said[current]} {line.strip()}".strip()
    return said
