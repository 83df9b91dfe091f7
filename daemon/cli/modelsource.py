"""Which model MODEL names: a path, or a name from the configuration; and where its settings go."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.cli.outcome import CommandError, UsageError
from daemon.cli.text import printable
from daemon.config import ModelsTable, ServedModel
from daemon.models.settings import Settings, choose_settings
from daemon.models.store import (
    CURRENT_LINK,
    MODEL_FILE,
    TABLES_FILE,
    FoundModel,
    FoundVersion,
    scan,
)
from daemon.models.versions import default_version, wanted_versions
from daemon.tables import changed

if TYPE_CHECKING:
    from daemon.config import Config

_SUFFIX = ".tflite"
_STORE = "store"
"""The folder below `paths.state` in which the updater keeps signed releases."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHOWN_NAMES = 10


class UnknownModel(UsageError):
    """MODEL is neither a path nor a name in the configuration."""


@dataclass(frozen=True, slots=True)
class TablesPlace:
    """Where a model's settings are written.

    Attributes:
        file: the `model.toml`, which need not be there yet; no link, but what it leads to.
    """

    file: Path


@dataclass(frozen=True, slots=True)
class NoPlace:
    """There is no place for a model's settings.

    Attributes:
        reason: why.
        advice: what to do with the lines instead.
    """

    reason: str
    advice: str


@dataclass(frozen=True, slots=True)
class Source:
    """A model that can be measured.

    Attributes:
        name: as clients ask for it.
        found: the version that answers for it.
        settings: how the daemon would run it.
        place: where its settings go.
    """

    name: str
    found: FoundVersion
    settings: Settings
    place: TablesPlace | NoPlace


def find_source(word: str, config: Config) -> Source:
    """The model that an operator means: one of the configuration by that name, else a path.

    A word with a "/" in it, or that ends in ".tflite", is a path.

    Raises:
        UsageError: there is no such path, or (UnknownModel) no such model.
        CommandError: it is there and cannot be served.
    """
    if "/" in word or word.endswith(_SUFFIX):
        return _at_path(Path(word), config)
    models = scan(config)
    named = next((model for model in models if model.name == word), None)
    if named is not None:
        return _source(named, _look_for_home(named, config), config)
    if Path(word).exists():
        return _at_path(Path(word), config)
    raise UnknownModel(_unknown(word, [model.name for model in models]))


def _at_path(path: Path, config: Config) -> Source:
    if not path.exists():
        raise UsageError(f"argument MODEL: no such file or folder: {printable(str(path))}")
    place = _resolve(path)
    alone = ModelsTable(folders=(), serve=(ServedModel(path=place),))
    (model,) = scan(changed(config, models=alone))
    return _source(model, place, config)


def _resolve(path: Path) -> Path:
    """An absolute path whose last step, which names the model, is kept though it is a link."""
    if path.name in ("", ".."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent)) / path.name


def _source(model: FoundModel, home: Path, config: Config) -> Source:
    """The version of a model that answers.

    Args:
        model: as it was found.
        home: the file or folder that makes it one model.
        config: for what model.toml does not say.
    """
    versions = {version.version: version for version in model.versions}
    number = default_version(wanted_versions(versions, model.entry))
    if number is None:
        reason = model.problem or "no version of it is wanted"
        raise CommandError(f"the model cannot be served: {reason}")
    found = versions[number]
    if found.problem:
        raise CommandError(f"the model cannot be served: {found.problem}")
    settings = choose_settings(found, config)
    return Source(model.name, found, settings, _place(found, home, config))


def _place(found: FoundVersion, home: Path, config: Config) -> TablesPlace | NoPlace:
    folder = found.folder
    if folder is None:
        return _no_place_beside(found.model_path)
    if folder.parent == home and not (folder / TABLES_FILE).exists():
        folder = home  # of a tree of versions: one file for all, which outlives this version
    file = Path(os.path.realpath(folder / TABLES_FILE))
    linked = home.name == CURRENT_LINK or os.path.lexists(home / CURRENT_LINK)
    if linked or _is_release(file.parent, config):
        return NoPlace(
            f"{folder} is a release, and what is in a release is never changed",
            "put the lines into the model.toml of its next version, before that is bundled",
        )
    return TablesPlace(file)


def _no_place_beside(file: Path) -> NoPlace:
    folder = file.with_suffix("")
    commands = f"{shlex.join(['mkdir', str(folder)])} && " + shlex.join(
        ["mv", str(file), str(folder / MODEL_FILE)]
    )
    return NoPlace(
        f"{file.name} is a lone file, and a model.toml needs a folder",
        f"give it one (`{commands}`; where [[models.serve]] names the file, name the folder), and "
        f"put the lines into {folder / TABLES_FILE}",
    )


def _is_release(folder: Path, config: Config) -> bool:
    """Whether it is one of the updater's: STORE/MODEL/DIGEST."""
    store = Path(os.path.realpath(config.state_dir / _STORE))
    below = folder.is_relative_to(store)
    return below or (_DIGEST.fullmatch(folder.name) is not None and _STORE in folder.parts)


def _look_for_home(model: FoundModel, config: Config) -> Path:
    """The file or folder that makes a configured model one model."""
    if model.entry is not None:
        return config.below_root(model.entry.path)
    if not model.versions:
        raise CommandError(f"the model cannot be served: {model.problem}")
    files = {version.folder or version.model_path for version in model.versions}
    for parent in config.model_folders:
        for child in sorted(parent.iterdir()) if parent.is_dir() else ():
            links = {Path(os.path.realpath(child / CURRENT_LINK))}
            if files & {child, *links} or child in {file.parent for file in files}:
                return child
    raise CommandError(f"the files of '{model.name}' have just gone from the disk")


def _unknown(word: str, names: list[str]) -> str:
    shown = printable(word)
    told = f"argument MODEL: '{shown}' is no path, and no model of the configuration"
    nearest = difflib.get_close_matches(word, names, n=1)
    if nearest:
        return f"{told} (did you mean '{nearest[0]}'?)"
    if names:
        listed = ", ".join(sorted(names)[:_SHOWN_NAMES])
        return f"{told}, which has: {listed}"
    return f"{told}, which has none"
