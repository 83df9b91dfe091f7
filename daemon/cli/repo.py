"""`repo`: the publisher's side of updates; updater/publisher does the work."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from daemon.cli.outcome import CommandError, ExitCode, UsageError
from daemon.cli.passphrases import Passphrases
from daemon.cli.text import mebibytes, print_json, table
from updater.bundle import verify_bundle
from updater.desired import encode_desired
from updater.errors import UpdateError
from updater.publisher.assignments import (
    ALL,
    assign,
    block,
    parse_window,
    raise_floors,
    set_windows,
    unblock,
)
from updater.publisher.draft import Quorum
from updater.publisher.export import export
from updater.publisher.keys import Keyring
from updater.publisher.repository import Plan, Repository
from updater.publisher.status import list_bundles, look_at
from updater.signedtime import write_time
from updater.target import facts_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from updater.desired import Desired
    from updater.publisher.draft import Published
    from updater.publisher.status import BundleStatus, KeyStatus, RoleStatus

_COLUMNS = ("ROLE", "VERSION", "EXPIRES", "", "KEYS", "WHERE THEY ARE", "")
_BUNDLE_COLUMNS = ("BUNDLE", "COUNTER", "SIZE", "SIGNED BY", "SHA256")
_DAY_S = 86_400
_ALWAYS = "always"


def repo(arguments: argparse.Namespace) -> ExitCode:
    """Run one action.

    Raises:
        CommandError: it is refused, or the disk refused.
    """
    try:
        return _ACTIONS[arguments.action](arguments)
    except UpdateError as exc:
        raise CommandError(str(exc)) from exc
    except OSError as exc:
        raise CommandError(f"{exc.filename or arguments.repo}: {exc.strerror}") from exc


def _init(arguments: argparse.Namespace) -> ExitCode:
    quorums = {role: Quorum(*numbers) for role, numbers in arguments.quorum.items()}
    plan = Plan(quorums={**Plan().quorums, **quorums})
    if arguments.team:
        teams = {f"models-{name}": patterns for name, patterns in arguments.team}
        plan = Plan(quorums=plan.quorums, teams=teams)
    repository = _repository(arguments)
    published = repository.init(plan, timestamp_life_s=arguments.life)
    _tell(published)
    print(f"Devices trust it with {repository.metadata.path('root', 1)} as their root.json.")
    print(
        f"Take {arguments.keys[0] / 'offline'} off this machine now; docs/publishing.md says how."
    )
    return ExitCode.DONE


def _add(arguments: argparse.Namespace) -> ExitCode:
    if not arguments.bundles and not arguments.floor:
        raise UsageError("argument BUNDLE: expected a bundle, or --floor")
    bundles = [(path, facts_of(verify_bundle(path))) for path in arguments.bundles]
    _tell(_repository(arguments).add(bundles, floors=arguments.floor))
    return ExitCode.DONE


def _assign(arguments: argparse.Namespace) -> ExitCode:
    if not any(
        (arguments.models, arguments.window, arguments.block, arguments.unblock, arguments.floor)
    ):
        raise UsageError("argument NAME=VERSION: expected a model, or something else to change")
    if len(dict(arguments.models)) != len(arguments.models):
        raise UsageError("argument NAME=VERSION: expected each model once")
    windows = [window for window in arguments.window if window != _ALWAYS]
    try:
        parsed = [parse_window(window, arguments.labels) for window in windows]
    except ValueError as exc:
        raise UsageError(f"argument --window: {exc}") from exc

    def change(desired: Desired) -> Desired:
        if arguments.models:
            models = dict(arguments.models)
            desired = assign(desired, models, percent=arguments.percent, labels=arguments.labels)
        if arguments.window:
            desired = set_windows(desired, parsed, labels=arguments.labels)
        desired = block(desired, arguments.block)
        desired = unblock(desired, arguments.unblock)
        return raise_floors(desired, arguments.floor)

    repository = _repository(arguments)
    _tell(repository.assign(change))
    print(describe_wish(repository.desired()))
    return ExitCode.DONE


def _refresh(arguments: argparse.Namespace) -> ExitCode:
    _tell(_repository(arguments).refresh(timestamp_life_s=arguments.life))
    return ExitCode.DONE


def _export(arguments: argparse.Namespace) -> ExitCode:
    stick = export(
        _repository(arguments),
        arguments.out,
        now=time.time(),
        life_s=arguments.life,
        models=arguments.models,
    )
    print(f"{arguments.out}: {', '.join(stick.bundles) or 'no bundle'}")
    print(f"Devices believe it until {write_time(stick.expires)}. Until then, who has it can keep")
    print("them from what is newer; they never go back to what is older.")
    return ExitCode.DONE


def _rotate(arguments: argparse.Namespace) -> ExitCode:
    revoke = () if arguments.keep else arguments.revoke
    quorum = Quorum(*arguments.quorum) if arguments.quorum else None
    _tell(_repository(arguments).rotate(arguments.roles, revoke=revoke, quorum=quorum))
    return ExitCode.DONE


def _status(arguments: argparse.Namespace) -> ExitCode:
    keyring = Keyring(arguments.keys, Passphrases(None, {}))
    now = time.time()
    repository = Repository(arguments.repo, keyring, clock=time.time)
    statuses = look_at(repository, keyring, now=now)
    bundles, desired = list_bundles(repository), repository.desired()
    if arguments.json:
        document = {
            "roles": [_as_document(each) for each in statuses],
            "bundles": [asdict(each) for each in bundles],
            "desired": json.loads(encode_desired(desired)),
        }
        print_json(document)
        return ExitCode.DONE
    print(table([_row(each, now) for each in statuses], _COLUMNS), end="\n\n")
    if bundles:
        print(table([_bundle_row(each) for each in bundles], _BUNDLE_COLUMNS), end="\n\n")
    print(describe_wish(desired))
    return ExitCode.DONE


_ACTIONS = {
    "init": _init,
    "add": _add,
    "assign": _assign,
    "refresh": _refresh,
    "export": _export,
    "rotate": _rotate,
    "status": _status,
}


def describe_wish(desired: Desired) -> str:
    """What the fleet shall serve, a line for each rule, the first that matches first."""
    lines = [f"wish {desired.serial}:" if desired.groups else f"wish {desired.serial}: no model"]
    for group in desired.groups:
        models = " ".join(f"{model}={version}" for model, version in group.models.items())
        share = "" if group.percent == ALL else f"{group.percent:g} % of "
        lines.append(f"  {models} for {share}{_devices(group.match)} ({group.rollout_id})")
    for window in desired.windows:
        days = ",".join(window.days)
        lines.append(f"  {days} {window.start}-{window.end} only: {_devices(window.match)}")
    lines += [f"  floor of {model}: {floor}" for model, floor in sorted(desired.floors.items())]
    lines += [f"  blocked: {digest}" for digest in desired.blocked]
    return "\n".join(lines)


def _devices(match: Mapping[str, str]) -> str:
    labels = ",".join(f"{label}={value}" for label, value in sorted(match.items()))
    return f"devices with {labels}" if labels else "all devices"


def _repository(arguments: argparse.Namespace) -> Repository:
    passphrases = Passphrases(arguments.passphrase_file, os.environ)
    keyring = Keyring(arguments.keys, passphrases)
    return Repository(arguments.repo, keyring, clock=time.time)


def _tell(published: Published) -> None:
    signed = ", ".join(f"{role} {version}" for role, version in published.versions.items())
    print(f"signed: {signed or 'nothing'}")
    if published.waits_for:
        print(f"No key of {published.waits_for} is here, so devices do not see it yet:")
        print("run `inferctl repo refresh` on the fleet's host.")


def _row(status: RoleStatus, now: float) -> tuple[str, ...]:
    days = (status.expires - now) / _DAY_S
    return (
        status.role,
        str(status.version),
        write_time(status.expires),
        f"in {days:.0f} d" if days >= 0 else f"{-days:.0f} d ago",
        f"{status.threshold} of {len(status.keys)}, {status.kind}",
        ", ".join(_where(key) for key in status.keys),
        status.warning,
    )


def _bundle_row(bundle: BundleStatus) -> tuple[str, ...]:
    return (
        f"{bundle.model}={bundle.version}",
        f"{bundle.release_counter}, floor {bundle.floor}",
        mebibytes(bundle.length),
        bundle.role,
        bundle.sha256,
    )


def _where(key: KeyStatus) -> str:
    return f"{key.name}: {key.path}" if key.path else f"{key.name}: not here"


def _as_document(status: RoleStatus) -> dict[str, object]:
    keys = [
        {"name": key.name, "key_id": key.key_id, "path": str(key.path) if key.path else None}
        for key in status.keys
    ]
    return {**asdict(status), "keys": keys}
