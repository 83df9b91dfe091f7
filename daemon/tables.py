"""TOML tables checked as a whole: every problem found, each with its key, value and expectation.

Pure. `config.py` and `modelfile.py` say what the tables are; this module says what is wrong with
what an operator wrote. Values of unknown keys, and of keys marked `SECRET`, are never shown: they
may be secrets.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from msgspec.structs import FieldInfo

Name = Annotated[str, Meta(min_length=1, max_length=128)]

_SHOWN_CHARACTERS = 80
"""Longest value shown in a problem: enough to recognise it, short enough for one line."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a value must be beyond its type and bounds; stands in the `Annotated` of a key.

    Attributes:
        rule: raises ValueError, whose message says what was expected.
    """

    rule: Callable[[Any], object]


class _Secret:
    pass


SECRET: Final = _Secret()
"""Stands in the `Annotated` of a key whose value is never shown."""


class Table(msgspec.Struct, frozen=True):
    """A TOML table: immutable, and unknown keys are errors."""

    def __repr__(self) -> str:
        shown = [
            f"{name}={getattr(self, name)!r}"
            for name, key in keys_of(type(self)).items()
            if not _is_secret(key.type)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


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


def changed(table: AnyTable, **values: object) -> AnyTable:
    """A copy with other values, which are not checked."""
    return msgspec.structs.replace(table, **values)


@cache
def keys_of(kind: type[Table]) -> Mapping[str, FieldInfo]:
    """Every key of a table by its name: type, bounds, default."""
    return {key.name: key for key in msgspec.structs.fields(kind)}


def check_tables(
    kind: type[AnyTable], tables: Mapping[str, object]
) -> tuple[AnyTable, tuple[Problem, ...]]:
    """Read parsed TOML as `kind`, whose tables and keys all have defaults.

    Returns:
        The tables, with every key that has a problem at its default; and the problems, in the order
        of the tables. Raises nothing.
    """
    reader = _Reader(kind)
    values = reader.read_keys(kind, tables, ())
    return kind(**values), tuple(reader.problems)


def has_key(kind: type[Table], path: Sequence[str]) -> bool:
    """Whether there is such a key."""
    return _key_at(kind, path) is not None


def unknown_key(kind: type[Table], path: KeyPath) -> Problem:
    """The problem of a key that nobody knows, with the nearest one that is known."""
    nearest = _nearest(kind, path)
    hint = f" (did you mean '{nearest}'?)" if nearest else ""
    what = "table" if len(path) == 1 and nearest in keys_of(kind) else "key"
    return Problem(path, f": unknown {what}{hint}")


def accepts(kind: type[Table], path: Sequence[str], value: object) -> bool:
    """Whether `value` is a valid value of that one key of a table whose keys have defaults."""
    *parents, key = path
    nested = {key: value}
    for step in reversed(parents):
        nested = {step: nested}
    return not check_tables(kind, nested)[1]


def describe(annotation: object) -> str:
    """What a key of this type takes, in words: type, unit-less range, choices.

    A description in its `Meta` says it better than its type and is taken as it is.
    """
    bare, extras = _unwrap(annotation)
    metas = [extra for extra in extras if isinstance(extra, Meta)]
    for meta in metas:
        if meta.description:
            return meta.description
    bounds = _Bounds.of(metas)
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
    key = _key_at(kind, path)
    if key is None:
        raise KeyError(path)
    return describe(key.type)


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


_BAD: Final = object()
"""Stands for a value that has a problem."""


class _Reader:
    """Reads values as what a table's keys take, and collects the problems."""

    def __init__(self, root: type[Table]) -> None:
        self._root = root
        self.problems: list[Problem] = []

    def read_keys(
        self, kind: type[Table], raw: Mapping[str, object], path: KeyPath
    ) -> dict[str, Any]:
        """The keys of a table that have no problem."""
        keys = keys_of(kind)
        values = {}
        for name, key in keys.items():
            here = (*path, name)
            if name in raw:
                value = self._read(key.type, raw[name], here)
                if value is not _BAD:
                    values[name] = value
            elif key.required:
                self._add(here, f": must be given: {describe(key.type)}")
        self.problems += [
            unknown_key(self._root, (*path, name)) for name in raw if name not in keys
        ]
        return values

    def _read(self, annotation: object, raw: object, path: KeyPath) -> object:
        bare, extras = _unwrap(annotation)
        if _is_table(bare):
            return self._read_table(bare, raw, path)
        if get_origin(bare) is tuple and isinstance(raw, list | tuple):
            return self._read_array(annotation, raw, path)
        if get_origin(bare) is dict and isinstance(raw, Mapping):
            return self._read_mapping(bare, raw, path)
        try:
            value = msgspec.convert(raw, annotation, dec_hook=_to_path)
            if _holds_no_number(value):
                raise ValueError(f"expected {describe(annotation)}")  # noqa: TRY301
            for extra in extras:
                if isinstance(extra, Check):
                    extra.rule(value)
        except msgspec.ValidationError:
            return self._refuse(annotation, raw, path, f"expected {describe(annotation)}")
        except ValueError as exc:
            return self._refuse(annotation, raw, path, str(exc))
        return value

    def _read_table(self, kind: type[Table], raw: object, path: KeyPath) -> object:
        if not isinstance(raw, Mapping):
            return self._add(path, ": expected a table")
        known = len(self.problems)
        values = self.read_keys(kind, raw, path)
        is_entry = len(path) > 1  # of an array: it is good or it is not
        return _BAD if is_entry and len(self.problems) > known else kind(**values)

    def _read_array(self, annotation: object, raw: Sequence[object], path: KeyPath) -> object:
        bare, extras = _unwrap(annotation)
        of_entry = get_args(bare)[0]
        entries = [self._read(of_entry, entry, (*path, place)) for place, entry in enumerate(raw)]
        if _BAD in entries:
            return _BAD
        if not _Bounds.of(extras).allow(len(entries)):
            return self._refuse(annotation, raw, path, f"expected {describe(annotation)}")
        return tuple(entries)

    def _read_mapping(self, bare: object, raw: Mapping[str, object], path: KeyPath) -> object:
        of_key, of_value = get_args(bare)
        values = {}
        for name, value in raw.items():
            here = (*path, name)
            try:
                msgspec.convert(name, of_key)
            except msgspec.ValidationError:
                self._add(here, f": expected as key {describe(of_key)}")
            else:
                values[name] = self._read(of_value, value, here)
        return values if len(values) == len(raw) and _BAD not in values.values() else _BAD

    def _refuse(self, annotation: object, raw: object, path: KeyPath, expected: str) -> object:
        if _is_secret(annotation) or isinstance(raw, Mapping):
            return self._add(path, f": {expected}")
        hint = _nearest_choice(annotation, raw)
        return self._add(path, f" = {_show(raw)}: {expected}{hint}")

    def _add(self, path: KeyPath, text: str) -> object:
        self.problems.append(Problem(path, text))
        return _BAD


def _to_path(kind: type, value: object) -> object:
    """The one type of ours that the library does not know."""
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError


def _holds_no_number(value: object) -> bool:
    """Whether it is or holds infinity or NaN, which no key takes."""
    if isinstance(value, tuple):
        return any(map(_holds_no_number, value))
    return isinstance(value, float) and not math.isfinite(value)


def _is_secret(annotation: object) -> bool:
    return SECRET in _unwrap(annotation)[1]


def _key_at(kind: type[Table], path: Sequence[str]) -> FieldInfo | None:
    here: object = kind
    key = None
    for step in path:
        bare, _ = _unwrap(here)
        key = keys_of(bare).get(step) if _is_table(bare) else None
        if key is None:
            return None
        here = key.type
    return key


def _nearest(kind: type[Table], path: KeyPath) -> str:
    """The known name an operator most likely meant; "" when none is near."""
    word = str(path[-1])
    # The right key in the wrong table, or in none.
    for section, key in keys_of(kind).items():
        if _is_table(key.type) and word in keys_of(key.type) and section != path[0]:
            return f"{section}.{word}"
    here: object = kind
    for step in path[:-1]:
        bare, _ = _unwrap(here)
        if _is_table(bare) and isinstance(step, str):
            here = keys_of(bare)[step].type
        elif get_args(bare):
            here = get_args(bare)[0]
    bare, _ = _unwrap(here)
    known = list(keys_of(bare)) if _is_table(bare) else []
    near = difflib.get_close_matches(word.lower(), known, n=1)
    return near[0] if near else ""


def _nearest_choice(annotation: object, value: object) -> str:
    bare, _ = _unwrap(annotation)
    if get_origin(bare) is not Literal or not isinstance(value, str):
        return ""
    near = difflib.get_close_matches(value.lower(), [str(c) for c in get_args(bare)], n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _unwrap(annotation: object) -> tuple[Any, list[object]]:
    """The bare type below `Annotated` and `None`, and what they say of it."""
    extras: list[object] = []
    bare = annotation
    while True:
        if get_origin(bare) is Annotated:
            extras += get_args(bare)[1:]
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
            found = [getattr(extra, name) for extra in extras if isinstance(extra, Meta)]
            return next((bound for bound in reversed(found) if bound is not None), None)

        return cls(last("ge"), last("gt"), last("le"), last("min_length"), last("max_length"))

    def allow(self, length: int) -> bool:
        """Whether an array may have so many entries."""
        return (
            (self.shortest or 0) <= length <= (math.inf if self.longest is None else self.longest)
        )

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
