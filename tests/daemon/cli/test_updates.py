"""What an operator does with updates: real services, real signatures, `inferctl` as a process."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from support import tflite_builder
from support.box import MODEL
from support.inferctl import run_python
from support.servicebox import ENDLESS, QUICK, running_services, wait_until

from daemon.cli.outcome import ExitCode
from updater.publisher.assignments import parse_window, set_windows
from updater.publisher.export import export


def good(version: int) -> bytes:
    """Gives version * x."""
    return tflite_builder.scale(float(version), batch=1)


NAN = tflite_builder.scale(float("nan"), batch=1)


@pytest.fixture
def box(tmp_path):
    with running_services(tmp_path) as box:
        yield box


@pytest.fixture
def updated(box):
    """A box whose model has come in two versions, the first of them signed as well."""
    for version in (1, 2):
        box.publisher.ship(version, good(version), probation=QUICK)
        assert box.ctl("update", "--now").returncode == 0
    return box


@pytest.fixture(scope="module")
def settled(tmp_path_factory):
    """The same, for those who only read."""
    with running_services(tmp_path_factory.mktemp("settled")) as box:
        for version in (1, 2):
            box.publisher.ship(version, good(version), probation=QUICK)
            assert box.ctl("update", "--now").returncode == 0
        yield box


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A box that nothing is assigned to."""
    with running_services(tmp_path_factory.mktemp("quiet")) as box:
        assert box.ctl("update", "--now").returncode == 0
        yield box


class TestUpdate:
    def test_now_brings_a_version_in_and_tells_each_step_and_the_end(self, box):
        box.publisher.ship(1, good(1), probation=QUICK)

        done = box.ctl("update", "--now")

        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[-1] == f"up to date: {MODEL} version 1"
        assert box.model()["current_version"] == 1

    def test_nothing_new_is_said_in_one_line(self, settled):
        done = settled.ctl("update", "--now")

        assert (done.returncode, done.stdout) == (0, f"up to date: {MODEL} version 2\n")

    def test_a_box_without_an_assignment_is_up_to_date_too(self, quiet):
        assert quiet.ctl("update", "--now").stdout == "up to date: no model is assigned\n"

    def test_a_version_that_the_probe_refuses_fails_with_the_reason(self, updated):
        updated.publisher.ship(3, NAN, probation=QUICK)

        done = updated.ctl("update", "--now")

        assert done.returncode == 1
        assert f"{MODEL} version 3 has failed: " in done.stdout
        assert "NaN" in done.stdout
        assert updated.model()["current_version"] == 2

    def test_a_version_in_quarantine_is_named_and_fails_again(self, updated):
        updated.publisher.ship(3, NAN, probation=QUICK)
        updated.ctl("update", "--now")

        done = updated.ctl("update", "--now")

        assert done.returncode == 1
        assert f"{MODEL}: not taken: " in done.stdout
        assert "has failed here before" in done.stdout

    def test_a_probation_is_named_and_not_waited_for(self, box):
        box.publisher.ship(1, good(1), probation=ENDLESS)

        done = box.ctl("update", "--now")

        assert done.returncode == 0
        assert f"{MODEL} version 1 serves, and is watched" in done.stdout
        assert box.model()["state"] == "probation"

    def test_a_window_is_named_and_not_waited_for(self, box):
        box.publisher.ship(1, good(1), probation=QUICK)
        box.fleet.repository.assign(closed_window)

        done = box.ctl("update", "--now")

        assert done.returncode == 0
        assert done.stdout.splitlines()[-1].startswith(
            f"{MODEL} version 1 waits for a maintenance window"
        )

    def test_a_source_that_does_not_answer_fails_with_the_reason(self, box):
        box.server.answer("", b"busy", status=503)

        done = box.ctl("update", "--now")

        assert done.returncode == 1
        assert "the look has failed: " in done.stdout
        assert "503" in done.stdout

    def test_metadata_of_somebody_else_fails_with_the_reason(self, box):
        stranger = box.fleet.copy("other")
        stranger.forge("timestamp", lambda _: None, signers=stranger.signers("fleet"))
        newest = stranger.path / "metadata" / "timestamp.json"
        shutil.copy(newest, box.fleet.path / "metadata" / "timestamp.json")

        done = box.ctl("update", "--now")

        assert done.returncode == 1
        assert "the look has failed: " in done.stdout

    def test_json_is_the_updaters_answer_and_nothing_else(self, settled):
        done = settled.ctl("update", "--now", "--json")

        assert json.loads(done.stdout)["models"][0]["current_version"] == 2

    def test_without_a_source_it_says_which_key_to_set(self, box):
        box.stop()
        box.configure("")
        box.start()

        done = box.ctl("update", "--now")

        assert done.returncode == 1
        assert "[updates] source" in done.stderr

    def test_alone_it_says_where_things_stand_and_changes_nothing(self, box):
        box.publisher.ship(1, good(1), probation=QUICK)
        before = box.updater.status()["checked_at"]

        done = box.ctl("update")

        assert done.returncode == 0
        assert f"source  {box.server.url}" in done.stdout
        assert box.updater.status()["checked_at"] == before

    def test_what_serves_and_what_keeps_a_model_is_in_its_row(self, box):
        box.publisher.ship(1, good(1), probation=ENDLESS)
        box.ctl("update", "--now")

        done = box.ctl("update")

        row = next(line for line in done.stdout.splitlines() if line.startswith(f"{MODEL} "))
        assert row.split()[:4] == [MODEL, "1", "probation", "1"]


class TestHistory:
    def test_it_tells_an_update_from_its_signature_to_its_end(self, settled):
        done = settled.ctl("history", "--limit", "1000")

        assert "signed_by=models-main" in done.stdout
        words = ("assigned", "downloaded and verified", "probe passed", "kept", "finished")
        assert all(f"{MODEL}" in done.stdout and word in done.stdout for word in words)

    def test_a_limit_keeps_the_last_ones(self, settled):
        done = settled.ctl("history", "--limit", "3", "--json")

        document = json.loads(done.stdout)
        assert len(document["events"]) == 3
        assert document["events"][-1]["sequence"] == document["chain"]["last"]

    def test_verify_says_unbroken_with_the_last_digest(self, settled):
        done = settled.ctl("history", "--limit", "1", "--verify")

        digest = settled.updater.history(limit=1)["chain"]["digest"]
        assert done.returncode == 0
        assert "unbroken: events 1 to " in done.stdout
        assert digest in done.stdout

    def test_verify_fails_for_a_line_that_was_changed(self, updated):
        updated.stop()
        file = updated.root / "var/lib/inferd-updater/history.jsonl"
        lines = file.read_text().splitlines(keepends=True)
        lines[2] = lines[2].replace(MODEL, "treble")
        file.write_text("".join(lines))
        updated.start()

        done = updated.ctl("history", "--verify")

        assert done.returncode == 1
        assert "BROKEN at history.jsonl line 4" in done.stdout

    def test_a_model_that_was_mistyped_gets_the_nearest_one_suggested(self, settled):
        done = settled.ctl("history", "--model", "duoble")

        assert done.returncode == 1
        assert f"did you mean '{MODEL}'?" in done.stderr

    def test_a_box_that_did_nothing_has_no_events(self, quiet):
        done = quiet.ctl("history")

        assert done.stdout == "no events\n"


class TestRollback:
    def test_the_version_before_serves_again_and_the_other_stays_out(self, updated):
        done = updated.ctl("rollback", MODEL)

        assert done.returncode == 0, done.stderr
        assert f"{MODEL} serves version 1" in done.stdout
        assert updated.model()["current_version"] == 1
        assert "version 2" in updated.ctl("update", "--now").stdout
        assert updated.model()["current_version"] == 1

    def test_a_model_that_was_mistyped_gets_the_nearest_one_suggested(self, settled):
        done = settled.ctl("rollback", "doubel")

        assert done.returncode == 1
        assert f"did you mean '{MODEL}'?" in done.stderr
        assert settled.model()["current_version"] == 2

    def test_without_a_version_before_it_is_refused(self, box):
        box.publisher.ship(1, good(1), probation=QUICK)
        box.ctl("update", "--now")

        done = box.ctl("rollback", MODEL)

        assert done.returncode == 1
        assert done.stderr.startswith("inferctl rollback: ")
        assert box.model()["current_version"] == 1

    def test_a_model_that_no_update_brought_is_refused(self, quiet):
        done = quiet.ctl("rollback", "digits")

        assert done.returncode == 1
        assert "no update of a model 'digits' is known here" in done.stderr


class TestQuarantine:
    @pytest.fixture
    def failed(self, updated):
        updated.publisher.ship(3, NAN, probation=QUICK)
        updated.ctl("update", "--now")
        return updated

    def test_it_lists_what_has_failed_and_why(self, failed):
        done = failed.ctl("quarantine", "list")

        (case,) = failed.updater.quarantine()["bundles"]
        assert case["digest"][:12] in done.stdout
        assert "NaN" in done.stdout

    def test_json_has_whole_digests(self, failed):
        done = failed.ctl("quarantine", "list", "--json")

        (case,) = json.loads(done.stdout)["bundles"]
        assert (len(case["digest"]), case["model"], case["version"]) == (64, MODEL, 3)

    def test_clearing_by_a_beginning_lets_it_be_tried_again(self, failed):
        (case,) = failed.updater.quarantine()["bundles"]

        done = failed.ctl("quarantine", "clear", case["digest"][:8].upper())

        assert (done.returncode, done.stdout) == (0, f"{MODEL} version 3 may be tried again\n")
        wait_until(lambda: failed.updater.quarantine()["bundles"])  # it has failed again

    def test_a_digest_that_is_not_there_changes_nothing_and_says_the_nearest(self, failed):
        (case,) = failed.updater.quarantine()["bundles"]
        digest = case["digest"]
        other = ("0" if digest[7] != "0" else "1").join((digest[:7], ""))

        done = failed.ctl("quarantine", "clear", other)

        assert done.returncode == 1
        assert f"did you mean {digest[:8]}?" in done.stderr
        assert failed.updater.quarantine()["bundles"]

    def test_an_empty_one_says_so(self, quiet):
        assert quiet.ctl("quarantine", "list").stdout == "no bundle is in quarantine\n"

    def test_clearing_an_empty_one_is_no_failure(self, quiet):
        done = quiet.ctl("quarantine", "clear", "--all")

        assert (done.returncode, done.stdout) == (0, "no bundle was in quarantine\n")


class TestImport:
    @pytest.fixture
    def stick(self, box, tmp_path):
        """With version 1, for a box whose server is gone."""
        box.publisher.ship(1, good(1), probation=QUICK)
        folder = tmp_path / "usb"
        export(box.fleet.repository, folder, now=time.time(), life_s=86_400.0, models=None)
        box.server.answer("", b"gone", status=503)
        return folder

    def test_a_stick_brings_in_what_it_holds(self, box, stick):
        done = box.ctl("import", stick)

        assert done.returncode == 0, done.stdout + done.stderr
        assert f"it is for this device: {MODEL} version 1" in done.stdout
        assert done.stdout.endswith(f"up to date: {MODEL} version 1\n")
        assert box.model()["current_version"] == 1

    def test_the_folder_above_the_stick_gets_the_right_one_suggested(self, box, stick):
        done = box.ctl("import", stick.parent)

        assert done.returncode == 2
        assert f"did you mean {stick}?" in done.stderr

    def test_a_stick_that_somebody_else_signed_is_refused(self, box, stick):
        timestamp = stick / "metadata" / "timestamp.json"
        document = json.loads(timestamp.read_text())
        document["signed"]["version"] += 1
        timestamp.write_text(json.dumps(document))

        done = box.ctl("import", stick)

        assert done.returncode == 1
        assert done.stderr.startswith("inferctl import: ")
        assert box.updater.status()["models"] == []

    def test_a_folder_that_is_not_there_is_a_usage_error(self, quiet, tmp_path):
        done = quiet.ctl("import", tmp_path / "none")

        assert done.returncode == 2
        assert "argument PATH: no such folder" in done.stderr


class TestStatus:
    def test_it_says_what_is_under_way(self, box):
        box.publisher.ship(1, good(1), probation=ENDLESS)
        box.ctl("update", "--now")
        report = lambda: json.loads(box.ctl("status", "--json").stdout)["updates"]  # noqa: E731
        wait_until(lambda: [m["state"] for m in report().get("models", [])] == ["PROBATION"])

        text = box.ctl("status").stdout

        assert "updates" in text
        assert "version 1 probation" in text


VERBS = (
    "update",
    "update --now",
    "history",
    f"rollback {MODEL}",
    "quarantine list",
    "quarantine clear --all",
)


@pytest.mark.parametrize("verb", VERBS)
def test_without_the_updater_every_verb_says_what_to_look_at(quiet, verb, tmp_path):
    done = quiet.ctl(*verb.split(), "--updater", tmp_path / "none.sock")

    assert done.returncode == ExitCode.UNREACHABLE
    assert done.stdout == ""
    assert "no answer from unix:" in done.stderr
    assert "systemctl status inferd-updater" in done.stderr


def test_reading_verbs_start_without_the_server_libraries():
    """They would take longer to import than a request takes."""
    heavy = "{'aiohttp', 'cryptography', 'msgspec', 'numpy', 'orjson', 'paho', 'tuf', 'uvloop'}"
    program = (
        "import sys; from daemon.cli.main import main\n"
        "codes = [int(main([*verb.split(), '--updater', '/n'])) for verb in sys.argv[1:]]\n"
        f"print(codes, {heavy} & set(sys.modules))"
    )

    done = run_python(program, *VERBS)

    assert done.stdout == f"{[69] * len(VERBS)} set()\n"


def closed_window(desired):
    """Devices may change in a minute that is twelve hours away."""
    far = time.strftime("%H:%M", time.localtime(time.time() + 43_200))
    end = time.strftime("%H:%M", time.localtime(time.time() + 43_260))
    return set_windows(desired, [parse_window(f"mon-sun {far}-{end}", {})], labels={})
