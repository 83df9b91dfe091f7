"""What the operator says about devices reaches them in the form their libraries take."""

from __future__ import annotations

from accelerators.registry import External, HardwareSettings
from daemon.config import Config, parse_config
from daemon.hardware import hardware_settings

TEXT = """
[accelerators]
edgetpu_library = "/opt/libedgetpu.so.1"
openvino_device = "cpu"
[[accelerators.external]]
name = "dsp"
path = "/opt/libdsp.so"
options = { level = "high", cores = 2, share = 0.5, fast = true, quiet = false }
node = "/dev/dsp0"
exclusive = true
"""


def test_without_tables_the_defaults_hold():
    assert hardware_settings(Config()) == HardwareSettings()


def test_tables_become_settings_and_options_text():
    settings = hardware_settings(parse_config([("inferd.toml", TEXT)], {}))

    assert settings == HardwareSettings(
        externals=(
            External(
                name="dsp",
                library="/opt/libdsp.so",
                options=(
                    *(("level", "high"), ("cores", "2"), ("share", "0.5")),
                    *(("fast", "true"), ("quiet", "false")),
                ),
                node="/dev/dsp0",
                exclusive=True,
            ),
        ),
        edgetpu_library="/opt/libedgetpu.so.1",
        openvino_device="cpu",
    )
