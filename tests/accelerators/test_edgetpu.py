"""An Edge TPU is found by its traces, opened by its own index, and says what is wrong with it.

No Edge TPU was at hand: a tree of /sys and /dev and a stand-in of libedgetpu take their place.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from support import tflite_builder as models
from support.coral import Coral
from support.rights import as_nobody
from support.standin import build_standin
from support.workers import worker_processes

from accelerators import edgetpu
from accelerators.base import Coverage, Device
from accelerators.driverlook import ask_driver
from accelerators.errors import InvokeFailed, LoadStage, ModelRefused
from accelerators.interpreter import DeviceFailure
from accelerators.registry import KINDS, HardwareSettings

COMPILED = models.custom("edgetpu-custom-op")
X = np.arange(4, dtype=np.float32).reshape(1, 4)


@pytest.fixture
def coral(tmp_path: Path) -> Coral:
    return Coral(tmp_path)


def only(coral: Coral) -> Device:
    (device,) = edgetpu.find(coral.settings)
    return device


async def refusal(open_pool, device, model=COMPILED, **fields) -> ModelRefused:
    with pytest.raises(ModelRefused) as caught:
        await open_pool(model, device=device, **fields)
    assert worker_processes() == []
    return caught.value


async def test_compiled_model_runs_on_the_stick(coral, open_pool):
    coral.plug_stick()

    bench = await open_pool(COMPILED, device=edgetpu.look(only(coral)))

    assert bench.pool.report.device == "edgetpu:usb-1-1.4"
    assert bench.pool.report.coverage == Coverage(1, 1, 1, ("edgetpu-custom-op",))
    assert (await bench.call(x=X))["y"].tolist() == [[0, 2, 4, 6]]


async def test_compiled_model_runs_on_a_chip(coral, open_pool):
    coral.plug_chip(1)

    bench = await open_pool(COMPILED, device=only(coral))

    assert bench.pool.report.device == "edgetpu:apex_1"
    assert (await bench.call(x=X))["y"].tolist() == [[0, 2, 4, 6]]


async def test_of_several_the_right_one_is_opened(coral, open_pool):
    coral.plug_chip(0)
    coral.plug_stick("1-1")
    coral.plug_stick("2-3")
    coral.plug_stick("2-4")
    device = next(each for each in edgetpu.find(coral.settings) if each.id == "edgetpu:usb-2-3")
    bench = await open_pool(COMPILED, device=device)

    coral.pull_stick("1-1")
    coral.pull_stick("2-4")
    assert (await bench.call(x=X))["y"].tolist() == [[0, 2, 4, 6]]
    coral.pull_stick("2-3")

    with pytest.raises(InvokeFailed, match="device lost"):
        await bench.call(x=X)


async def test_real_compiled_model_is_taken(coral, open_pool, shared_models):
    coral.plug_stick()
    coral.behave(claim="custom", fail="invoke")
    path = shared_models / "models" / "mobilenet_v1_0.25_128_quant_edgetpu.tflite"

    refused = await refusal(open_pool, only(coral), path)

    # The stand-in can be handed the model; what the real thing computes only it can.
    assert refused.stage is LoadStage.WARM


async def test_model_that_is_not_compiled(coral, open_pool):
    coral.plug_stick()

    refused = await refusal(open_pool, only(coral), models.mlp())

    assert refused.reason == (
        "the model is not compiled for the Edge TPU: compile it with edgetpu_compiler"
    )


async def test_compiled_model_of_which_the_device_takes_nothing(coral, open_pool):
    coral.plug_stick()
    coral.behave(claim="none")

    refused = await refusal(open_pool, only(coral))

    assert refused.stage is LoadStage.OPEN


async def test_library_for_another_runtime_says_where_the_right_one_is(
    coral, open_pool, forkserver
):
    build_standin(coral.library, "-DEDGETPU", "-DOLD_ABI")
    coral.plug_stick()
    looked = await ask_driver(only(coral), forkserver)

    refused = await refusal(open_pool, looked)

    assert looked.up
    assert refused.stage is LoadStage.PROCESS
    assert refused.reason.startswith("the runtime was killed by SIGSEGV while it opened the device")
    assert "feranick/libedgetpu" in refused.reason


async def test_stick_that_does_not_open_says_what_mostly_helps(coral, open_pool):
    coral.plug_stick()
    coral.behave(fail="create-silent")

    refused = await refusal(open_pool, only(coral))

    assert refused.stage is LoadStage.OPEN
    assert refused.reason.startswith("libedgetpu cannot open it, and does not say why: ")
    assert "power supply" in refused.reason
    assert "other programs" in refused.reason


async def test_stick_that_is_gone_when_it_is_opened(coral, open_pool):
    coral.plug_stick()
    device = only(coral)
    coral.pull_stick()

    refused = await refusal(open_pool, device)

    assert refused.reason.startswith("libedgetpu does not see it (it sees none)")


async def test_new_stick_loads_its_firmware_and_is_opened_again(coral, open_pool):
    coral.plug_stick(new=True)
    device = only(coral)

    bench = await open_pool(COMPILED, device=device)

    assert device.name == "Coral USB Accelerator (waits for its firmware)"
    assert only(coral).name == "Coral USB Accelerator"
    assert (await bench.call(x=X))["y"].tolist() == [[0, 2, 4, 6]]


async def test_looking_at_a_new_stick_wakes_it(coral, forkserver):
    coral.plug_stick(new=True)

    looked = await ask_driver(only(coral), forkserver)

    assert looked.up
    assert only(coral).name == "Coral USB Accelerator"


async def test_new_stick_that_fails_all_the_same(coral, forkserver):
    coral.plug_stick(new=True)
    coral.behave(fail="create")

    looked = await ask_driver(only(coral), forkserver)

    assert looked.problem == "libedgetpu cannot open it: standin: the device refuses"
    assert "power supply" in looked.next_step


async def test_look_names_the_driver(coral, forkserver):
    coral.plug_stick()

    looked = await ask_driver(only(coral), forkserver)

    assert looked.up
    assert looked.driver == "libedgetpu BuildLabel(STANDIN=1), RuntimeVersion(14)"


async def test_library_that_is_missing(coral, forkserver):
    coral.plug_stick()
    coral.library.unlink()

    looked = await ask_driver(only(coral), forkserver)

    assert looked.problem == f"its driver {coral.library} is not here"
    assert "libedgetpu1-std" in looked.next_step
    assert "feranick/libedgetpu" in looked.next_step
    assert "coral-edgetpu-stable" in looked.next_step


async def test_library_that_is_another(coral, standin, forkserver):
    coral.plug_stick()
    settings = HardwareSettings(edgetpu_library=str(standin.library), root=coral.root)
    (device,) = edgetpu.find(settings)

    looked = await ask_driver(device, forkserver)

    assert looked.problem.endswith("is not libedgetpu: it lacks edgetpu_list_devices")


async def test_library_that_does_not_see_the_device(coral, forkserver):
    coral.plug_stick()
    coral.be_blind()

    looked = await ask_driver(only(coral), forkserver)

    assert looked.problem == "libedgetpu does not see it (it sees none)"


def test_nothing_connected(coral):
    device = only(coral)

    assert (device.id, device.problem) == ("edgetpu", "no Edge TPU is connected")
    assert "18d1:9302" in device.next_step


def test_machine_without_usb_and_pci(tmp_path):
    (device,) = edgetpu.find(HardwareSettings(root=tmp_path))

    assert device.problem == "no Edge TPU is connected"


def test_other_devices_are_none_of_ours(coral):
    coral.plug_stick("3-1")
    (coral.usb / "3-1" / "idProduct").write_text("4ee7\n")  # a telephone of the same maker

    assert only(coral).id == "edgetpu"


def test_stick_on_a_slow_port_is_told(coral):
    coral.plug_stick(speed=480)

    assert only(coral).name == "Coral USB Accelerator (slow: on USB 2)"


def test_stick_has_one_name_on_both_buses_of_its_socket(coral):
    port = coral.root / "sys/devices/usb1/1-0:1.0/usb1-port2"
    peer = coral.root / "sys/devices/usb2/2-0:1.0/usb2-port2"
    for one, other in ((port, peer), (peer, port)):
        one.mkdir(parents=True)
        (one / "peer").symlink_to(other)
    coral.plug_stick("1-2", new=True)
    (coral.usb / "1-2" / "port").symlink_to(port)
    before = only(coral)

    coral.pull_stick("1-2")
    coral.plug_stick("2-2")
    (coral.usb / "2-2" / "port").symlink_to(peer)

    assert before.id == only(coral).id == "edgetpu:usb-1-2"
    assert edgetpu.look(only(coral)).up


def test_stick_behind_a_hub_has_one_name_too(coral):
    peer = coral.root / "sys/devices/2-1/2-1:1.0/2-1-port4"
    port = coral.root / "sys/devices/4-1/4-1:1.0/4-1-port4"
    peer.mkdir(parents=True)
    port.mkdir(parents=True)
    (port / "peer").symlink_to(peer)
    coral.plug_stick("4-1.4")
    (coral.usb / "4-1.4" / "port").symlink_to(port)

    assert only(coral).id == "edgetpu:usb-2-1.4"


def test_hidden_node_is_told(coral):
    coral.plug_stick().unlink()

    assert only(coral).problem == "its node /dev/bus/usb/001/002 is hidden from inferd"
    assert "edgetpu.conf" in only(coral).next_step


def test_forbidden_node_is_told_with_its_group():
    with TemporaryDirectory() as folder:  # pytest's own is closed to others
        Path(folder).chmod(0o755)
        coral = Coral(Path(folder))
        coral.plug_stick().chmod(0)

        with as_nobody():
            device = only(coral)

    assert device.problem.startswith("no permission to use /dev/bus/usb/001/002, which belongs to")
    assert "60-inferd.rules" in device.next_step


def test_chip_without_the_kernels_driver(coral):
    folder = coral.root / "sys/bus/pci/devices/0000:03:00.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text("0x1ac1\n")
    (folder / "device").write_text("0x089a\n")

    assert only(coral).problem == "the kernel's driver for it is not loaded (gasket, apex)"
    assert "gasket-dkms" in only(coral).next_step


def test_devices_are_opened_by_one_process_at_a_time(coral):
    coral.plug_stick()
    coral.plug_chip()

    assert [device.exclusive for device in edgetpu.find(coral.settings)] == [True, True]


def test_udev_rule_and_discovery_know_the_same_numbers(repository):
    rule = (repository / "packaging/debian/inferd.udev").read_text()

    for vendor, product in (edgetpu._NEW_STICK, edgetpu._READY_STICK):
        assert f'ATTRS{{idVendor}}=="{vendor}", ATTRS{{idProduct}}=="{product}"' in rule


def test_kind_is_registered():
    assert KINDS["edgetpu"].find is edgetpu.find


def test_failure_at_the_open_is_the_devices(coral, tmp_path):
    coral.plug_stick()
    path = tmp_path / "m.tflite"
    path.write_bytes(COMPILED)
    coral.library.write_bytes(b"")

    with pytest.raises(DeviceFailure, match="file too short"):
        edgetpu.open_runner(str(path), 1, only(coral))
