"""Devices as JSON documents, for every front end. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from accelerators.base import Device
    from daemon.models.status import ModelStatus


def describe_devices(
    devices: Iterable[Device],
    models: Iterable[ModelStatus],
    losses: Mapping[str, int],
    cpu_facts: Mapping[str, object],
) -> dict[str, object]:
    """`{"devices": [...]}`: what models run on, could run on, or why they cannot.

    Args:
        losses: how often a device could no longer be used, by id.
        cpu_facts: of this machine's processor.
    """
    users = _users(models)
    return {
        "devices": [
            {
                "id": device.id,
                "kind": device.kind,
                "name": device.name,
                "driver": device.driver,
                "up": device.up,
                "problem": device.problem,
                "next_step": device.next_step,
                "losses": losses.get(device.id, 0),
                "facts": dict(cpu_facts) if device.kind == "cpu" else _facts(device),
                "models": users.get(device.id, []),
            }
            for device in devices
        ]
    }


def _users(models: Iterable[ModelStatus]) -> dict[str, list[str]]:
    """The versions that run on each device."""
    users: dict[str, list[str]] = {}
    for model in models:
        for version in model.versions:
            if version.report is not None:
                users.setdefault(version.report.device, []).append(
                    f"{model.name}/{version.version}"
                )
    return users


def _facts(device: Device) -> dict[str, object]:
    facts: dict[str, object] = {}
    if device.library:
        facts["library"] = device.library
    if device.exclusive:
        facts["exclusive"] = True
    return facts
