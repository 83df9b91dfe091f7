"""A random walk of publisher, attacker, clocks, power, daemon, disk and operator over the updater.

Whatever they do, in whatever order: what the link names was signed, whole, and not below a floor;
once there was a release there always is one; no candidate is tried more often than it may be; the
history is unbroken. And when the attacker stops, the device comes to what the fleet wishes.

`UPDATE_WALKS=2000` takes more walks, of more steps, than a test run has time for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, event, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.daemonpeer import Fault
from support.fleet import DAY_S, START, Fleet
from support.peerbox import PeerBox, PowerLost
from support.powercut import watched

from updater.bundle import build_bundle, folder_files
from updater.desired import Window
from updater.floors import FLEET, SNAPSHOT, TARGETS, TIMESTAMP
from updater.manifest import Manifest, Probation
from updater.publisher.assignments import block, raise_floors, set_windows, unblock
from updater.state import MAX_TRANSITIONS, MAX_TRIES, Event, State
from updater.target import Facts, facts_of

if TYPE_CHECKING:
    from updater.install import Step

WALKS = int(os.environ.get("UPDATE_WALKS", "20"))
MODELS = ("digits", "faces")
ONLINE = (TIMESTAMP, SNAPSHOT, FLEET)
PROBATION = Probation(min_requests=20, min_s=10.0, max_s=60.0)
NEVER = Window(days=("mon",), start="03:00", end="03:01")
"""Not at `START`, which is a Thursday, nor at any hour of the walk: days go by whole."""
NOT_A_BUNDLE, WRONG_DEVICE = "not a bundle", "wrong device"
ROUNDS = 40
"""To come to rest in; an update takes one, a server of its own takes three."""
FLAWS = [*Fault, NOT_A_BUNDLE, WRONG_DEVICE]
REFUSALS = (
    "has failed here before",
    "is blocked by the fleet",
    "the signed floor is",
    "is for riscv64",
    "this rollout has failed too often here",
)
MISFORTUNES = (
    "the machine was restarted",
    "the daemon",
    "rolled back by an operator",
    "not now",
    "the fleet blocks it now",
    "too often",
)
"""What a good release may be turned back from for."""
SHARE = st.floats(0, 1, exclude_max=True)
MODEL = st.sampled_from(MODELS)
NEW = st.dictionaries(MODEL, st.sampled_from([None] * 6 + FLAWS), max_size=2)
"""What is published before something befalls the device, so that it befalls an update."""


New = dict[str, object]
"""Model to flaw, of versions to publish."""


@dataclass(frozen=True)
class Release:
    """A bundle that was signed.

    Attributes:
        files: that must be served from it; None when it is no bundle.
        flaw: a `Fault`, `NOT_A_BUNDLE` or `WRONG_DEVICE`; None when it is good.
    """

    model: str
    version: int
    files: dict[str, bytes] | None
    flaw: object


class Walk(RuleBasedStateMachine):
    """One fleet, one device, and all that may befall them."""

    @initialize()
    def begin(self) -> None:
        memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.fleet = Fleet(self.folder / "fleet")
        self.box = PeerBox(self.folder / "box", self.fleet.anchor, self.fleet.path, now=START)
        self.cleanup = contextlib.ExitStack()
        self.cleanup.callback(shutil.rmtree, self.folder)
        self.cleanup.callback(self.box.close)
        self.cleanup.enter_context(watched(self.box.disk))
        self.releases: dict[str, Release] = {}
        self.newest = dict.fromkeys(MODELS, 0)
        self.copies: list[Path] = []
        self.has_thief_signed = False
        self.floors = dict.fromkeys(MODELS, 0)  # that the device has seen, while its keys count
        self.had_release: set[str] = set()
        self.tried_in: dict[tuple[str, int], set[int]] = {}  # assignment to boots
        self.publish(dict.fromkeys(MODELS))
        self.box.boot()

    # The publisher.

    @rule(new=NEW)
    def publish(self, new: New) -> None:
        for model, flaw in new.items():
            self.fleet.assign(model, self.add(model, flaw))

    @rule(model=MODEL, change=st.sampled_from(["any", "floor", "block", "window"]), data=st.data())
    def change_the_wish(self, model: str, change: str, data: st.DataObject) -> None:
        newest = self.newest[model]
        match change:
            case "any":
                self.fleet.assign(model, data.draw(st.integers(1, newest)))
            case "floor":
                self.fleet.repository.assign(lambda wish: raise_floors(wish, {model: newest}))
            case "block":
                digest = data.draw(st.sampled_from(list(self.releases)))
                self.fleet.repository.assign(lambda wish: block(wish, [digest]))
            case _:
                windows = data.draw(st.sampled_from([(), (), (NEVER,)]))
                self.fleet.repository.assign(lambda wish: set_windows(wish, windows, labels={}))

    @rule(roles=st.lists(st.sampled_from([*ONLINE, TARGETS, "models-main"]), max_size=2))
    def rotate(self, roles: list[str]) -> None:
        self.fleet.repository.rotate(dict.fromkeys(roles))
        if FLEET in roles:
            self.floors = dict.fromkeys(MODELS, 0)

    @rule(days=st.integers(1, 60), is_renewed=st.booleans())
    def days_go_by(self, days: int, *, is_renewed: bool) -> None:
        self.fleet.clock.now += days * DAY_S
        self.box.clock.now = self.fleet.clock.now
        if is_renewed:
            self.fleet.repository.refresh()

    def add(self, model: str, flaw: object) -> int:
        """Sign a bundle of the next version."""
        self.newest[model] += 1
        version = self.newest[model]
        bundle = self.folder / f"{model}-{version}.bundle"
        draft = Manifest(
            name=model,
            version=version,
            release_counter=version,
            runtime="litert>=2",
            probation=PROBATION,
            architectures=("riscv64",) if flaw == WRONG_DEVICE else (),
        )
        if flaw == NOT_A_BUNDLE:
            files, facts = None, Facts(model, version, version, "litert>=2")
            bundle.write_bytes(f"{model} {version} is nothing".encode() * 100)
        else:
            made = self.folder / f"{model}-{version}"
            content = hashlib.sha512(f"{model} {version}".encode()).digest() * 50
            files = {"model.tflite": content, "labels.txt": f"{version}\n".encode()}
            made.mkdir()
            for name, content in files.items():
                (made / name).write_bytes(content)
            facts = facts_of(build_bundle(folder_files(made), bundle, draft))
        digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
        self.releases[digest] = Release(model, version, files, flaw)
        if isinstance(flaw, Fault):
            self.box.daemon.faults[digest] = flaw
        self.fleet.repository.add([(bundle, facts)])
        return version

    # The attacker. What he serves stays for a round, or until somebody else has the network.

    @rule()
    def keep_a_copy(self) -> None:
        self.copies.append(self.copy(self.fleet.path, f"copy-{len(self.copies)}"))

    @precondition(lambda self: self.copies)
    @rule(new=NEW, data=st.data(), stays=st.booleans())
    def serve_an_old_copy(self, new: New, data: st.DataObject, *, stays: bool) -> None:
        self.publish(new)
        self.serve(data.draw(st.sampled_from(self.copies)), stays=stays)

    @precondition(lambda self: self.copies)
    @rule(new=NEW, data=st.data())
    def serve_a_mixture(self, new: New, data: st.DataObject) -> None:
        self.publish(new)
        mixed = self.copy(self.fleet.path, "mixed")
        old = data.draw(st.sampled_from(self.copies))
        documents = sorted(path.name for path in (old / "metadata").iterdir())
        for name in data.draw(st.lists(st.sampled_from(documents), max_size=4)):
            shutil.copy(old / "metadata" / name, mixed / "metadata" / name)
        self.serve(mixed)

    @rule(new=NEW, data=st.data(), share=SHARE, garbage=st.binary(max_size=9))
    def serve_garbled_metadata(
        self, new: New, data: st.DataObject, share: float, garbage: bytes
    ) -> None:
        self.publish(new)
        garbled = self.copy(self.fleet.path, "garbled")
        path = data.draw(st.sampled_from(sorted((garbled / "metadata").iterdir())))
        good = path.read_bytes()
        place = int(len(good) * share)
        path.write_bytes(good[:place] + garbage + good[place + len(garbage) :])
        self.serve(garbled)

    @rule(new=NEW, share=SHARE, how=st.sampled_from(["short", "long", "other", "gone"]))
    def serve_other_bundles(self, new: New, share: float, how: str) -> None:
        self.publish(new)
        other = self.copy(self.fleet.path, "other")
        for path in sorted((other / "targets").rglob("*.bundle")):
            good = path.read_bytes()
            match how:
                case "short":
                    path.write_bytes(good[: int(len(good) * share)])
                case "long":
                    path.write_bytes(good + good)
                case "other":
                    path.write_bytes(bytes(len(good)))
                case _:
                    path.unlink()
        self.serve(other)

    @rule(
        model=MODEL,
        version=st.integers(1, 30),
        floor=st.integers(0, 30),
        is_blocked=st.booleans(),
        serial=st.integers(1, 99),
    )
    def steal_the_fleet_key(
        self, model: str, version: int, floor: int, serial: int, *, is_blocked: bool
    ) -> None:
        thief = self.fleet.copy("thief-new")
        wish = {
            "schema": 1,
            "serial": serial,
            "groups": [{"rollout_id": "t", "models": {model: version}}],
            "floors": {model: floor},
            "blocked": list(self.releases)[:2] if is_blocked else [],
        }
        thief.forge_wish(json.dumps(wish).encode())
        self.serve_a_thiefs(thief.path)

    @rule(skipped=st.integers(0, 1000), roles=st.sampled_from([(), ("targets",), ("models-main",)]))
    def steal_the_online_keys(self, skipped: int, roles: tuple[str, ...]) -> None:
        """And sign what these keys may not, too."""
        thief = self.fleet.copy("thief-new")
        for role in roles:
            thief.forge(role, lambda signed: signed, signers=thief.signers(TIMESTAMP))
        thief.forge_online()
        thief.forge(TIMESTAMP, lambda signed: setattr(signed, "version", signed.version + skipped))
        self.serve_a_thiefs(thief.path)

    @rule()
    def cut_the_network(self) -> None:
        self.serve(self.folder / "nowhere")

    @rule()
    def leave_the_network_alone(self) -> None:
        self.box.source = self.fleet.path

    def serve_a_thiefs(self, path: Path) -> None:
        self.has_thief_signed = True
        self.serve(self.copy(path, "thief"))
        shutil.rmtree(path)

    def serve(self, path: Path, *, stays: bool = False) -> None:
        self.box.source = path
        self.live(rounds=1)
        if not stays:
            self.leave_the_network_alone()

    def copy(self, source: Path, name: str) -> Path:
        copied = self.folder / name
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(source, copied)
        return copied

    # The device at work.

    @rule(model=MODEL, steps=st.integers(1, 12))
    def work(self, model: str, steps: int) -> None:
        with self.surviving():
            self.take_in_floors()
            self.take_steps(model, steps)

    def work_on_all(self, steps: int) -> None:
        for model in MODELS:
            self.work(model, steps)

    @rule(rounds=st.integers(1, 4), is_asked=st.booleans())
    def live(self, rounds: int, *, is_asked: bool = True) -> None:
        """Look, work on both models, let clients ask, let time go by."""
        for _ in range(rounds):
            with self.surviving():
                self.take_in_floors()
                for model in MODELS:
                    self.take_steps(model, 12)
            self.box.uptime_s += 11
            for model in MODELS if is_asked else ():
                self.box.daemon.ask(model, 25)

    @rule(new=NEW, rounds=st.integers(1, 4))
    def publish_and_live_on(self, new: New, rounds: int) -> None:
        self.publish(new)
        self.live_on(rounds)

    @rule(rounds=st.integers(1, 4))
    def live_on(self, rounds: int) -> None:
        """And let whatever has died come back."""
        for _ in range(rounds):
            self.start_the_daemon()
            self.live(rounds=1)

    # Power, daemon, clock, disk and operator.

    @rule(new=NEW, lasts=st.integers(0, 150), again=st.integers(0, 20), daemon_first=st.booleans())
    def lose_power_at_work(self, new: New, lasts: int, again: int, *, daemon_first: bool) -> None:
        """And once more while it starts, unless that takes fewer steps."""
        self.publish(new)
        self.box.disk.lasts = lasts
        self.live_on(rounds=2)
        self.box.lose_power()
        self.box.disk.lasts = again
        with contextlib.suppress(PowerLost):
            self.box.boot(daemon_first=daemon_first)
        self.box.lose_power()
        with self.surviving():
            self.box.boot(daemon_first=daemon_first)

    @rule(new=NEW, lasts=st.integers(0, 150))
    def kill_the_updater_at_work(self, new: New, lasts: int) -> None:
        self.publish(new)
        self.box.disk.lasts = lasts
        self.live(rounds=2)
        self.box.stop_updater()
        self.box.disk.lasts = None
        with self.surviving():
            self.box.start_updater()

    @rule(new=NEW, steps=st.integers(0, 12), cleanly=st.booleans(), stays=st.booleans())
    def end_the_daemon(self, new: New, steps: int, *, cleanly: bool, stays: bool) -> None:
        self.publish(new)
        self.work_on_all(steps)
        if cleanly and self.box.daemon.is_alive:
            self.box.daemon.stop()
        self.box.daemon.kill()
        if not stays:
            self.start_the_daemon()

    @rule()
    def start_the_daemon(self) -> None:
        if not self.box.daemon.is_alive:
            self.box.daemon.start()

    @rule(new=NEW, steps=st.integers(0, 12))
    def let_the_daemon_refuse(self, new: New, steps: int) -> None:
        self.publish(new)
        self.work_on_all(steps)
        self.box.daemon.refuses = True
        self.live(rounds=1)
        self.box.daemon.refuses = False

    @rule(clock=st.sampled_from([0.0, 1e9, START + 3650 * DAY_S]))
    def lose_the_time(self, clock: float) -> None:
        self.box.clock.now = clock

    @rule()
    def find_the_time(self) -> None:
        self.box.clock.now = self.fleet.clock.now

    @rule(new=NEW, steps=st.integers(0, 12), rounds=st.integers(0, 2))
    def fill_the_disk(self, new: New, steps: int, rounds: int) -> None:
        self.publish(new)
        self.work_on_all(steps)
        self.box.disk.is_full = True
        self.live(rounds=rounds)
        self.box.disk.is_full = False

    @rule(model=MODEL)
    def go_back(self, model: str) -> None:
        with self.surviving():
            self.box.installer.roll_back(model, "he says so")

    @rule()
    def clear_the_quarantine(self) -> None:
        with self.surviving():
            self.box.quarantine.clear()

    @contextlib.contextmanager
    def surviving(self):
        """What the updater's service would live through, or the machine dies of."""
        try:
            yield
        except PowerLost:
            pass  # whoever cut it goes on from here
        except OSError:
            if not self.box.disk.is_full:
                raise

    def take_in_floors(self) -> None:
        """Look; a floor that was seen once stands, whatever is seen later."""
        view = self.box.look()
        for model in MODELS if view is not None else ():
            signed = view.desired.floors.get(model, 0) if view.desired else 0
            self.floors[model] = max(self.floors[model], signed)
            assert view.floors.get(model, 0) >= self.floors[model], f"the floor of {model} sank"

    def take_steps(self, model: str, count: int) -> None:
        """So many at most: one that waits is tried once more, what it waits for may be there."""
        waited = 0
        for _ in range(count):
            is_idle, step = self.step(model)
            waited = 0 if step.moved else waited + 1
            if waited > 1 or (is_idle and not step.moved):
                return

    def step(self, model: str) -> tuple[bool, Step]:
        """Take one; whether the model was idle before, and what came of it."""
        before, wished, step, after = self.box.step(model)
        event(f"{before.state.name} to {after.state.name}")
        note(f"{model}: {before.state.name} to {after.state.name}, {after.event}, {step}")
        if step.moved and after.event in {Event.ASSIGN, Event.TRY}:
            self.may_be_tried(after, wished)
        if after.event is Event.COMMIT:
            self.had_release.add(model)
        return before.state is State.IDLE, step

    def may_be_tried(self, record, wished) -> None:
        """What begins now was wished, is not below a floor, blocked, or in quarantine."""
        wish, release = wished.wish, self.releases[record.digest]
        assert (wish.target.sha256, release.model) == (record.digest, record.model)
        assert release.version >= self.floors[record.model], "below a signed floor"
        assert record.digest not in wish.blocked
        assert self.box.quarantine.find(record.digest) is None
        assert release.flaw != WRONG_DEVICE

    # What must hold, whatever happens.

    @invariant()
    def what_is_current_was_signed_and_is_whole(self) -> None:
        for model in MODELS:
            digest = self.box.store.current(model)
            if digest is not None:
                assert self.releases[digest].model == model
                assert self.box.files(model) == self.releases[digest].files
                self.box.store.verify(model, digest)

    @invariant()
    def once_there_was_a_release_there_always_is_one(self) -> None:
        for model in MODELS:
            assert model not in self.had_release or self.box.store.current(model) is not None

    @invariant()
    def there_is_a_way_back(self) -> None:
        for model in MODELS:
            if previous := self.box.journal.load(model).previous:
                self.box.store.verify(model, previous)

    @invariant()
    def no_candidate_outlives_many_boots(self) -> None:
        """Else one that takes the machine down is loaded at every start, for ever."""
        lines = self.box.history.read(limit=10_000)
        for model in MODELS:
            if self.box.journal.load(model).state in {State.TRYING, State.PROBATION}:
                told = [(line.event["model"], line.event["event"]) for line in lines]
                assigned = told.count((model, "assigned"))
                boots = self.tried_in.setdefault((model, assigned), set())
                boots.add(self.box.boots)
                assert len(boots) <= MAX_TRIES

    @invariant()
    def the_history_is_unbroken(self) -> None:
        assert self.box.history.verify().broken is None

    @invariant()
    def a_good_release_is_not_condemned_for_its_bytes(self) -> None:
        """Whoever serves other bytes cannot make the device refuse the right ones."""
        for case in self.box.quarantine.entries():
            is_good = self.releases[case.digest].flaw is None
            assert not is_good or any(cause in case.reason for cause in MISFORTUNES), case.reason

    @invariant()
    def no_candidate_is_tried_too_often(self) -> None:
        tries = dict.fromkeys(MODELS, 0)
        probes = dict.fromkeys(MODELS, 0)
        for line in self.box.history.read(limit=10_000):
            model, event = line.event["model"], str(line.event["event"])
            if event == "assigned":
                tries[model] = probes[model] = 0
            tries[model] += event.startswith("try begins")
            probes[model] += event == "probe"
            assert max(tries[model], probes[model]) <= MAX_TRIES
            assert line.event.get("transition", 0) <= MAX_TRANSITIONS

    # When the attacker stops.

    def teardown(self) -> None:
        if not hasattr(self, "box"):
            return
        with self.cleanup:
            self.make_peace()
            for model, reason in self.come_to_rest().items():
                assert self.is_as_wished(model) or is_refusal(reason), reason
            self.box.quarantine.clear()
            self.fleet.repository.assign(lambda wish: unblock(wish, wish.blocked))
            self.publish(dict.fromkeys(MODELS))
            self.come_to_rest()
            for model in MODELS:
                assert self.is_as_wished(model)
                assert self.box.daemon.served[model].release == self.box.store.current(model)
            self.the_history_is_complete()
            assert not list(self.box.leftovers())
            self.store_holds_only_what_is_needed()

    def make_peace(self) -> None:
        """The network, the clocks, the disk, the power and the daemon are good from now on."""
        self.fleet.repository.assign(lambda wish: set_windows(wish, (), labels={}))
        if self.has_thief_signed:
            self.rotate(list(ONLINE))
        self.fleet.repository.refresh()
        self.find_the_time()
        self.leave_the_network_alone()
        self.box.disk.is_full = False
        self.box.disk.lasts = None
        self.box.daemon.refuses = False

    def come_to_rest(self) -> dict[str, str]:
        """Let the updater work until every model rests; why each rests where it does."""
        for _ in range(ROUNDS):
            self.start_the_daemon()
            self.take_in_floors()
            steps = {model: self.work_on(model) for model in MODELS}
            if not any(steps.values()):
                self.box.daemon.look()
                return {model: self.reason(model) for model in MODELS}
            for model in MODELS:
                self.box.daemon.ask(model, 25)
            self.box.uptime_s += 11
        records = [self.box.journal.load(model) for model in MODELS]
        raise AssertionError(f"does not come to rest: {records}")

    def work_on(self, model: str) -> bool:
        """Let a model go on as far as it can; False when it is at rest already."""
        for count in range(12):
            is_idle, step = self.step(model)
            if not step.moved:
                return count > 0 or not is_idle
        return True

    def reason(self, model: str) -> str:
        _, wished, step, _ = self.box.step(model)
        return step.waiting_for or (wished.reason if wished else "")

    def is_as_wished(self, model: str) -> bool:
        wished = self.box.wishes()[model]
        digest = self.box.store.current(model)
        return digest is not None and self.releases[digest].version == wished.version

    def the_history_is_complete(self) -> None:
        """It tells every move, in order, up to the last."""
        told = dict.fromkeys(MODELS, 0)
        for line in self.box.history.read(limit=10_000):
            if (transition := line.event.get("transition")) is not None:
                model, event = line.event["model"], line.event["event"]
                is_next = transition == told[model] + 1
                assert is_next or (transition == 1 and event in {"assigned", "roll_back"})
                told[model] = transition
        assert told == {model: self.box.journal.load(model).transitions for model in MODELS}

    def store_holds_only_what_is_needed(self) -> None:
        for held in self.box.store.held():
            record = self.box.journal.load(held.model)
            assert held.digest in {self.box.store.current(held.model), record.previous}


def is_refusal(reason: str) -> bool:
    return any(known in reason for known in REFUSALS)


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=WALKS,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
