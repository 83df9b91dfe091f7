"""The service: who waits for whom, what it does by itself, and what it does when it is asked.

Its threads run as in life; the daemon is a peer, everything else is real.
"""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest
from support.box import MODEL
from support.daemonpeer import Fault
from support.fleet import DAY_S
from support.insidebox import inside_box, threads
from support.servicebox import ENDLESS, wait_until

from updater.desired import Group, Window, encode_desired
from updater.requests import Busy, Refused
from updater.service import UpdateService
from updater.state import State

if TYPE_CHECKING:
    from pathlib import Path

HOLD_S = 20
"""For something that happens by itself in a moment."""


@pytest.fixture
def box(tmp_path):
    with inside_box(tmp_path) as box:
        yield box


@pytest.fixture
def served(box):
    """A box that serves version 1 and has version 2 behind it."""
    box.start()
    box.install(1)
    box.install(2, 5.0)
    wait_until(lambda: len(box.daemon.events) == len(box.events()))
    return box


def files(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What a write would change, by path; folders too."""
    return {
        str(path): (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        for path in (folder, *sorted(folder.rglob("*")))
        for facts in (path.lstat(),)
    }


def wish(box, *groups: Group) -> None:
    """Have the fleet wish exactly this, signed, whatever it says."""
    desired = msgspec.structs.replace(
        box.fleet.repository.desired(),
        serial=box.fleet.repository.desired().serial + 1,
        groups=groups,
    )
    box.fleet.forge_wish(encode_desired(desired))


def close_windows(box, *, opens_in_s: float) -> None:
    """Let devices change in one minute of the day only, which begins then, local time."""
    at = int(box.clock.now + opens_in_s + box.utc_offset_s) // 60 % 1440
    end = (at + 1) % 1440
    window = Window(
        days=("mon", "tue", "wed", "thu", "fri", "sat", "sun"),
        start=f"{at // 60:02}:{at % 60:02}",
        end=f"{end // 60:02}:{end % 60:02}",
    )
    box.fleet.repository.assign(lambda desired: msgspec.structs.replace(desired, windows=(window,)))


class TestByItself:
    def test_a_release_comes_in_and_the_daemon_is_told(self, box):
        box.ship(1)
        box.start()

        box.settle(1)

        wait_until(lambda: box.daemon.reports[-1]["counts"])
        assert box.daemon.reports[-1]["counts"] == [
            {"model": MODEL, "outcome": "committed", "count": 1}
        ]
        states = [report["models"][0]["state"] for report in box.daemon.reports if report["models"]]
        assert states[-1] == "IDLE"

    def test_the_first_look_needs_no_hint(self, box):
        box.start(is_patient=True)

        wait_until(lambda: box.looks == 1)
        wait_until(lambda: box.status.checked_at == box.clock.now)
        assert 2880 <= (box.status.next_check_in_s or 0) <= 4320

    def test_every_event_is_handed_over_in_order(self, box):
        box.start()
        box.install(1)

        wait_until(lambda: len(box.daemon.events) == len(box.events()))
        assert box.daemon.events == list(range(1, len(box.events()) + 1))

    def test_events_wait_while_mqtt_is_off_and_nothing_else_does(self, box):
        box.daemon.takes_events = False
        box.start()
        box.install(1)
        assert box.daemon.events == []

        box.daemon.takes_events = True
        box.restart()

        box.look()
        wait_until(lambda: len(box.daemon.events) == len(box.events()))
        assert box.daemon.events == list(range(1, len(box.events()) + 1))

    def test_a_bad_release_is_out_and_the_one_before_stays(self, box):
        box.start()
        box.install(1)
        box.add(2, probation=ENDLESS)
        box.daemon.faults[box.digest(2)] = Fault.NOT_FINITE
        box.fleet.assign(MODEL, 2)
        box.service.hint("operator")

        wait_until(lambda: box.daemon.ask(MODEL) and box.quarantine.entries())
        box.settle(1)

        wait_until(lambda: "has failed here before" in box.model().waiting_for)
        assert "NaN" in box.model().reason

    def test_a_model_that_the_fleet_stops_wishing_stays(self, served):
        wish(served)

        served.look()

        assert served.current() == 2
        assert served.model().state == "idle"
        assert served.model().waiting_for == ""

    def test_a_fleet_that_goes_back_is_followed(self, served):
        served.fleet.assign(MODEL, 1)
        served.service.hint("operator")

        served.settle(1)

    def test_nothing_is_written_while_there_is_nothing_new(self, served):
        served.look()
        folders = [served.root / name for name in ("state", "store", "models")]
        before = [files(folder) for folder in folders]

        for _ in range(3):
            served.look()

        assert [files(folder) for folder in folders] == before

    def test_a_closed_window_keeps_a_release_until_it_opens(self, box):
        box.start()
        box.install(1)
        close_windows(box, opens_in_s=7200)
        box.ship(2)
        box.service.hint("operator")
        wait_until(lambda: box.model().state == "wait_window")
        wait_until(lambda: "window" in box.model().waiting_for)

        box.clock.now += 7200
        box.service.hint("operator")

        box.settle(2)

    def test_a_window_that_closes_during_a_probe_is_closed(self, box):
        box.start()
        box.install(1)
        close_windows(box, opens_in_s=0)
        box.daemon.hold.clear()
        probes = box.daemon.probes
        box.ship(2)
        box.service.hint("operator")
        wait_until(lambda: box.daemon.probes > probes)

        box.clock.now += 120
        box.daemon.hold.set()

        wait_until(lambda: box.model().state == "wait_window" and box.model().waiting_for)
        assert box.current() == 1


class TestTroubleOfOneModel:
    """It says so, and the others go on."""

    OTHER = Group(rollout_id="other", models={"aardvark": 9})

    def wish_both(self, box):
        box.add(1)
        wish(box, self.OTHER, Group(rollout_id="good", models={MODEL: 1}))

    def test_a_version_that_nobody_has_signed(self, box):
        self.wish_both(box)
        box.start()

        box.settle(1)

        assert "nobody has signed it" in box.model("aardvark").waiting_for
        assert box.model("aardvark").state == "idle"

    def test_a_target_that_cannot_be_believed(self, box):
        def weaken(signed):
            signed.targets["aardvark/aardvark-9.bundle"].hashes = {"md5": "0" * 32}

        box.fleet.add("aardvark", 9)
        box.add(1)
        box.fleet.forge_all("models-main", weaken)
        wish(box, self.OTHER, Group(rollout_id="good", models={MODEL: 1}))
        box.start()

        box.settle(1)

        assert "without a sha256" in box.model("aardvark").waiting_for

    def test_a_folder_that_is_the_operators(self, box):
        box.fleet.add("aardvark", 9)
        self.wish_both(box)
        (box.root / "models/aardvark/current").mkdir(parents=True)
        (box.root / "models/aardvark/current/model.tflite").write_bytes(b"mine")
        box.start()

        box.settle(1)

        assert "does not lead into the store" in box.model("aardvark").waiting_for
        assert not box.quarantine.entries()
        assert (box.root / "models/aardvark/current/model.tflite").read_bytes() == b"mine"

    def test_a_bundle_that_is_none(self, box):
        box.fleet.add("aardvark", 9)
        self.wish_both(box)
        box.start()

        box.settle(1)

        wait_until(box.quarantine.entries)
        assert box.quarantine.entries()[0].model == "aardvark"

    def test_a_bundle_that_the_server_has_lost(self, box):
        box.fleet.add("aardvark", 9)
        self.wish_both(box)
        shutil.rmtree(box.fleet.path / "targets/aardvark")
        box.start()

        box.settle(1)

        wait_until(lambda: "404" in box.model("aardvark").waiting_for)
        assert box.model("aardvark").state == "downloading"

    def test_more_models_than_a_device_holds_are_cut_off(self, box):
        names = {f"m{number:04}": 1 for number in range(1000)}
        wish(
            box,
            Group(rollout_id="a", models=names),
            Group(rollout_id="b", models={f"n{number:04}": 1 for number in range(500)}),
        )
        box.start()

        box.look()

        assert len(box.status.models) == 1000

    def test_a_device_that_is_not_there_and_then_is(self, box):
        box.start()
        box.add(1, accelerators=("edgetpu",))
        box.fleet.assign(MODEL, 1)
        box.service.hint("operator")
        wait_until(lambda: "needs edgetpu" in box.model().waiting_for)

        box.daemon.kinds.append("edgetpu")
        box.service.hint("operator")

        box.settle(1)

    def test_a_fault_of_ours(self, box, monkeypatch):
        box.fleet.add("aardvark", 9)
        self.wish_both(box)
        step = box.service._installer.step

        def fail(model, wish):
            if model == "aardvark":
                raise ZeroDivisionError("by no means")
            return step(model, wish)

        monkeypatch.setattr(box.service._installer, "step", fail)
        box.service.start()
        box.service.hint("operator")

        box.settle(1)

        assert "a fault of this program: by no means" in box.model("aardvark").waiting_for


class TestExpiredMetadata:
    def test_nothing_new_is_installed_and_everything_goes_on(self, box):
        box.start()
        box.install(1)
        box.daemon.refuses = True
        box.ship(2)
        box.service.hint("operator")
        wait_until(lambda: box.model().state == "verified")
        box.server.answer("", b"", status=500)

        box.clock.now += 8 * DAY_S
        box.daemon.refuses = False
        box.service.hint("operator")

        wait_until(lambda: box.model().state == "wait_window")
        wait_until(lambda: "expired" in box.model().waiting_for)
        assert box.current() == 1
        assert box.daemon.ask(MODEL) == box.digest(1)

    def test_the_status_says_so_before_any_look_has_failed(self, served):
        served.clock.now += 8 * DAY_S

        assert "timestamp" in served.status.problem
        assert "expired" in served.status.problem
        assert served.current() == 2

    def test_fresh_metadata_ends_it(self, served):
        served.clock.now += 8 * DAY_S
        served.fleet.clock.now = served.clock.now
        served.fleet.repository.refresh()

        served.look()

        assert served.status.problem == ""


class TestBadNetwork:
    def test_a_server_that_asks_for_patience_gets_it(self, box):
        box.server.answer("", b"", status=429, Retry_After="600")
        box.start()

        wait_until(lambda: "429" in box.status.problem)

        assert (box.status.next_check_in_s or 0) > 500
        assert box.service.hint("mqtt") > 500

    def test_the_operator_may_ask_all_the_same(self, box):
        box.server.answer("", b"", status=429, Retry_After="600")
        box.start()
        wait_until(lambda: "429" in box.status.problem)
        box.server.answers.clear()
        box.ship(1)

        assert box.service.hint("operator") == 0

        box.settle(1)
        assert box.status.problem == ""

    def test_after_a_failure_it_looks_again_soon(self, box):
        box.server.answer("", b"", status=500)
        box.start()

        wait_until(lambda: "500" in box.status.problem)

        assert 0 < (box.status.next_check_in_s or 0) <= 12

    def test_without_the_network_it_starts_with_what_it_knew(self, served):
        served.service.stop()
        served.server.answer("", b"", status=503)
        served.start()

        assert served.current() == 2
        assert served.status.versions["root"] == 1
        assert served.status.expires["timestamp"] > served.clock.now
        assert served.status.checked_at == 0

    def test_what_was_wished_before_is_installed_without_a_look(self, box):
        box.daemon.refuses = True
        box.ship(1)
        box.start()
        wait_until(lambda: box.looks and box.model().state == "verified")
        box.service.stop()
        box.server.answer("", b"", status=503)
        box.daemon.refuses = False

        box.start()

        box.settle(1)

    def test_a_flood_of_hints_is_worth_one_look(self, box):
        box.start()
        box.look()
        looks = box.looks

        waits = [box.service.hint("mqtt") for _ in range(200)]

        assert min(waits) > 5
        assert box.looks == looks

    def test_a_rollback_does_not_wait_for_a_look(self, served):
        with served.held_up() as asked:
            served.service.hint("operator")
            assert asked.wait(HOLD_S)

            assert served.service.roll_back(MODEL) == 1

            served.settle(1)
            assert served.status.is_busy  # the look is under way still

    def test_a_rollback_does_not_wait_for_a_download(self, served):
        served.add(1, model="other")
        with served.held_up(served.bundle_path(1, "other")) as asked:
            served.fleet.assign("other", 1)
            served.service.hint("operator")
            assert asked.wait(HOLD_S)

            served.service.roll_back(MODEL)

            served.settle(1)
            assert served.model("other").state == "downloading"

    def test_a_probation_does_not_wait_for_a_look(self, box):
        box.start()
        box.install(1)
        box.ship(2, probation=ENDLESS)
        box.service.hint("operator")
        wait_until(lambda: box.model().state == "probation")
        with box.held_up() as asked:
            box.service.hint("operator")
            assert asked.wait(HOLD_S)
            box.daemon.faults[box.digest(2)] = Fault.NOT_FINITE

            box.settle(1)

    def test_what_a_stick_lacks_comes_from_the_fleets_server(self, box, tmp_path):
        box.ship(1)
        stick = tmp_path / "stick"
        shutil.copytree(box.fleet.path, stick)
        shutil.rmtree(stick / "targets" / MODEL)
        box.start()
        with box.held_up("/metadata/timestamp.json"):
            box.service.import_folder(stick)

            box.settle(1)


class TestOperator:
    def test_going_back_is_done_once(self, served):
        assert served.service.roll_back(MODEL) == 1
        served.settle(1)

        with pytest.raises(Refused):
            served.service.roll_back(MODEL)
        assert served.quarantine.entries()[0].version == 2

    def test_there_must_be_something_to_go_back_to(self, box):
        box.start()
        box.install(1)

        with pytest.raises(Refused, match="no release"):
            box.service.roll_back(MODEL)

    @pytest.mark.parametrize("model", ["unheard-of", "", "../../etc", "x" * 5000, "a\0b"])
    def test_going_back_with_a_model_that_nobody_knows_is_refused(self, served, model):
        with pytest.raises(Refused):
            served.service.roll_back(model)

        assert served.current() == 2

    def test_going_back_in_the_middle_of_a_probation(self, box):
        box.start()
        box.install(1)
        box.ship(2, probation=ENDLESS)
        box.service.hint("operator")
        wait_until(lambda: box.model().state == "probation")

        assert box.service.roll_back(MODEL) == 1

        box.settle(1)

    def test_a_probe_under_way_is_waited_for_and_the_answer_is_not(self, served):
        served.daemon.hold.clear()
        probes = served.daemon.probes
        served.ship(3)
        served.service.hint("operator")
        wait_until(lambda: served.daemon.probes > probes)
        # Nothing of the candidate is switched: there is nothing to go back from.
        with pytest.raises(Refused):
            served.service.roll_back(MODEL)

        served.daemon.hold.set()

        served.settle(3)

    def test_a_bundle_gets_another_chance(self, box):
        box.start()
        box.install(1)
        box.add(2)
        digest = box.digest(2)
        box.daemon.faults[digest] = Fault.REFUSED
        box.fleet.assign(MODEL, 2)
        box.service.hint("operator")
        wait_until(box.service.quarantine)
        box.daemon.faults.clear()

        assert box.service.clear_quarantine(digest[:8]) == (digest,)

        box.settle(2)
        assert "quarantine cleared" in box.events()

    def test_a_digest_that_is_not_in_quarantine_is_refused(self, served):
        served.service.roll_back(MODEL)
        served.settle(1)

        with pytest.raises(Refused, match="no bundle"):
            served.service.clear_quarantine("0" * 64)

        assert len(served.quarantine.entries()) == 1

    def test_all_may_be_cleared_and_none_too(self, served):
        served.service.roll_back(MODEL)
        served.settle(1)

        assert served.service.clear_quarantine(None) == (served.digest(2),)
        assert served.service.clear_quarantine(None) == ()

    def test_while_a_probe_is_under_way_what_needs_the_deciding_thread_is_put_off(self, box):
        box.daemon.hold.clear()
        box.ship(1)
        box.start()
        wait_until(lambda: box.daemon.probes)

        with pytest.raises(Busy):
            box.service.clear_quarantine(None)

        assert box.status.models[0].state == "verified"

    def test_the_history_is_of_one_model_or_of_all(self, served):
        lines, chain = served.service.history(limit=3)
        none, _ = served.service.history(limit=3, model="unheard-of")
        some, _ = served.service.history(limit=3, model=MODEL)

        assert [line.sequence for line in lines] == [chain.last - 2, chain.last - 1, chain.last]
        assert none == ()
        assert len(some) == 3
        assert chain.broken is None


class TestImport:
    @pytest.fixture
    def offline(self, box):
        """A box that knows of no server."""
        box.change(source="")
        return box

    def stick(self, box, tmp_path):
        stick = tmp_path / "stick"
        shutil.copytree(box.fleet.path, stick)
        return stick

    def test_a_stick_is_all_it_takes(self, offline, tmp_path):
        offline.ship(1)
        offline.start()

        assert offline.service.import_folder(self.stick(offline, tmp_path)) == {MODEL: 1}

        offline.settle(1)
        assert "import" in offline.events()
        assert offline.server.requests == []

    def test_without_a_repository_there_is_nothing_to_look_at(self, offline):
        offline.start()

        with pytest.raises(Refused, match=r"updates\.source"):
            offline.service.hint("operator")

        assert offline.status.next_check_in_s is None

    def test_a_folder_that_is_no_repository_changes_nothing(self, served, tmp_path):
        before = files(served.state_folder)

        with pytest.raises(Refused, match="no such file"):
            served.service.import_folder(tmp_path)

        assert files(served.state_folder) == before
        assert served.status.problem == ""

    def test_a_stick_that_was_forged_changes_nothing(self, served, tmp_path):
        stick = self.stick(served, tmp_path)
        timestamp = stick / "metadata/timestamp.json"
        timestamp.write_bytes(timestamp.read_bytes().replace(b'"version":', b'"version":9'))

        with pytest.raises(Refused):
            served.service.import_folder(stick)

        assert served.current() == 2

    def test_a_stick_older_than_what_was_seen_is_refused(self, box, tmp_path):
        box.start()
        box.install(1)
        stick = self.stick(box, tmp_path)
        box.install(2)

        with pytest.raises(Refused, match="version"):
            box.service.import_folder(stick)

        assert box.current() == 2

    def test_a_stick_that_has_expired_is_refused(self, offline, tmp_path):
        offline.ship(1)
        offline.clock.now += 8 * DAY_S
        offline.start()

        with pytest.raises(Refused, match="expired"):
            offline.service.import_folder(self.stick(offline, tmp_path))

    def test_a_stick_pulled_in_the_middle_says_so_and_goes_on_when_it_is_back(
        self, offline, tmp_path
    ):
        offline.ship(1)
        offline.start()
        stick = self.stick(offline, tmp_path)
        (stick / "targets" / MODEL).rename(tmp_path / "away")
        offline.service.import_folder(stick)
        wait_until(lambda: "no such file" in offline.model().waiting_for)
        shutil.move(stick, tmp_path / "pulled")

        with pytest.raises(Refused, match="no such folder"):
            offline.service.import_folder(stick)
        shutil.move(tmp_path / "pulled", stick)
        (tmp_path / "away").rename(stick / "targets" / MODEL)
        offline.service.import_folder(stick)

        offline.settle(1)

    def test_whoever_stands_at_the_box_waits_for_no_server(self, box, tmp_path):
        box.ship(1)
        stick = self.stick(box, tmp_path)
        with box.held_up() as asked:
            box.start()
            box.service.hint("operator")
            assert asked.wait(HOLD_S)

            assert box.service.import_folder(stick) == {MODEL: 1}

            box.settle(1)

    def test_one_at_a_time(self, box, tmp_path):
        """The first one is still under way; whoever asked for it gets his answer."""
        told: list[str] = []

        def import_slowly() -> None:
            try:
                box.service.import_folder(box.server.url)  # as slow as a bad stick
            except Refused as exc:
                told.append(str(exc))

        box.start()
        box.look()
        with box.held_up() as asked:
            first = threading.Thread(target=import_slowly)
            first.start()
            assert asked.wait(HOLD_S)

            with pytest.raises(Busy, match="another import"):
                box.service.import_folder(tmp_path)
        first.join(HOLD_S)
        assert len(told) == 1
        assert "not wanted" not in told[0]

    def test_the_look_that_was_ended_for_it_is_made_up_for(self, box, tmp_path):
        box.ship(1)
        stick = self.stick(box, tmp_path)
        with box.held_up() as asked:
            box.start()
            box.service.hint("operator")
            assert asked.wait(HOLD_S)
            box.service.import_folder(stick)

        wait_until(lambda: box.status.source == box.server.url)
        assert box.status.problem == ""


class TestLife:
    def test_a_second_service_is_kept_out(self, box):
        box.start()

        with pytest.raises(BlockingIOError, match="another inferd-updater"):
            UpdateService(box.settings).start()

        box.service.stop()
        box.start()

    def test_a_stop_ends_a_look(self, box):
        with box.held_up() as asked:
            box.start()
            box.service.hint("operator")
            assert asked.wait(HOLD_S)

            box.service.stop()

            assert threads() == set()
        assert not (box.root / "run/look").exists()

    def test_a_stop_ends_a_download_and_keeps_what_has_arrived(self, box):
        box.ship(1)
        content = (box.fleet.path / box.bundle_path(1).lstrip("/")).read_bytes()
        begun = threading.Event()

        def begin(handler):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content[:1000])
            begun.set()
            handler.rfile.read(1)  # until the device hangs up

        box.server.answers[box.bundle_path(1)] = begin
        box.start()
        part = box.state_folder / "staging" / f"{box.digest(1)}.part"
        wait_until(lambda: begun.is_set() and part.exists() and part.stat().st_size == 1000)

        box.service.stop()

        assert threads() == set()
        assert part.stat().st_size == 1000
        del box.server.answers[box.bundle_path(1)]
        box.start()
        box.settle(1)

    def test_a_stop_does_not_wait_for_a_probe(self, box):
        box.daemon.hold.clear()
        box.ship(1)
        box.start()
        wait_until(lambda: box.daemon.probes)

        box.service.stop()

        assert threads() == set()
        box.daemon.hold.set()
        box.start()
        box.settle(1)

    def test_a_stop_in_probation_is_held_against_nobody(self, box):
        box.start()
        box.install(1)
        box.ship(2, probation=ENDLESS)
        box.service.hint("operator")
        wait_until(lambda: box.model().state == "probation")

        box.restart()

        assert box.model().state == "probation"
        assert box.current() == 2

    def test_metadata_that_cannot_be_read_keeps_nobody_from_going_back(self, served):
        served.service.stop()
        served.server.answer("", b"", status=503)
        root = served.state_folder / "tuf/current/root.json"
        root.unlink()
        root.mkdir()
        served.start()
        assert "root.json" in served.status.problem or "503" in served.status.problem

        assert served.service.roll_back(MODEL) == 1

        served.settle(1)

    def test_a_stop_before_the_start_is_fine(self, box):
        box.service.stop()

    def test_whoever_waits_is_told_when_it_stops(self, box):
        box.daemon.hold.clear()
        box.ship(1)
        box.start()
        wait_until(lambda: box.daemon.probes)
        told: list[type[Exception]] = []

        def ask() -> None:
            try:
                box.service.import_folder(box.root)
            except (Busy, Refused) as exc:
                told.append(type(exc))

        asking = threading.Thread(target=ask)
        asking.start()
        box.service.stop()
        asking.join(HOLD_S)

        assert len(told) == 1

    def test_what_the_disk_does_not_let_it_do_at_the_start_is_said(self, box):
        box.state_folder.mkdir()
        (box.state_folder / "outbox").write_text("no folder")

        box.service.start()

        with pytest.raises(OSError, match="outbox"):
            box.service.recovered.result(HOLD_S)
        with pytest.raises(OSError, match="outbox"):
            box.service.ended.result(HOLD_S)

    def test_another_protocol_gets_the_events_from_its_own_cursor(self, box):
        class Other:
            name = "other"
            taken: list[int]

            def deliver(self, lines):
                self.taken += [line.sequence for line in lines]
                return lines[-1].sequence

        other = Other()
        other.taken = []
        box.start()
        box.install(1)
        box.service.stop()

        box.start([other])

        box.look()
        wait_until(lambda: len(other.taken) == len(box.events()))
        assert other.taken == list(range(1, len(box.events()) + 1))


class TestOnce:
    def test_it_brings_a_release_as_far_as_it_comes_without_waiting(self, box):
        box.ship(1, probation=ENDLESS)

        status, trouble = box.service.run_once()

        assert trouble == ""
        assert [(model.state, model.current_version) for model in status.models] == [
            ("probation", 1)
        ]

    def test_another_run_goes_on_from_there(self, box):
        box.ship(1)
        box.service.run_once()
        box.daemon.ask(MODEL, 40)

        status, _ = UpdateService(box.settings).run_once()

        assert status.models[0].state == State.IDLE.value

    def test_a_window_is_not_waited_for(self, box):
        box.ship(1)
        close_windows(box, opens_in_s=7200)

        status, trouble = box.service.run_once()

        assert trouble == ""
        assert status.models[0].state == "wait_window"

    def test_what_goes_wrong_is_told(self, box):
        box.server.answer("", b"", status=500)

        _, trouble = box.service.run_once()

        assert "500" in trouble

    def test_a_daemon_that_is_not_there_is_trouble(self, box):
        box.daemon.kill()
        box.ship(1)

        status, trouble = box.service.run_once()

        assert "does not answer" in trouble
        assert status.models[0].state == "verified"

    def test_a_bundle_that_does_not_arrive_is_trouble_and_not_waited_for(self, box):
        box.ship(1)
        shutil.rmtree(box.fleet.path / "targets" / MODEL)

        _, trouble = box.service.run_once()

        assert "404" in trouble

    def test_it_keeps_out_of_the_service_s_way(self, box):
        box.start()

        with pytest.raises(BlockingIOError):
            UpdateService(box.settings).run_once()
