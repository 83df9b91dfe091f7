"""Copies a repository to a stick, for devices that no network reaches.

What a stick is: the same folder, with a timestamp that lives longer and a version that is published
nowhere else (`Draft.sign_for_stick`). A device reads it as it reads a web server.

What it costs: who has the stick can tell a device for that long that nothing is newer. They cannot
take it back to anything older than it has seen. So its life is a choice, and is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from updater import atomic
from updater.desired import DESIRED_PATH
from updater.floors import ROOT, SNAPSHOT, TARGETS
from updater.publisher.bundlefiles import copy_bundle
from updater.publisher.errors import PublisherError
from updater.publisher.metadata import DAY_S, delegations
from updater.signedtime import write_time
from updater.target import bundle_path

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from updater.publisher.repository import Repository

MIN_LIFE_S, MAX_LIFE_S = DAY_S, 365 * DAY_S
"""Of a stick: below, it expires on its way; above, everything else on it has."""


@dataclass(frozen=True, slots=True)
class Stick:
    """What was written.

    Attributes:
        bundles: TUF target paths.
        expires: wall clock, seconds.
    """

    bundles: tuple[str, ...]
    expires: float


def export(
    repository: Repository,
    out: Path,
    *,
    now: float,
    life_s: float,
    models: Collection[str] | None = None,
) -> Stick:
    """Write what devices need: all metadata, and the bundles that are assigned to any of them.

    Args:
        out: the stick's folder; an older export in it is brought up to date.
        models: only bundles of these.

    Raises:
        PublisherError: the life is out of range, or something would expire before the stick.
        KeysMissing: of an online role.
        OSError: a disk refused. The stick is good when `timestamp.json` is there, else not.
    """
    if not MIN_LIFE_S <= life_s <= MAX_LIFE_S:
        message = f"a life of {life_s / DAY_S:g} days: expected 1 to {MAX_LIFE_S // DAY_S}"
        raise PublisherError(message)
    repository.refresh()
    _check_lives(repository, now + life_s)
    bundles = _wanted(repository, models)
    atomic.make_folder(out / "metadata")
    # A stick that is pulled out half-way has no timestamp, so nobody takes it for a good one.
    atomic.remove(out / "metadata" / "timestamp.json")
    timestamp = repository.sign_for_stick(life_s)
    for location in bundles.values():
        copy_bundle(repository.folder / "targets" / location, out / "targets" / location)
    for path in _metadata_files(repository):
        atomic.write_file(out / "metadata" / path.name, path.read_bytes())
    atomic.write_file(out / "metadata" / "timestamp.json", timestamp)
    return Stick(tuple(path for path in bundles if path != DESIRED_PATH), now + life_s)


def _check_lives(repository: Repository, until: float) -> None:
    for role in (ROOT, SNAPSHOT, TARGETS, *_delegations(repository)):
        expires = repository.metadata.newest(role).signed.expires.timestamp()
        if expires < until:
            raise PublisherError(
                f"{role} expires on {write_time(expires)}, before the stick would; give that a "
                f"shorter life, or sign {role} anew with `repo refresh` where its keys are"
            )


def _wanted(repository: Repository, models: Collection[str] | None) -> dict[str, str]:
    """TUF target path to location, of the wish and of the bundles it names."""
    desired = repository.desired()
    wishes = {wish for group in desired.groups for wish in group.models.items()}
    names = {model for model, _ in wishes}
    if unknown := sorted(set(models or ()) - names):
        raise PublisherError(f"{', '.join(unknown)}: assigned to nobody")
    paths = [
        bundle_path(model, version)
        for model, version in sorted(wishes)
        if models is None or model in models
    ]
    listed = {
        path: file.get_prefixed_paths()[0]
        for role in _delegations(repository)
        for path, file in repository.metadata.newest(role).signed.targets.items()
    }
    return {path: listed[path] for path in (DESIRED_PATH, *paths)}


def _metadata_files(repository: Repository) -> list[Path]:
    """All roots, for devices walk them one by one, and the newest of everything else."""
    metadata = repository.metadata
    newest = (SNAPSHOT, TARGETS, *_delegations(repository))
    roots = [metadata.path(ROOT, version) for version in metadata.versions(ROOT)]
    return roots + [metadata.path(role, metadata.versions(role)[-1]) for role in newest]


def _delegations(repository: Repository) -> tuple[str, ...]:
    return tuple(delegations(repository.metadata.newest(TARGETS).signed))
