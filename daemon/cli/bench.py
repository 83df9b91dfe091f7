"""`bench`: measures how a model is best run on this machine, and writes that down when asked to."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvloop

from accelerators.errors import AcceleratorError
from daemon.cli.benchreport import (
    as_document,
    describe_choice,
    describe_machine,
    describe_model,
    describe_rows,
)
from daemon.cli.benchsession import Wish, measure_model
from daemon.cli.client import Client, model_path, parse_address
from daemon.cli.inprocess import BadConfig
from daemon.cli.machine import look_at_machine
from daemon.cli.modelsource import NoPlace, Source, UnknownModel, find_source
from daemon.cli.modeltoml import why_not_writable, write_changes
from daemon.cli.outcome import CommandError, ExitCode, Refused, Unreachable, UsageError
from daemon.cli.text import print_json
from daemon.cli.tuning import Goal
from daemon.configfiles import read_config
from daemon.errors import ConfigError
from daemon.logs import ROOT_LOGGER
from daemon.pipeline.media import MediaLimits

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from daemon.cli.benchreport import Report
    from daemon.config import Config


def bench(arguments: argparse.Namespace) -> ExitCode:
    """Measure, show the table, and with --apply write the best setting.

    Raises:
        UsageError: an argument cannot be used.
        CommandError: the model cannot be measured, or its setting cannot be written.
    """
    config = _read_config(arguments.config)
    client = Client(parse_address(arguments.url))
    source = _find_source(arguments.model, config, client)
    _check_clients(arguments.clients, source.settings.queue)
    file = _place_to_write(source) if arguments.apply else None
    report = _measure(arguments, source, config)
    if not arguments.json:
        print(describe_model(report), describe_machine(report.machine), sep="\n", end="\n\n")
        print(describe_rows(report), end="\n\n")
    applied = Applied(None)
    if file is not None:
        applied = _apply(report, file, client, config.models.poll_interval_s)
    if arguments.json:
        told = {"applied": applied.file, "told": list(applied.words)}
        print_json({**as_document(report), **told})
    else:
        offered = None if arguments.apply else source.place
        print("\n".join([*describe_choice(report, offered), *applied.words]))
    done = report.choice is not None and applied.is_well
    return ExitCode.DONE if done else ExitCode.FAILED


@dataclass(frozen=True, slots=True)
class Applied:
    """What --apply has done.

    Attributes:
        file: that was written; None for none.
        words: for the operator, a line each.
        is_well: False when it could not be written, or the daemon cannot serve the model with it.
    """

    file: str | None
    words: tuple[str, ...] = ()
    is_well: bool = True


def _apply(report: Report, file: Path, client: Client, poll_interval_s: float) -> Applied:
    """Write the best setting, and let a daemon know. Raises nothing."""
    if not report.changes:
        return Applied(None, ("Nothing was written.",))
    try:
        write_changes(file, report.changes)
    except CommandError as exc:
        return Applied(None, (str(exc),), is_well=False)
    try:
        words = tell_daemon(client, report.digest, poll_interval_s)
    except CommandError as exc:
        return Applied(str(file), (f"Written into {file}.", str(exc)), is_well=False)
    return Applied(str(file), (f"Written into {file}.", words))


def tell_daemon(client: Client, digest: str, poll_interval_s: float) -> str:
    """Let a daemon that serves this very file take its new setting up at once.

    Args:
        client: for the daemon that is asked.
        digest: of the model's file.
        poll_interval_s: seconds between two looks at the disk, of any other daemon.

    Returns:
        What came of it; also when no daemon answers.

    Raises:
        CommandError: it does not run the model with it.
    """
    soon = f"{2 * poll_interval_s + 1:.0f} s (models.poll_interval_s)"
    by_itself = f"one that serves it takes it up by itself within {soon}"
    try:
        names = _served_as(client.get("/api/models"), digest)
    except (Unreachable, Refused):
        return f"No daemon answers at {client.url}; {by_itself}."
    if not names:
        return f"The daemon at {client.url} does not serve this file; {by_itself}."
    troubles = [f"{name}: {reason}" for name in names if (reason := _load(client, name, digest))]
    if troubles:
        raise CommandError(f"The daemon at {client.url} has trouble with it: {'; '.join(troubles)}")
    return f"The daemon at {client.url} has taken it up for {', '.join(names)}."


def _served_as(document: dict[str, Any], digest: str) -> list[str]:
    """Names of the wanted models that a file of this digest answers for."""
    return [
        model["name"]
        for model in document["models"]
        if model["wanted"] and any(version.get("digest") == digest for version in model["versions"])
    ]


def _load(client: Client, name: str, digest: str) -> str:
    """Have the daemon look at the disk; why it does not run the model as that says, or ""."""
    try:
        model = client.post(model_path(name, verb="load"), b"", "application/json")
    except (Unreachable, Refused) as exc:
        return str(exc)
    reasons = [each["reason"] for each in model["versions"] if each.get("digest") == digest]
    return "; ".join(reason for reason in reasons if reason)


def _read_config(path: Path | None) -> Config:
    try:
        return read_config(path, os.environ)
    except ConfigError as exc:
        raise BadConfig(str(exc)) from exc


def _find_source(word: str, config: Config, client: Client) -> Source:
    """The model; where only the daemon knows it, the error says that it has to be told by path."""
    try:
        return find_source(word, config)
    except UnknownModel as exc:
        with suppress(Unreachable, Refused):
            if word in {model["name"] for model in client.get("/api/models")["models"]}:
                told = f"the daemon at {client.url} has it from elsewhere"
                raise UsageError(f"{exc}; {told}: give its path, or its --config") from exc
        raise UsageError(f"{exc}; give the path of a .tflite file or of a model's folder") from exc


def _check_clients(clients: int | None, queue: int) -> None:
    if clients is not None and clients > queue:
        raise UsageError(
            f"argument --clients: '{clients}': expected at most {queue}: no more requests may wait "
            "or run for this model (limits.queue, defaults.queue)"
        )


def _place_to_write(source: Source) -> Path:
    """Where the setting goes, looked up before anything is measured in vain."""
    place = source.place
    if isinstance(place, NoPlace):
        advice = f"measure without --apply, then {place.advice}"
        raise CommandError(f"--apply has no place to write to: {place.reason}; {advice}")
    if reason := why_not_writable(place.file):
        raise CommandError(f"--apply cannot write: {reason}; nothing was measured")
    return place.file


def _measure(arguments: argparse.Namespace, source: Source, config: Config) -> Report:
    machine = look_at_machine()
    if machine.is_busy:
        _show(describe_machine(machine))
    wish = Wish(
        goal=Goal(arguments.goal),
        seconds=arguments.seconds,
        clients=arguments.clients,
        instances=arguments.instances,
        threads=arguments.threads,
        max_sizes=arguments.batch,
    )
    limits = MediaLimits(max_pixels=config.media.max_pixels, max_audio_s=config.media.max_audio_s)
    # What the model's own code would log is in the table, each with its setting.
    logging.getLogger(ROOT_LOGGER).setLevel(logging.CRITICAL)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(measure_model(source, wish, limits, machine, _show))
    except (OSError, AcceleratorError) as exc:
        raise CommandError(f"cannot measure: {exc}") from exc


def _show(line: str) -> None:
    """Progress goes beside the answer, which may go into a file."""
    print(line, file=sys.stderr, flush=True)
