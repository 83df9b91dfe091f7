"""`update`, `history`, `rollback`, `quarantine`, `import`: what a person does with updates."""

from __future__ import annotations

import difflib
import io
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli.following import Follower, describe_rest, is_stuck_at
from daemon.cli.outcome import CommandError, ExitCode, UsageError
from daemon.cli.screen import Screen
from daemon.cli.text import print_json, printable
from daemon.cli.updaterclient import updater_of
from daemon.cli.updatetext import (
    AT_REST,
    describe_chain,
    describe_history,
    describe_quarantine,
    describe_status,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Mapping

    from daemon.cli.updaterclient import Updater

_SIGNED_FILE = Path("metadata") / "timestamp.json"
"""Every repository has it, on a server or on a stick."""
_TURNED_BACK = "roll_back"
_ARRIVING = frozenset({"assigned", "downloading"})


def update(arguments: argparse.Namespace) -> ExitCode:
    """Print where updates stand; with --now look at once, and follow what comes of it."""
    updater = updater_of(arguments)
    if not arguments.now:
        status = updater.status()
        print_json(status) if arguments.json else print(describe_status(status, time.time()))
        return ExitCode.DONE
    if not updater.status()["source"]:
        raise CommandError("there is nowhere to look: set [updates] source in inferd.toml")
    journey = _Journey(updater, quiet=arguments.json)
    updater.refresh()
    status = journey.follow()
    if arguments.json:
        print_json(status)
    return journey.outcome(status)


def history(arguments: argparse.Namespace) -> ExitCode:
    """Print the last events; with --verify also whether all of them are as they were written."""
    updater = updater_of(arguments)
    document = updater.history(limit=arguments.limit, model=arguments.model)
    events, chain = document["events"], document["chain"]
    if arguments.model and not events:
        known = [model["model"] for model in updater.status()["models"]]
        if arguments.model not in known:
            raise CommandError(_no_model(arguments.model, known))
    if arguments.json:
        print_json(document)
    else:
        print(describe_history(events))
        if arguments.verify or chain["broken"]:
            print(describe_chain(chain))
    return ExitCode.FAILED if arguments.verify and chain["broken"] else ExitCode.DONE


def rollback(arguments: argparse.Namespace) -> ExitCode:
    """Undo a model's last update, and follow that to its end.

    Raises:
        CommandError: there is no such model, or nothing to go back to.
    """
    updater = updater_of(arguments)
    models = {model["model"]: model for model in updater.status()["models"]}
    if arguments.model not in models:
        raise CommandError(_no_model(arguments.model, models))
    journey = _Journey(updater)
    answer = updater.roll_back(arguments.model)
    print(f"{arguments.model} goes back to version {answer['version']}", flush=True)
    status = journey.follow()
    now = next(each for each in status["models"] if each["model"] == arguments.model)
    print(f"{arguments.model} serves version {now['current_version']}")
    print("What it came from is in quarantine: `inferctl quarantine clear` lets it in again.")
    return ExitCode.DONE


def list_quarantine(arguments: argparse.Namespace) -> ExitCode:
    """Print the bundles that have failed here."""
    document = updater_of(arguments).quarantine()
    print_json(document) if arguments.json else print(describe_quarantine(document["bundles"]))
    return ExitCode.DONE


def clear_quarantine(arguments: argparse.Namespace) -> ExitCode:
    """Let one bundle, or all of them, be tried again.

    Raises:
        CommandError: there is no such bundle in quarantine, or more than one.
    """
    updater = updater_of(arguments)
    cases = updater.quarantine()["bundles"]
    digest = None if arguments.all else _choose(arguments.digest, {c["digest"] for c in cases})
    cleared = set(updater.clear(digest)["cleared"])
    if not cleared:
        print("no bundle was in quarantine")
    for case in cases:
        if case["digest"] in cleared:
            print(f"{case['model']} version {case['version']} may be tried again")
    return ExitCode.DONE


def import_stick(arguments: argparse.Namespace) -> ExitCode:
    """Take updates from a folder, and follow them to their end.

    Raises:
        UsageError: there is no repository at that path.
        CommandError: what is there must not be believed, or is older than what is known.
    """
    folder = _repository(arguments.path)
    updater = updater_of(arguments)
    journey = _Journey(updater)
    taken = updater.import_stick(folder)["models"]
    wanted = ", ".join(f"{model} version {version}" for model, version in sorted(taken.items()))
    print(f"{folder} is signed as it must be; it is for this device: {wanted or 'nothing'}")
    sys.stdout.flush()
    status = journey.follow()
    if any(model["state"] in _ARRIVING for model in status["models"]):
        print("Leave the stick where it is, or put it in again later: not all of it is here.")
    else:
        print("The stick is not needed any more.")
    return journey.outcome(status, by_source=False)


class _Journey:
    """What happens between a wish and its end: told as it goes, and judged at the end."""

    def __init__(self, updater: Updater, *, quiet: bool = False) -> None:
        """Remember where things stood."""
        self._quiet = quiet
        out = io.StringIO() if quiet else sys.stdout
        last = updater.history(limit=1)["chain"]["last"]
        self._follower = Follower(updater, Screen(out), after=last)

    def follow(self) -> Any:  # noqa: ANN401 (JSON)
        """Until nothing moves any more."""
        return self._follower.follow()

    def outcome(self, status: Mapping[str, Any], *, by_source: bool = True) -> ExitCode:
        """Say what waits and what went wrong, and turn it into an exit code.

        Args:
            by_source: the configured source was asked.
        """
        failed = [event for event in self._follower.events if event["event"] == _TURNED_BACK]
        failures = [_describe_failure(event) for event in failed]
        if by_source and status["problem"]:
            failures.append(f"the look has failed: {status['problem']}")
        told = {event.get("model") for event in failed}
        # Why it is not taken now is that it has failed, which is told below.
        rest = [
            model
            for model in status["models"]
            if model["state"] != AT_REST or model["model"] not in told
        ]
        lines = [*describe_rest(rest), *failures]
        if not lines:
            lines = ["up to date: " + (_installed(status["models"]) or "no model is assigned")]
        if not self._quiet:
            print("\n".join(map(printable, lines)))
        is_stuck = any(is_stuck_at(model) for model in status["models"])
        return ExitCode.FAILED if failures or is_stuck else ExitCode.DONE


def _describe_failure(event: Mapping[str, Any]) -> str:
    return f"{event.get('model')} version {event.get('version')} has failed: {event.get('reason')}"


def _installed(models: Collection[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{model['model']} version {model['current_version']}"
        for model in models
        if model["current_version"]
    )


def _repository(path: Path) -> Path:
    folder = Path(os.path.abspath(path))  # noqa: PTH100 (a link to the stick is as good)
    if not folder.is_dir():
        raise UsageError(f"argument PATH: no such folder: {path}")
    if (folder / _SIGNED_FILE).is_file():
        return folder
    inside = [each.parent.parent for each in folder.glob(f"*/{_SIGNED_FILE}")]
    hint = f"; did you mean {inside[0]}?" if inside else ""
    raise UsageError(
        f"argument PATH: {path}: expected what `inferctl repo export` wrote, a folder with "
        f"{_SIGNED_FILE}{hint}"
    )


def _choose(beginning: str, digests: Collection[str]) -> str:
    """The one digest that begins so.

    Raises:
        CommandError: none does, or several do.
    """
    found = [digest for digest in sorted(digests) if digest.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandError(f"{beginning} is the beginning of {len(found)}: {', '.join(found)}")
    near = difflib.get_close_matches(
        beginning, [digest[: len(beginning)] for digest in digests], n=1
    )
    hint = f"; did you mean {near[0]}?" if near else "; see `inferctl quarantine list`"
    raise CommandError(f"no bundle in quarantine begins with {beginning}{hint}")


def _no_model(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"no update of a model '{name}' is known here; did you mean '{near[0]}'?"
    listed = f"models with updates: {', '.join(sorted(known))}" if known else "there is none of any"
    return f"no update of a model '{name}' is known here; {listed}"
