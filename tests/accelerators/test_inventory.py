"""The inventory says what is here and what can be used, tells of every change, and leaves nothing.

Devices are external delegates whose node is a file that comes and goes; their libraries are built
by the C compiler, some of them bad.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from support.coral import Coral
from support.standin import NO_COMPILER

from accelerators import driverlook
from accelerators import inventory as inventories
from accelerators.base import CPU, Device
from accelerators.driverlook import DriverStuck, ask_driver
from accelerators.forkserver import ForkServer
from accelerators.inventory import DeviceInventory
from accelerators.registry import KINDS, External, HardwareSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WAIT_S = 60.0
SOON_S = 0.002
"""Between two looks: as many as possible."""

LIBRARY = """
#include <stdlib.h>
#include <stdio.h>
#include <unistd.h>
void *tflite_plugin_create_delegate(void) { return 0; }
void tflite_plugin_destroy_delegate(void) {}
__attribute__((constructor)) static void opened(void) { %s }
"""


class Heard:
    """What a listener was told, and a way to wait for more."""

    def __init__(self) -> None:
        self.ids: list[frozenset[str]] = []
        self._news = asyncio.Event()

    def __call__(self, ids: frozenset[str]) -> None:
        self.ids.append(ids)
        self._news.set()

    async def until(self, condition) -> None:
        """Wait for a change after which `condition` holds."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._news.clear()
                await self._news.wait()


@pytest.fixture
def build(tmp_path):
    """Builds a delegate's library that does something when it is opened."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip(NO_COMPILER)

    def compile_(name: str = "good", when_opened: str = "") -> str:
        path = tmp_path / f"{name}.so"
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", path]
        subprocess.run(command, input=(LIBRARY % when_opened).encode(), check=True)
        return str(path)

    return compile_


@asynccontextmanager
async def started(
    *externals: External, forkserver: ForkServer | None = None, **settings
) -> AsyncIterator[DeviceInventory]:
    server = forkserver or ForkServer()
    settings_ = HardwareSettings(externals=externals, **settings)
    inventory = DeviceInventory(settings_, server, interval_s=SOON_S)
    await inventory.start()
    try:
        yield inventory
    finally:
        await inventory.stop()
        if forkserver is None:
            await server.stop()


def one(inventory: DeviceInventory, id_: str) -> Device:
    (device,) = [each for each in inventory.devices() if each.id == id_]
    return device


async def test_before_it_is_started_there_is_the_cpu():
    inventory = DeviceInventory(HardwareSettings(), ForkServer())

    assert inventory.devices() == inventory.of_kind("cpu") == inventory.known() == (CPU,)


async def test_every_problem_of_this_machine_names_the_next_step():
    async with started() as inventory:
        devices = await inventory.refresh()

    assert {device.kind for device in devices} == set(KINDS)
    assert [device for device in devices if device.problem and not device.next_step] == []


@pytest.mark.parametrize("wish", ["tpu", "external:fpga", "edgetpu:usb-9"])
async def test_a_wish_that_means_nothing_here_is_a_device_with_a_problem_and_a_next_step(wish):
    async with started() as inventory:
        (device,) = inventory.of_kind(wish)

    assert device.id == wish
    assert not device.up
    assert device.next_step


async def test_a_device_that_goes_and_comes_is_told_each_time(build, tmp_path):
    node = tmp_path / "node"
    async with started(External("dsp", build(), node=str(node))) as inventory:
        heard = Heard()
        inventory.subscribe(heard, ("external:dsp",))
        absent = one(inventory, "external:dsp")
        node.touch()
        await heard.until(lambda: one(inventory, "external:dsp").up)
        node.unlink()
        await heard.until(lambda: not one(inventory, "external:dsp").up)
        gone = one(inventory, "external:dsp")
        losses = inventory.losses()["external:dsp"]
        node.touch()
        await heard.until(lambda: one(inventory, "external:dsp").up)

    assert str(node) in absent.problem
    assert gone.problem == absent.problem
    assert losses == 1
    assert set(heard.ids) == {frozenset({"external:dsp"})}


async def test_devices_that_can_be_used_come_first(build, tmp_path):
    absent = External("a", build(), node=str(tmp_path / "absent"))
    async with started(absent, External("b", build())) as inventory:
        await inventory.refresh()
        ids = [device.id for device in inventory.of_kind("external")]

    assert ids == ["external:b", "external:a"]


async def test_nothing_is_polled_while_nobody_wishes(build, tmp_path, monkeypatch):
    monkeypatch.setattr(inventories, "_FRESH_S", 0.0)
    node = tmp_path / "node"
    node.touch()
    async with started(External("dsp", build(), node=str(node))) as inventory:
        heard = Heard()
        inventory.subscribe(heard, ())
        unsubscribe = inventory.subscribe(Heard(), ("external",))
        polls_for_it = inventory.is_polling
        cpu_only = inventory.subscribe(Heard(), ("cpu",))
        unsubscribe()
        at_rest = not inventory.is_polling
        await inventory.refresh()
        heard.ids.clear()
        node.unlink()
        for _ in range(50):  # many times the interval
            await asyncio.sleep(SOON_S)
        unheard = list(heard.ids)
        after = await inventory.refresh(())
        cpu_only()

    assert polls_for_it
    assert at_rest
    assert unheard == []
    assert not after[-1].up
    assert heard.ids == [frozenset({"external:dsp"})]


async def test_a_device_nobody_wished_for_is_listed_and_not_expected():
    async with started() as inventory:
        before = inventory.known()
        inventory.subscribe(Heard(), ("external",))
        wished = inventory.known()

    assert "external" not in {device.kind for device in before}
    assert "external" in {device.kind for device in wished}


async def test_a_driver_is_asked_once_until_it_is_another(build, tmp_path):
    opened = tmp_path / "opened"
    library = build("counting", f'FILE *f = fopen("{opened}", "a"); fputc(1, f); fclose(f);')
    async with started(External("dsp", library)) as inventory:
        heard = Heard()
        inventory.subscribe(heard, ("external",))
        for _ in range(5):
            await inventory.refresh()
        once = opened.stat().st_size
        os.utime(library, (0, 0))
        await heard.until(lambda: "1970" in one(inventory, "external:dsp").driver)
        await inventory.refresh()

    assert once == 1
    assert opened.stat().st_size == 2


@pytest.mark.parametrize(
    ("name", "when_opened", "words"),
    [
        ("crashing", "abort();", "crashed while it was looked at: killed by SIGABRT"),
        ("ending", 'fputs("no licence", stderr); _exit(3);', "exit code 3 (no licence)"),
    ],
)
async def test_a_driver_that_dies_is_that_devices_problem_alone(build, name, when_opened, words):
    externals = External("bad", build(name, when_opened)), External("good", build())
    async with started(*externals) as inventory:
        await inventory.refresh()
        bad, good = one(inventory, "external:bad"), one(inventory, "external:good")

    assert words in bad.problem
    assert f"{name}.so" in bad.next_step
    assert good.up


async def test_a_driver_that_hangs_is_ended_and_said_to(build, forkserver, wait_until):
    library = build("hanging", "for (;;) pause();")
    device = Device("external:dsp", "external", library=library)

    asked = await ask_driver(device, forkserver, timeout_s=1.0)

    assert "hangs: no answer within 1 s" in asked.problem
    assert "hanging.so" in asked.next_step
    await wait_until(lambda: psutil.Process(forkserver.pid).children() == [])


async def test_a_process_that_cannot_be_ended_is_told_and_not_followed_by_more(
    build, forkserver, wait_until, monkeypatch
):
    monkeypatch.setattr(driverlook, "_KILL_GRACE_S", 0.1)
    library = build("stuck", "for (;;) pause();")
    device = Device("external:dsp", "external", library=library)
    server = psutil.Process(forkserver.pid)
    asking = asyncio.create_task(ask_driver(device, forkserver, timeout_s=3.0))
    await wait_until(lambda: any(each.name() == "inferd-look" for each in server.children()))
    server.suspend()  # nobody tells of the child's end, as if the kernel held it

    with pytest.raises(DriverStuck, match="hangs in the kernel"):
        await asking

    server.resume()
    await wait_until(lambda: server.children() == [])


async def test_a_driver_that_hangs_holds_up_nobody_else(build, wait_until):
    externals = External("slow", build("slow", "for (;;) pause();")), External("good", build())
    async with started(*externals) as inventory:
        inventory.subscribe(Heard(), ("external",))
        await wait_until(lambda: inventory.losses().keys() == {"cpu", "external:good"})
        looked_at = one(inventory, "external:slow")

    assert looked_at.problem == "it is being looked at"


async def test_without_a_process_to_look_from_that_is_said(build):
    server = ForkServer()
    await server.stop()
    async with started(External("dsp", build()), forkserver=server) as inventory:
        await inventory.refresh()
        device = one(inventory, "external:dsp")

    assert "no process could be had to look at it" in device.problem
    assert device.next_step


async def test_a_driver_with_a_problem_is_asked_again(build, tmp_path, monkeypatch):
    monkeypatch.setattr(inventories, "_AGAIN_S", 0.01)
    bad = tmp_path / "bad"
    bad.touch()
    library = build("moody", f'if (access("{bad}", F_OK) == 0) abort();')
    async with started(External("dsp", library)) as inventory:
        heard = Heard()
        inventory.subscribe(heard, ("external",))
        await heard.until(lambda: not one(inventory, "external:dsp").up)
        bad.unlink()
        await heard.until(lambda: one(inventory, "external:dsp").up)

    assert one(inventory, "external:dsp").problem == ""


async def test_an_answer_cannot_change_which_device_it_is(build, forkserver):
    device = Device("external:dsp", "external", library=build(), exclusive=True)

    asked = await ask_driver(device, forkserver)

    assert replace(asked, name="", driver="", options=()) == device


async def test_a_listener_that_fails_keeps_nothing_from_the_others(build, tmp_path, caplog):
    node = tmp_path / "node"

    def fail(_ids):
        raise LookupError("a defect")

    async with started(External("dsp", build(), node=str(node))) as inventory:
        inventory.subscribe(fail)
        heard = Heard()
        inventory.subscribe(heard)
        node.touch()
        await heard.until(lambda: one(inventory, "external:dsp").up)

    assert "a listener for devices failed" in caplog.text


async def test_a_kind_whose_search_fails_is_a_problem_of_that_kind(monkeypatch, build):
    def fail(_settings):
        raise PermissionError("nobody may look")

    monkeypatch.setitem(KINDS, "gpu", replace(KINDS["cpu"], find=fail))
    async with started(External("dsp", build())) as inventory:
        await inventory.refresh()
        gpu, dsp = one(inventory, "gpu"), one(inventory, "external:dsp")

    assert "nobody may look" in gpu.problem
    assert gpu.next_step
    assert dsp.up


@pytest.fixture
def coral(tmp_path):
    return Coral(tmp_path)


@asynccontextmanager
async def watching(coral: Coral) -> AsyncIterator[tuple[DeviceInventory, Heard]]:
    """An inventory that somebody wishes Edge TPUs from."""
    server = ForkServer()
    inventory = DeviceInventory(coral.settings, server, interval_s=SOON_S)
    await inventory.start()
    heard = Heard()
    inventory.subscribe(heard, ("edgetpu",))
    try:
        yield inventory, heard
    finally:
        await inventory.stop()
        await server.stop()


def sticks(inventory: DeviceInventory) -> dict[str, bool]:
    """Whether each can be used."""
    return {each.id: each.up for each in inventory.devices() if each.kind == "edgetpu"}


async def test_a_stick_is_listed_with_what_its_driver_knows(coral):
    coral.plug_stick("1-1.4")
    async with watching(coral) as (inventory, heard):
        await heard.until(lambda: "libedgetpu " in inventory.of_kind("edgetpu")[0].driver)
        (stick,) = inventory.of_kind("edgetpu")

    assert (stick.id, stick.up) == ("edgetpu:usb-1-1.4", True)
    assert stick.library == str(coral.library)


async def test_a_stick_that_is_pulled_out_stays_listed_until_it_is_back(coral):
    async with watching(coral) as (inventory, heard):
        none = inventory.of_kind("edgetpu")
        coral.plug_stick("1-1.4")
        await heard.until(lambda: sticks(inventory) == {"edgetpu:usb-1-1.4": True})
        coral.pull_stick("1-1.4")
        await heard.until(lambda: sticks(inventory) == {"edgetpu:usb-1-1.4": False})
        (gone,) = inventory.of_kind("edgetpu")
        expected = gone in inventory.known()
        coral.plug_stick("1-1.4")
        await heard.until(lambda: sticks(inventory) == {"edgetpu:usb-1-1.4": True})
        losses = inventory.losses()["edgetpu:usb-1-1.4"]

    assert (none[0].id, none[0].problem) == ("edgetpu", "no Edge TPU is connected")
    assert gone.problem == "it was here and is gone"
    assert gone.next_step == none[0].next_step
    assert expected
    assert losses == 1


async def test_a_stick_that_was_moved_is_not_listed_twice(coral):
    coral.plug_stick("1-1.4")
    async with watching(coral) as (inventory, heard):
        await heard.until(lambda: inventory.losses().keys() >= {"edgetpu:usb-1-1.4"})
        coral.pull_stick("1-1.4")
        await heard.until(lambda: sticks(inventory) == {"edgetpu:usb-1-1.4": False})
        coral.plug_stick("1-1.3")
        await heard.until(lambda: sticks(inventory) == {"edgetpu:usb-1-1.3": True})

    assert sticks(inventory) == {"edgetpu:usb-1-1.3": True}


async def test_no_driver_is_touched_before_somebody_wishes_for_its_kind(coral, build, tmp_path):
    opened = tmp_path / "opened"
    coral.library = Path(build("libedgetpu", f'fclose(fopen("{opened}", "w"));'))
    coral.plug_stick("1-1.4")
    async with started(root=coral.root, edgetpu_library=str(coral.library)) as inventory:
        (stick,) = inventory.of_kind("edgetpu")
        await inventory.refresh(())
        touched = opened.exists()
        await inventory.refresh()

    assert "not asked yet" in stick.problem
    assert stick.next_step
    assert not touched
    assert opened.exists()


async def test_a_named_device_is_looked_at_from_the_start(build, wait_until):
    async with started(External("dsp", build())) as inventory:
        await wait_until(lambda: one(inventory, "external:dsp").up)


async def test_an_edge_tpu_library_that_crashes_is_told_with_what_to_update(coral, build):
    coral.plug_stick("1-1.4")
    coral.library = Path(build("libedgetpu", "abort();"))
    async with watching(coral) as (inventory, heard):
        await heard.until(lambda: "crashed" in inventory.of_kind("edgetpu")[0].problem)
        (stick,) = inventory.of_kind("edgetpu")

    assert "crashed while it was looked at" in stick.problem
    assert str(coral.library) in stick.next_step


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_thousand_comings_and_goings_leave_nothing(build, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL, logger="inferd")  # what is logged is kept by the test
    node = tmp_path / "node"
    process = psutil.Process()
    async with started(External("dsp", build(), node=str(node))) as inventory:
        heard = Heard()
        inventory.subscribe(heard, ("external",))

        async def come_and_go(times: int) -> None:
            for _ in range(times):
                node.touch()
                await heard.until(lambda: one(inventory, "external:dsp").up)
                node.unlink()
                await heard.until(lambda: not one(inventory, "external:dsp").up)
            heard.ids.clear()

        await come_and_go(100)
        before, descriptors = process.memory_info().rss, process.num_fds()
        await come_and_go(1000)
        grown = process.memory_info().rss - before

        assert inventory.losses()["external:dsp"] == 1100
        assert len(asyncio.all_tasks()) < 10
        assert process.num_fds() <= descriptors + 5  # of children that are just ending
        assert grown < 2 << 20
