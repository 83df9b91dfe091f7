"""Builds configuration tables from plain values, as a file would give them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from daemon.tables import Table, check_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

AnyTable = TypeVar("AnyTable", bound=Table)


def read_tables(kind: type[AnyTable], raw: Mapping[str, object]) -> AnyTable:
    """The tables; a problem is the test's own mistake."""
    table, problems = check_tables(kind, raw)
    assert problems == ()
    return table
