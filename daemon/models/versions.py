"""Which of the versions on disk are served, and what their labels point to. Pure.

Rules:
1. Without an entry in the configuration, the newest version is served.
2. "latest" serves the newest N, "all" every one, "specific" those it names.
3. The newest version that is served answers for requests that name none.
4. A label points to a version that is served, or to nothing.

Source: TF Serving's ServableVersionPolicy and version_labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

if TYPE_CHECKING:
    from collections.abc import Collection

    from daemon.config import ServedModel


def wanted_versions(found: Collection[int], entry: ServedModel | None) -> frozenset[int]:
    """The versions among those found that should be served."""
    if entry is None:  # rule 1
        return frozenset(_newest(found, 1))
    match entry.version_policy:  # rule 2
        case "latest":
            return frozenset(_newest(found, entry.latest))
        case "all":
            return frozenset(found)
        case "specific":
            return frozenset(found) & frozenset(entry.versions)
        case _:
            assert_never(entry.version_policy)


def default_version(served: Collection[int]) -> int | None:
    """The version that answers for requests that name none; None when nothing is served."""
    return max(served, default=None)  # rule 3


def labels_of(served: Collection[int], entry: ServedModel | None) -> dict[str, int]:
    """The labels that point to a version that is served."""
    if entry is None:
        return {}
    return {
        label: version for label, version in entry.labels.items() if version in served
    }  # rule 4


def version_problems(found: Collection[int], entry: ServedModel | None) -> tuple[str, ...]:
    """What the configuration asks for and the disk does not have, one line each."""
    if entry is None:
        return ()
    missing = [
        f"version {version} is configured and was not found"
        for version in sorted(entry.versions)
        if version not in found
    ]
    wanted = wanted_versions(found, entry)
    dangling = [
        f"label '{label}' names version {version}, which is not served"
        for label, version in sorted(entry.labels.items())
        if version not in wanted
    ]
    return (*missing, *dangling)


def _newest(found: Collection[int], count: int) -> list[int]:
    return sorted(found, reverse=True)[:count]
