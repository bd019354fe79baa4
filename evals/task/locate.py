"""Where an error of pydantic stands in the file. Its places name the members of unions too, and those stand in no file."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Located:
    """`path` are the keys as the file has them, `keys` those that the mapping there may have, for 'did you mean'.

    `wanted` says what may stand there where that is one of several kinds, and is empty otherwise. `told` is False of an
    error that only says that the value is not of the other kind: a wrong mapping is no name either, and that is no news.
    """

    path: KeyPath
    keys: tuple[str, ...] = ()
    wanted: str = ""
    told: bool = True


def locate(location: KeyPath, root: type[Any], body: Any) -> Located:
    """Follow the place of one error (`loc`) down the types from `root`, and down the values of the file beside them."""
    path: KeyPath = ()
    kind: Any = root
    value = body
    keys: tuple[str, ...] = ()
    for part in location:
        if members := _members(kind):
            kind = members.get(str(part))
            if str in members.values():
                if (kind is str) == isinstance(value, dict):
                    return Located(path, told=False)
                if kind is str:
                    return Located(path, wanted=_either(members))
            continue
        kind = _bare(kind)
        if isinstance(part, int):
            kind = next(iter(get_args(kind)), None)
            if isinstance(value, list | tuple):  # a metric that stands alone was put into a list
                path, value = (*path, part), value[part] if part < len(value) else None
            continue
        fields = getattr(kind, "model_fields", {})
        keys = tuple(field.alias or name for name, field in fields.items())
        path, value = (*path, part), value.get(part) if isinstance(value, dict) else None
        kind = next((field.annotation for name, field in fields.items() if part in {name, field.alias}), None)
    return Located(path, keys)


def _members(kind: Any) -> dict[str, Any]:
    """The members of a union by what pydantic calls them: the value that tells them apart, else their type's name."""
    plain, *marks = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    members = [one for one in get_args(plain) if one is not NoneType] if get_origin(plain) in {Union, UnionType} else []
    if any(getattr(mark, "discriminator", None) for mark in marks):
        return {name: one for one in members for name in get_args(one.model_fields["name"].annotation)}
    return {one.__name__: one for one in members} if len(members) > 1 else {}


def _bare(kind: Any) -> Any:
    """The type without `| None`."""
    members = [one for one in get_args(kind) if one is not NoneType]
    return members[0] if get_origin(kind) in {Union, UnionType} and len(members) == 1 else kind


def _either(members: dict[str, Any]) -> str:
    keys = [name for one in members.values() for name, field in getattr(one, "model_fields", {}).items() if field.is_required()]
    return f"text, or a mapping with `{keys[0]}:`"
