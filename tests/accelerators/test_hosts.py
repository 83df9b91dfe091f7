"""A device that one process may open is shared by models in one process; what happens to one there.

The device is a stand-in in C with a lock file, so that a second process really cannot have it.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import tflite_builder as models

from accelerators.base import LoadSpec
from accelerators.calls import DeathReason
from accelerators.errors import (
    CallTimedOut,
    LoadStage,
    ModelRefused,
    WorkerLost,
    WorkerUnavailable,
)
from accelerators.forkserver import ForkFailed, ForkServer
from accelerators.hosts import DeviceHosts
from accelerators.supervisor import WorkerEvent, WorkerPool

WAIT_S = 30.0
X = np.ones((1, 4), np.float32)
LARGE_ELEMENTS = 3_000_000  # float32: such a model takes some 24 MB


class Member:
    """A pool of one model on the device, and what it told."""

    def __init__(self, spec: LoadSpec, hosts: DeviceHosts) -> None:
        self.path = spec.path
        self.events: list[WorkerEvent] = []
        self.pool = WorkerPool(
            spec,
            hosts.of(spec.device),
            on_capacity=lambda: None,
            on_event=self.events.append,
        )

    @property
    def pid(self) -> int:
        return self.pool.pids[0]

    def begin(self, x=X) -> asyncio.Future:
        """Call; the future is of the result."""
        return self.pool.call(self.pool.report.signatures[0].name, {"x": x})

    async def ask(self, x=X) -> list[float]:
        result = await asyncio.wait_for(self.begin(x), WAIT_S)
        return result.outputs["y"].ravel().tolist()


@pytest.fixture
async def hosts(forkserver):
    found = DeviceHosts(forkserver)
    yield found
    await found.stop()


@pytest.fixture
def device(standin, tmp_path):
    """The exclusive device, with more options by name."""
    return lambda **options: standin.device(exclusive=True, lock=tmp_path / "lock", **options)


@pytest.fixture
async def prepare(hosts, device, tmp_path):
    """Makes a member that is not started; stopped at the end."""
    members: list[Member] = []
    numbers = count()

    def make(model: bytes | None = None, options: dict | None = None, **fields) -> Member:
        path = tmp_path / f"model-{next(numbers)}.tflite"
        path.write_bytes(model or models.scale())
        fields.setdefault("memory_mib", 64)
        members.append(Member(LoadSpec(path, device=device(**(options or {})), **fields), hosts))
        return members[-1]

    yield make
    for member in members:
        await member.pool.stop()


@pytest.fixture
def join(prepare):
    """Starts a model on the device."""

    async def start(model: bytes | None = None, options: dict | None = None, **fields) -> Member:
        member = prepare(model, options, **fields)
        await member.pool.start()
        return member

    return start


async def test_models_of_an_exclusive_device_share_one_process(join, hosts):
    one, other = await join(models.scale(2.0)), await join(models.scale(3.0))

    assert one.pool.report.coverage.claimed == 1
    assert (await one.ask(), await other.ask()) == ([2.0] * 4, [3.0] * 4)
    assert one.pid == other.pid == hosts.pids["external:standin"]


async def test_without_a_process_of_its_own_the_second_model_would_not_get_the_device(
    join, forkserver, device, tmp_path
):
    one = await join()
    stranger = Member(LoadSpec(tmp_path / "model-0.tflite", device=device()), _Always(forkserver))

    with pytest.raises(ModelRefused, match="another process has the device"):
        await stranger.pool.start()

    assert await one.ask() == [2.0] * 4


class _Always:
    """As `DeviceHosts` is, for a device that is not exclusive."""

    def __init__(self, forkserver: ForkServer) -> None:
        self.of = lambda _: forkserver


async def test_device_that_may_be_opened_often_has_no_such_process(hosts, standin, forkserver):
    assert hosts.of(standin.device()) is forkserver
    assert hosts.pids == {}


async def test_devices_have_a_process_each(hosts, standin, save):
    path = save(models.scale())
    one, other = (
        Member(LoadSpec(path, device=standin.device(name, exclusive=True)), hosts)
        for name in ("one", "other")
    )
    await one.pool.start()
    await other.pool.start()

    assert one.pid != other.pid
    await one.pool.stop()
    await other.pool.stop()


async def test_last_model_to_leave_frees_the_device(join, hosts, wait_until):
    one, other = await join(), await join()
    pid = one.pid

    await one.pool.stop()
    assert await other.ask() == [2.0] * 4
    await other.pool.stop()

    await wait_until(lambda: not psutil.pid_exists(pid))
    assert hosts.pids == {}


async def test_device_is_had_again_right_after_it_was_given_up(join):
    for factor in (2.0, 3.0, 4.0):
        member = await join(models.scale(factor))
        assert await member.ask() == [factor] * 4
        await member.pool.stop()


async def test_next_version_takes_over_while_the_last_one_still_serves(join):
    old = await join(models.scale(2.0))
    new = await join(models.scale(3.0))

    assert await old.ask() == [2.0] * 4
    await old.pool.stop()

    assert await new.ask() == [3.0] * 4
    assert new.events == []


async def test_worn_worker_is_replaced_without_the_device_being_given_up(join, wait_until):
    member = await join(recycle_after_calls=3)
    pid = member.pid

    for _ in range(3):
        await member.ask()
    await wait_until(lambda: bool(member.events))

    assert member.events[0].reason is DeathReason.RECYCLE
    assert (await member.ask(), member.pid) == ([2.0] * 4, pid)


async def test_instances_of_a_model_share_the_device_too(join):
    member = await join(instances=3)

    answers = await asyncio.gather(*[member.ask() for _ in range(6)])

    assert answers == [[2.0] * 4] * 6
    assert len(set(member.pool.pids)) == 1


async def test_crash_takes_all_along_and_names_the_one_to_blame(join, tmp_path, wait_until):
    when = tmp_path / "when"
    bad = await join(options={"fail": "crash-invoke", "when": when})
    good = await join(models.scale(3.0))

    when.touch()
    with pytest.raises(WorkerLost, match=r"^killed by SIGSEGV$"):
        await bad.ask()
    when.unlink()
    await wait_until(lambda: bad.pool.alive == good.pool.alive == 1 and bad.events and good.events)

    assert bad.events[0].detail == "killed by SIGSEGV"
    assert good.events[0].detail == "ended with the process that it shared: killed by SIGSEGV"
    assert (await bad.ask(), await good.ask()) == ([2.0] * 4, [3.0] * 4)
    assert bad.pid == good.pid


async def test_model_that_is_refused_does_not_disturb_the_others(join):
    good = await join()
    pid = good.pid

    with pytest.raises(ModelRefused) as refusal:
        await join(models.scale()[:200])

    assert refusal.value.stage is LoadStage.PARSE
    assert await good.ask() == [2.0] * 4
    assert (good.pid, good.events) == (pid, [])


async def test_driver_that_takes_nothing_of_a_model_does_not_disturb_the_others(join):
    good = await join()

    with pytest.raises(ModelRefused, match="took none of the model's 1 operators"):
        await join(options={"claim": "none"})

    assert await good.ask() == [2.0] * 4
    assert good.events == []


async def test_model_that_crashes_while_it_loads_is_refused_and_the_others_come_back(
    join, wait_until
):
    good = await join()

    with pytest.raises(ModelRefused, match="killed by SIGSEGV while it"):
        await join(options={"fail": "crash-prepare"})
    await wait_until(lambda: bool(good.events) and good.pool.alive == 1)

    assert await good.ask() == [2.0] * 4


async def test_model_that_loads_while_another_crashes_is_not_refused(
    join, prepare, hosts, tmp_path, wait_until
):
    hangs, crashes = tmp_path / "hangs", tmp_path / "crashes"
    bad = await join(options={"fail": "crash-invoke", "when": crashes})
    hangs.touch()
    innocent = prepare(options={"fail": "hang-prepare", "when": hangs})
    starting = asyncio.create_task(innocent.pool.start())
    await wait_until(lambda: has_open(bad.pid, innocent.path))

    crashes.touch()
    with pytest.raises(WorkerLost):
        await bad.ask()

    with pytest.raises(WorkerUnavailable, match="the process that it shared"):
        await starting
    hangs.unlink()
    crashes.unlink()
    await wait_until(lambda: bool(bad.events) and bad.pool.alive == 1)
    await innocent.pool.start()
    assert await innocent.ask() == [2.0] * 4


async def test_model_that_hangs_while_it_loads_is_refused_and_the_others_come_back(
    join, tmp_path, monkeypatch, wait_until
):
    monkeypatch.setattr("accelerators.process._SHARED_GRACE_S", 0.1)
    good = await join()

    with pytest.raises(ModelRefused, match=r"did not come back within 0.5 s"):
        await join(options={"fail": "hang-create"}, load_timeout_s=0.5)
    await wait_until(lambda: bool(good.events) and good.pool.alive == 1)

    assert await good.ask() == [2.0] * 4


async def test_hang_takes_all_along_and_only_its_own_call_is_given_up(join, tmp_path, wait_until):
    when = tmp_path / "when"
    options = {"fail": "hang-invoke", "when": when}
    hung = await join(options=options, call_timeout_s=0.3)
    good = await join(models.scale(3.0))

    when.touch()
    with pytest.raises(CallTimedOut):
        await hung.ask()
    when.unlink()
    await wait_until(lambda: hung.pool.alive == good.pool.alive == 1 and bool(good.events))

    assert hung.events[0].reason is DeathReason.TIMEOUT
    assert good.events[0].detail == "ended with the process that it shared: killed by SIGKILL"
    assert (await hung.ask(), await good.ask()) == ([2.0] * 4, [3.0] * 4)


async def test_call_that_its_process_does_not_come_to_is_lost_and_may_be_tried_again(
    join, wait_until
):
    member = await join(call_timeout_s=0.3)
    os.kill(member.pid, signal.SIGSTOP)  # as a driver that holds everybody up

    with pytest.raises(WorkerLost) as lost:
        await member.ask()

    assert not isinstance(lost.value, CallTimedOut)
    assert not lost.value.started
    await wait_until(lambda: bool(member.events) and member.pool.alive == 1)
    assert await member.ask() == [2.0] * 4


async def test_memory_limits_add_up(join):
    one = await join(memory_mib=64)
    alone, _ = psutil.Process(one.pid).rlimit(resource.RLIMIT_DATA)
    await join(memory_mib=200)
    together, _ = psutil.Process(one.pid).rlimit(resource.RLIMIT_DATA)

    assert alone > 64 << 20
    assert 200 <= (together - alone) >> 20 <= 300  # with what its driver and its thread may take


async def test_memory_limit_does_not_grow_with_those_that_have_left(join):
    stays = await join(memory_mib=64)
    limits = set()
    for _ in range(4):
        passing = await join(memory_mib=64)
        limits.add(psutil.Process(stays.pid).rlimit(resource.RLIMIT_DATA)[0])
        await passing.pool.stop()

    assert len(limits) == 1


async def test_model_that_needs_too_much_memory_is_refused_and_the_others_go_on(join, wait_until):
    good = await join(memory_mib=32)

    with pytest.raises(ModelRefused):
        await join(models.hog(400), memory_mib=32)
    await wait_until(lambda: good.pool.alive == 1)

    assert await good.ask() == [2.0] * 4


async def test_nothing_is_left_in_the_process_of_models_that_came_and_went(join, wait_until):
    stays = await join()
    process = psutil.Process(stays.pid)

    def size() -> tuple[int, int]:
        return process.num_fds(), process.num_threads()

    before = size()
    for _ in range(10):
        passing = await join()
        await passing.ask()
        await passing.pool.stop()

    await wait_until(lambda: size() == before)
    assert (stays.pid, stays.events) == (process.pid, [])


async def test_memory_of_models_that_came_and_went_is_given_back(join):
    stays = await join()
    process = psutil.Process(stays.pid)
    before = process.memory_full_info().uss

    for _ in range(6):
        passing = await join(models.scale(width=LARGE_ELEMENTS, batch=1), memory_mib=256)
        await passing.ask(np.ones((1, LARGE_ELEMENTS), np.float32))
        await passing.pool.stop()

    assert process.memory_full_info().uss < before + LARGE_ELEMENTS * 4


async def test_model_that_is_stopped_during_a_call_lets_it_end_and_disturbs_nobody(join, tmp_path):
    calls = tmp_path / "calls"
    slow = await join(options={"delay_us": 300_000, "calls": calls})
    good = await join()
    running = slow.begin()

    await slow.pool.stop()

    with pytest.raises(WorkerLost, match="stopped"):
        await running
    assert await good.ask() == [2.0] * 4
    assert good.events == []


async def test_model_that_is_stopped_while_it_hangs_is_ended(join, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerators.process._SHARED_GRACE_S", 0.1)
    when = tmp_path / "when"
    hung = await join(options={"fail": "hang-invoke", "when": when})
    pid = hung.pid
    when.touch()
    running = hung.begin()

    await hung.pool.stop()

    with pytest.raises(WorkerLost):
        await running
    assert not psutil.pid_exists(pid)


async def test_process_that_dies_while_a_model_joins_refuses_nothing(
    join, prepare, hosts, wait_until
):
    member = await join()
    late = prepare()
    os.kill(member.pid, signal.SIGSTOP)
    starting = asyncio.create_task(late.pool.start())
    host = hosts._rooms["external:standin"]._host
    await wait_until(lambda: len(host._members) == 2)

    os.kill(member.pid, signal.SIGKILL)

    with pytest.raises(WorkerUnavailable, match="the device's process ended"):
        await starting
    await wait_until(lambda: bool(member.events) and member.pool.alive == 1)
    assert await member.ask() == [2.0] * 4


async def test_model_whose_start_is_cancelled_disturbs_nobody(
    join, prepare, tmp_path, wait_until, monkeypatch
):
    hangs = tmp_path / "hangs"
    good = await join()
    threads = psutil.Process(good.pid).num_threads()
    hangs.touch()
    given_up = prepare(options={"fail": "hang-prepare", "when": hangs})
    starting = asyncio.create_task(given_up.pool.start())
    await wait_until(lambda: has_open(good.pid, given_up.path))

    starting.cancel()
    hangs.unlink()
    await asyncio.wait([starting])

    assert starting.cancelled()
    await wait_until(lambda: psutil.Process(good.pid).num_threads() == threads)
    assert await good.ask() == [2.0] * 4
    assert good.events == []


async def test_process_without_descriptors_takes_no_model_and_goes_on(join, prepare):
    good = await join()
    process = psutil.Process(good.pid)
    highest = max(descriptors_of(good.pid))
    process.rlimit(resource.RLIMIT_NOFILE, (highest + 2, 1024))

    with pytest.raises(WorkerUnavailable, match="Too many open files"):
        await prepare().pool.start()

    process.rlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    assert (await (await join()).ask(), good.events) == ([2.0] * 4, [])


async def test_stop_ends_the_process_and_every_call_in_it(join, hosts, tmp_path):
    when = tmp_path / "when"
    hung = await join(options={"fail": "hang-invoke", "when": when})
    pid = hung.pid
    when.touch()
    running = hung.begin()

    await hosts.stop()

    with pytest.raises(WorkerLost):
        await running
    assert not psutil.pid_exists(pid)
    with pytest.raises(ForkFailed, match="stopped"):
        await hosts.of(hung.pool._spec.device).fork([])


async def test_process_ends_with_the_fork_server_and_comes_back_with_it(
    join, forkserver, wait_until
):
    member = await join()
    pid = member.pid

    os.kill(forkserver.pid, signal.SIGKILL)
    await wait_until(lambda: bool(member.events) and member.pool.alive == 1)

    assert member.pid != pid
    assert await member.ask() == [2.0] * 4


async def test_device_of_a_process_that_cannot_be_ended_is_not_opened_twice(
    join, tmp_path, monkeypatch, wait_until
):
    for name in ("hosts._KILL_GRACE_S", "hosts._LEAVE_TIMEOUT_S", "process._KILL_GRACE_S"):
        monkeypatch.setattr(f"accelerators.{name}", 0.1)
    when = tmp_path / "when"
    hung = await join(options={"fail": "hang-invoke", "when": when}, call_timeout_s=0.2)
    pid = hung.pid
    descriptor = descriptor_of(pid)
    real = os.dup(descriptor)
    os.dup2(0, descriptor, inheritable=False)  # as a process that hangs in its device

    when.touch()
    with pytest.raises(CallTimedOut):
        await hung.ask()
    await wait_until(lambda: any(e.reason is DeathReason.START for e in hung.events))

    assert "does not end" in hung.events[-1].detail
    when.unlink()
    signal.pidfd_send_signal(real, signal.SIGKILL)
    os.close(real)
    await wait_until(lambda: hung.pool.alive == 1)
    assert await hung.ask() == [2.0] * 4


def descriptor_of(pid: int) -> int:
    """The one by which this process can signal another."""
    for info in Path("/proc/self/fdinfo").iterdir():
        if info.exists() and f"Pid:\t{pid}\n" in info.read_text():
            return int(info.name)
    raise LookupError(pid)


def has_open(pid: int, path: Path) -> bool:
    """Whether a process reads that file."""
    return str(path) in {file.path for file in psutil.Process(pid).open_files()}


def descriptors_of(pid: int) -> list[int]:
    """The numbers of what a process has open."""
    return [int(link.name) for link in Path(f"/proc/{pid}/fd").iterdir()]
