"""`status`, `models`, `devices`: what a running daemon says of itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from daemon.cli.client import Client, parse_address
from daemon.cli.outcome import ExitCode
from daemon.cli.text import describe_duration, mebibytes, print_json, printable, table
from daemon.cli.updatetext import describe_report

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

_MODEL_COLUMNS = ("MODEL", "VERSION", "STATE", "DEVICE", "TAKES", "GIVES", "MEMORY", "WHY")
_DEVICE_COLUMNS = ("DEVICE", "UP", "NAME", "DRIVER", "FACTS", "MODELS")


def status(arguments: argparse.Namespace) -> ExitCode:
    """Print how the daemon is."""
    return _show(arguments, "/api/status", describe_status)


def models(arguments: argparse.Namespace) -> ExitCode:
    """Print every version of every model."""
    return _show(arguments, "/api/models", describe_models)


def devices(arguments: argparse.Namespace) -> ExitCode:
    """Print the devices and what runs on them."""
    return _show(arguments, "/api/devices", describe_devices)


def _show(
    arguments: argparse.Namespace, path: str, describe: Callable[[dict[str, Any]], str]
) -> ExitCode:
    document = Client(parse_address(arguments.url)).get(path)
    if arguments.json:
        print_json(document)
    else:
        print(describe(document))
    return ExitCode.DONE


def describe_status(document: Mapping[str, Any], now: float | None = None) -> str:
    """The lines of `/api/status` that an operator asks for first.

    Args:
        now: wall clock, seconds.
    """
    rows = [
        ("device", str(document["device"])),
        ("inferd", f"{document['version']}, up {describe_duration(document['uptime_s'])}"),
        ("ready", "yes" if document["ready"] else "no"),
        *((f"  {model}", str(reason)) for model, reason in document["reasons"].items()),
        ("models", _describe_counts(document["models"], document["versions"])),
        ("mqtt", _describe_mqtt(document["mqtt"])),
        *describe_report(document["updates"], time.time() if now is None else now),
    ]
    return table(rows)


def describe_models(document: Mapping[str, Any]) -> str:
    """A line for each version in `/api/models`."""
    rows = [
        _describe_version(model, version)
        for model in document["models"]
        for version in model["versions"]
    ]
    return table(rows, _MODEL_COLUMNS) if rows else "no models"


def describe_devices(document: Mapping[str, Any]) -> str:
    """A line for each device in `/api/devices`; below one that cannot be used, why and what to do.

    A daemon of another version may say less of its devices.
    """
    devices = document["devices"]
    rows = [
        (
            str(device["id"]),
            "yes" if device["up"] else "no",
            str(device.get("name", "")),
            str(device.get("driver", "")),
            ", ".join(f"{name} {value}" for name, value in device["facts"].items()),
            ", ".join(device["models"]),
        )
        for device in devices
    ]
    header, *lines = table(rows, _DEVICE_COLUMNS).splitlines()
    told = [line + _describe_problem(device) for line, device in zip(lines, devices, strict=True)]
    return "\n".join((header, *told))


def _describe_problem(device: Mapping[str, Any]) -> str:
    lines = [device.get("problem", ""), f"-> {device.get('next_step', '')}"]
    return "".join(f"\n      {printable(line)}" for line in lines if line not in ("", "-> "))


def _describe_counts(model_count: int, versions: Mapping[str, int]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in sorted(versions.items()))
    return f"{model_count} ({states})" if states else str(model_count)


def _describe_mqtt(mqtt: Mapping[str, Any]) -> str:
    if not mqtt.get("enabled", True):
        return "off"
    return "connected" if mqtt.get("connected") else "not connected"


def _describe_version(model: Mapping[str, Any], version: Mapping[str, Any]) -> Sequence[str]:
    memory_bytes = version.get("memory_bytes")
    why = version["reason"] or version.get("degraded_reason", "")
    return (
        model["name"],
        version["version"],
        version["state"],
        version["device"] or "",
        version["input_kind"] or "",
        version["output_kind"] or "",
        mebibytes(memory_bytes) if memory_bytes else "",
        printable(why),
    )
