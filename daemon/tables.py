"""TOML tables checked as a whole: every problem found, each with its key, value and expectation.

Pure. `config.py` and `modelfile.py` say what the tables are; this module says what is wrong with
what an operator wrote. Values of unknown keys, and of keys marked `repr=False`, are never shown:
they may be secrets.
"""

from __future__ import annotations

import datetime
import difflib
import json
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Name = Annotated[str, Field(min_length=1, max_length=128)]

_SHOWN_CHARACTERS = 80
"""Longest value shown in a problem: enough to recognise it, short enough for one line."""


class Table(BaseModel):
    """A TOML table: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


AnyTable = TypeVar("AnyTable", bound=Table)
KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: the key's path, e.g. ("http", "listen", 0).
        text: how it goes on after the path: " = 0: expected ...".
    """

    path: KeyPath
    text: str

    def __str__(self) -> str:
        return write_path(self.path) + self.text


def parse_toml(text: str) -> dict[str, Any]:
    """TOML text to plain values.

    Raises:
        ValueError: it is not TOML; the message says where.
    """
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except RecursionError as exc:
        raise ValueError("nested too deep") from exc


def check_tables(
    kind: type[AnyTable], tables: Mapping[str, object]
) -> tuple[AnyTable, tuple[Problem, ...]]:
    """Read parsed TOML as `kind`, whose tables and keys all have defaults.

    Returns:
        The tables, with every key that has a problem at its default; and the problems, in the order
        of the tables. Raises nothing.
    """
    left = {key: _copy(value) for key, value in tables.items()}
    # No key takes a date, and JSON has none.
    found = [_judge(kind, tables, path, "date", {}) for path in _find_dates(tables, ())]
    _leave_out(left, found)
    try:
        # As JSON the library reads strictly, yet takes arrays for tuples and text for paths.
        table = kind.model_validate_json(json.dumps(left), strict=True)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_input=False)
        if not all(error["loc"] for error in errors):  # deeper than anything the library reads
            return kind(), (*found, Problem((), "nested too deep"))
        found += [
            _judge(kind, tables, e["loc"], e["type"], e.get("ctx", {}))
            for e in errors
            if not (e["type"] == "too_short" and _is_above(e["loc"], errors))
        ]
        _leave_out(left, found)
        table = kind.model_validate_json(json.dumps(left), strict=True)
    first_of_each: dict[KeyPath, Problem] = {}
    for problem in found:
        first_of_each.setdefault(problem.path, problem)
    return table, tuple(first_of_each.values())


def has_key(kind: type[Table], path: Sequence[str]) -> bool:
    """Whether there is such a key."""
    return _key_at(kind, path) is not None


def unknown_key(kind: type[Table], path: KeyPath) -> Problem:
    """The problem of a key that nobody knows, with the nearest one that is known."""
    nearest = _nearest(kind, path)
    hint = f" (did you mean '{nearest}'?)" if nearest else ""
    what = "table" if len(path) == 1 and nearest in kind.model_fields else "key"
    return Problem(path, f": unknown {what}{hint}")


def accepts(kind: type[Table], path: Sequence[str], value: object) -> bool:
    """Whether `value` is a valid value of that one key of a table whose keys have defaults."""
    *parents, key = path
    nested = {key: value}
    for step in reversed(parents):
        nested = {step: nested}
    return not check_tables(kind, nested)[1]


def describe(annotation: object, metadata: Sequence[object] = ()) -> str:
    """What a key takes, in words: type, unit-less range, choices.

    A `description` on the field says it better than its type and is taken as it is.
    """
    bare, extras = _unwrap(annotation, metadata)
    for extra in extras:
        if isinstance(extra, FieldInfo) and extra.description:
            return extra.description
    bounds = _Bounds.of(extras)
    origin = get_origin(bare)
    if _is_union(bare):
        return " or ".join(describe(arm) for arm in get_args(bare))
    if origin is Literal:
        return _one_of([_show(choice) for choice in get_args(bare)])
    if origin is tuple:
        return f"an array{bounds.of_entries}, each {describe(get_args(bare)[0])}"
    if origin is dict:
        return f"a table, each value {describe(get_args(bare)[1])}"
    return _SIMPLE[bare](bounds) if bare in _SIMPLE else "a table"


def describe_key(kind: type[Table], path: Sequence[str]) -> str:
    """What the key at `path` takes, in words."""
    field = _key_at(kind, path)
    if field is None:
        raise KeyError(path)
    return describe(field)


def write_path(path: KeyPath) -> str:
    """`("models", "serve", 0, "path")` as `models.serve[0].path`, made safe to print."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
            continue
        plain = step.isascii() and step.replace("_", "").replace("-", "").isalnum()
        shown = step if plain and len(step) <= _SHOWN_CHARACTERS else _show(step)
        text += f".{shown}" if text else shown
    return text


def _is_above(loc: KeyPath, errors: Sequence[ErrorDetails]) -> bool:
    """Whether an entry of it has an error: the library counts only the entries without."""
    return any(e["loc"][: len(loc)] == loc and len(e["loc"]) > len(loc) for e in errors)


def _judge(
    kind: type[Table],
    tables: Mapping[str, object],
    loc: KeyPath,
    code: str,
    facts: Mapping[str, Any],
) -> Problem:
    """Turn one of the validation library's findings into a problem an operator can act on."""
    path, field, secret = _follow(kind, loc)
    if field is None:
        return unknown_key(kind, path)
    if code == "missing":
        return Problem(path, f": must be given: {describe(field)}")
    expected = str(facts["error"]) if code == "value_error" else f"expected {describe(field)}"
    value = _value_at(tables, path)
    if loc[-1] == "[key]":
        _, mapping, _ = _follow(kind, loc[:-2])
        return Problem(path, f": expected as key {describe(get_args(_unwrap(mapping, ())[0])[0])}")
    if secret or isinstance(value, Mapping) or _is_table(_unwrap(field, ())[0]):
        return Problem(path, f": {expected}")
    return Problem(path, f" = {_show(value)}: {expected}{_nearest_choice(field, value)}")


def _follow(kind: type[Table], loc: KeyPath) -> tuple[KeyPath, object, bool]:
    """Walk a location as far as it names keys and entries; the library adds names of its own."""
    path: list[str | int] = []
    here: object = kind
    secret = False
    for step in loc:
        bare, _ = _unwrap(here, ())
        if _is_table(bare) and isinstance(step, str):
            path.append(step)
            field = bare.model_fields.get(step)
            if field is None:
                return tuple(path), None, True
            here, secret = field, secret or not field.repr
        elif get_origin(bare) is tuple and isinstance(step, int):
            path.append(step)
            here = get_args(bare)[0]
        elif get_origin(bare) is dict and step != "[key]":
            path.append(step)
            here = get_args(bare)[1]
        else:
            break
    return tuple(path), here, secret


def _key_at(kind: type[Table], path: Sequence[str]) -> FieldInfo | None:
    here: object = kind
    for step in path:
        bare, _ = _unwrap(here, ())
        field = bare.model_fields.get(step) if _is_table(bare) else None
        if field is None:
            return None
        here = field
    return here if isinstance(here, FieldInfo) else None


def _nearest(kind: type[Table], path: KeyPath) -> str:
    """The known name an operator most likely meant; "" when none is near."""
    word = str(path[-1])
    # The right key in the wrong table, or in none.
    for section, field in kind.model_fields.items():
        table, _ = _unwrap(field, ())
        if word in table.model_fields and section != path[0]:
            return f"{section}.{word}"
    here: object = kind
    for step in path[:-1]:
        bare, _ = _unwrap(here, ())
        if _is_table(bare) and isinstance(step, str):
            here = bare.model_fields[step]
        elif get_args(bare):
            here = get_args(bare)[0]
    bare, _ = _unwrap(here, ())
    known = list(bare.model_fields) if _is_table(bare) else []
    near = difflib.get_close_matches(word.lower(), known, n=1)
    return near[0] if near else ""


def _nearest_choice(field: object, value: object) -> str:
    bare, _ = _unwrap(field, ())
    if get_origin(bare) is not Literal or not isinstance(value, str):
        return ""
    near = difflib.get_close_matches(value.lower(), [str(c) for c in get_args(bare)], n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _unwrap(annotation: object, metadata: Sequence[object]) -> tuple[Any, list[object]]:
    """The bare type below `Annotated`, `None` and field wrappers, and what they say of it."""
    extras = list(metadata)
    bare = annotation
    while True:
        if isinstance(bare, FieldInfo):
            extras += [bare, *bare.metadata]
            bare = bare.annotation
        elif get_origin(bare) is Annotated:
            for extra in get_args(bare)[1:]:
                extras += [extra, *(extra.metadata if isinstance(extra, FieldInfo) else ())]
            bare = get_args(bare)[0]
        elif _is_union(bare) and type(None) in get_args(bare):
            arms = [arm for arm in get_args(bare) if arm is not type(None)]
            bare = Union[tuple(arms)]  # noqa: UP007 (a union of a computed tuple)
        else:
            return bare, extras


@dataclass(frozen=True, slots=True)
class _Bounds:
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    shortest: int | None = None
    longest: int | None = None

    @classmethod
    def of(cls, extras: Sequence[object]) -> _Bounds:
        """Collect what the metadata bound."""

        def last(name: str) -> Any:  # noqa: ANN401 (numbers of either kind)
            found = [getattr(extra, name) for extra in extras if hasattr(extra, name)]
            return found[-1] if found else None

        return cls(last("ge"), last("gt"), last("le"), last("min_length"), last("max_length"))

    @property
    def of_numbers(self) -> str:
        low = f"from {self.at_least}" if self.at_least is not None else ""
        low = f"above {self.above}" if self.above is not None else low
        if self.at_most is None:
            return f" {low}" if low else ""
        joint = "up to" if low.startswith("above") else "to"
        return f" {low} {joint} {self.at_most}" if low else f" up to {self.at_most}"

    @property
    def of_text(self) -> str:
        if self.longest is None:
            return ""
        return f" of {self.shortest or 0} to {self.longest} characters"

    @property
    def of_entries(self) -> str:
        if self.longest is not None:
            return f" of {self.shortest or 0} to {self.longest} entries"
        return f" of {self.shortest} or more entries" if self.shortest else ""


_SIMPLE: dict[object, Any] = {
    int: lambda bounds: f"a whole number{bounds.of_numbers}",
    float: lambda bounds: f"a number{bounds.of_numbers}",
    str: lambda bounds: f"text{bounds.of_text}",
    bool: lambda _: "true or false",
    Path: lambda _: "a path",
}


def _is_union(annotation: object) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _is_table(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Table)


def _one_of(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _show(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _value_at(tables: object, path: KeyPath) -> object:
    for step in path:
        tables = tables[step]  # type: ignore[index] # the path was found in these tables
    return tables


def _copy(value: object) -> object:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _leave_out(tables: dict[str, Any], problems: Sequence[Problem]) -> None:
    """Take out each key that has a problem, or what stands where its table should."""
    for section, *rest in {problem.path[:2] for problem in problems}:
        keys = tables.get(str(section))
        if rest and isinstance(keys, dict):
            keys.pop(rest[0], None)
        else:
            tables.pop(str(section), None)


def _find_dates(value: object, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _find_dates(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _find_dates(inner, (*path, place))
    elif isinstance(value, datetime.date | datetime.time):
        yield path
