"""What the operator says about devices, in the words of `accelerators`. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerators.registry import External, HardwareSettings

if TYPE_CHECKING:
    from daemon.config import Config


def hardware_settings(config: Config) -> HardwareSettings:
    """The `[accelerators]` tables; options become text, as delegates take them."""
    table = config.accelerators
    return HardwareSettings(
        externals=tuple(
            External(
                name=each.name,
                library=each.path,
                options=tuple((name, _as_text(value)) for name, value in each.options.items()),
                node=each.node,
                exclusive=each.exclusive,
            )
            for each in table.external
        ),
        edgetpu_library=table.edgetpu_library,
        openvino_device=table.openvino_device,
    )


def _as_text(value: str | float | bool) -> str:  # noqa: FBT001 (an option's value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
