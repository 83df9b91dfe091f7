"""The units under systemd: what dies comes back, a full or read-only disk is survived."""

from __future__ import annotations

import json

import pytest
from support import tflite_builder
from support.machine import Machine

SERVICE = "/etc/systemd/system/inferd.service.d"


def main_pid(box, unit="inferd") -> int:
    return int(box.ask("systemctl", "show", "-P", "MainPID", unit))


def test_after_a_kill_it_is_back_and_ready(appliance):
    before = main_pid(appliance)

    appliance.run("kill", "-9", str(before))

    # Nobody is refused meanwhile: the socket is systemd's.
    assert appliance.predict("double", 1, 2, 3, 4) == [2, 4, 6, 8]
    assert main_pid(appliance) != before
    appliance.wait_for("systemctl is-active -q inferd")


def test_a_daemon_that_hangs_is_started_anew(appliance):
    appliance.run("mkdir", "-p", SERVICE)
    appliance.write(
        f"{SERVICE}/soon.conf", "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\nTimeoutStopSec=1\n"
    )
    appliance.sh("systemctl daemon-reload && systemctl restart inferd")
    before = main_pid(appliance)

    appliance.run("kill", "-STOP", str(before))
    appliance.wait_for(f"test $(systemctl show -P MainPID inferd) -gt {before}")

    appliance.wait_until_ready("double")
    assert "Watchdog timeout" in appliance.ask("journalctl", "-u", "inferd", "--no-pager")


def test_after_many_crashes_it_is_still_started(appliance):
    for _ in range(8):
        appliance.wait_for("test $(systemctl show -P MainPID inferd) -gt 0")
        appliance.run("kill", "-9", str(main_pid(appliance)))

    assert appliance.predict("double", 1, 2, 3, 4) == [2, 4, 6, 8]


def test_a_worker_that_takes_too_much_memory_dies_alone(appliance):
    before = main_pid(appliance)
    appliance.put_model("hog", tflite_builder.hog(512), "[limits]\nmemory_mib = 128\n")
    appliance.wait_for("inferctl models | grep hog | grep -q -i unavailable")

    assert appliance.predict("double", 1, 2, 3, 4) == [2, 4, 6, 8]
    assert main_pid(appliance) == before


def test_on_a_full_disk_it_serves_and_starts(appliance):
    appliance.sh("dd if=/dev/zero of=/var/filler bs=1M count=100000 2>/dev/null || true")
    assert appliance.run("sh", "-c", "echo x > /var/lib/x", check=False).returncode != 0

    assert appliance.predict("double", 1, 2, 3, 4) == [2, 4, 6, 8]
    appliance.run("systemctl", "restart", "inferd", "inferd-updater")
    assert appliance.predict("double", 4, 3, 2, 1) == [8, 6, 4, 2]
    assert appliance.ask("systemctl", "is-active", "inferd-updater") == "active"


def test_with_a_read_only_root_it_serves(installed):
    """State lies only in the declared folders; those are on another, writable file system."""
    state = ("/var/lib/inferd", "/var/lib/inferd-updater", "/var/log", "/var/tmp")
    options = ("--read-only", *(f"--tmpfs={folder}" for folder in state))
    with Machine(installed, options=options).running() as box:
        assert box.run("touch", "/etc/x", check=False).returncode != 0
        box.run("systemd-tmpfiles", "--create", "inferd.conf")  # as a boot does, once it is mounted
        box.run("systemctl", "restart", "inferd", "inferd-updater")

        box.put_model("double", tflite_builder.scale(2.0, batch=1))
        box.wait_until_ready("double")

        assert box.predict("double", 1, 2, 3, 4) == [2, 4, 6, 8]
        assert box.ask("systemctl", "is-active", "inferd-updater") == "active"


@pytest.mark.parametrize("unit", ["inferd", "inferd-updater"])
def test_nobody_gains_a_privilege(shared_appliance, unit):
    status = f"/proc/{main_pid(shared_appliance, unit)}/status"
    facts = dict(line.split(":\t", 1) for line in shared_appliance.ask("cat", status).splitlines())

    assert facts["NoNewPrivs"] == "1"
    assert {facts[key] for key in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert facts["Seccomp"] == "2"
    assert "0" not in facts["Uid"].split()


@pytest.mark.parametrize(
    ("unit", "forbidden"),
    [
        ("inferd", "touch /var/lib/inferd/store/x"),
        ("inferd", "touch /var/lib/inferd/models/x"),
        ("inferd", "mv /var/lib/inferd/store /var/lib/inferd/gone"),
        ("inferd", "ls /var/lib/inferd-updater"),
        ("inferd", "touch /etc/inferd/x"),
        ("inferd", "rm /run/inferd/updater.sock"),
        ("inferd-updater", "ls /var/lib/inferd/outbox"),
        ("inferd-updater", "touch /etc/inferd/x"),
        ("inferd-updater", "rm /run/inferd/inferd.sock"),
        ("inferd-updater", "cat /etc/shadow"),
    ],
)
def test_each_writes_and_reads_what_is_its_own_and_no_more(shared_appliance, unit, forbidden):
    assert as_service(shared_appliance, unit, "true").returncode == 0

    refused = as_service(shared_appliance, unit, forbidden)

    assert refused.returncode != 0
    assert any(word in refused.stderr for word in ("denied", "not permitted", "Read-only"))


@pytest.mark.parametrize("unit", ["inferd", "inferd-updater"])
def test_a_service_cannot_become_root(shared_appliance, unit):
    shared_appliance.sh("cp /usr/bin/id /usr/bin/id-of-root && chmod 4755 /usr/bin/id-of-root")

    assert "euid=0" not in as_service(shared_appliance, unit, "id-of-root").stdout


def test_the_journal_has_fields(appliance):
    lines = appliance.ask("journalctl", "-u", "inferd", "MODEL=double", "-o", "json")
    (line,) = [json.loads(each) for each in lines.splitlines() if "model ready" in each]

    assert (line["VERSION"], line["DEVICE"], line["PRIORITY"]) == ("1", "cpu", "6")
    assert line["SYSLOG_IDENTIFIER"] == "inferd"


def test_tokens_are_asked_for_and_the_updater_cannot_read_them(appliance):
    token = appliance.sh("inferctl token create line-3 2>/dev/null")
    conf = '[http]\ntokens_file = "etc/inferd/tokens.toml"\n'
    appliance.write("/etc/inferd/conf.d/tokens.toml", conf)
    appliance.run("systemctl", "restart", "inferd")
    appliance.wait_for("inferctl models | grep -q READY")  # by the unix socket, as root
    ask = "curl -s -o /dev/null -w %{http_code} -d '{}' http://127.0.0.1:8080/api/models/double/predict"

    assert appliance.sh(ask) == "401"
    assert appliance.sh(f"{ask} -H 'Authorization: Bearer {token}'") != "401"
    assert as_service(appliance, "inferd", "cat /etc/inferd/tokens.toml").returncode == 0
    assert as_service(appliance, "inferd-updater", "cat /etc/inferd/tokens.toml").returncode != 0


def test_a_credential_of_the_unit_is_read(appliance):
    appliance.sh("inferctl token create line-3 --file /root/tokens.toml >/dev/null 2>&1")
    appliance.run("mkdir", "-p", SERVICE)
    unit = "[Service]\nLoadCredential=tokens:/root/tokens.toml\n"
    appliance.write(f"{SERVICE}/tokens.conf", unit)
    conf = '[http]\ntokens_file = "$CREDENTIALS_DIRECTORY/tokens"\n'
    appliance.write("/etc/inferd/conf.d/tokens.toml", conf)
    appliance.sh("systemctl daemon-reload && systemctl restart inferd")

    assert (
        appliance.sh("curl -s -o /dev/null -w %{http_code} http://127.0.0.1:8080/api/models")
        == "401"
    )


def test_sandbox_figures_are_as_the_docs_say(shared_appliance, repository):
    docs = (repository / "docs/security.md").read_text()
    for unit in ("inferd", "inferd-updater"):
        report = shared_appliance.ask("systemd-analyze", "security", unit, "--no-pager")
        exposure = report.splitlines()[-1].split("service: ")[1].split()[0]

        assert f"`{unit}.service`: {exposure}" in docs


@pytest.fixture(scope="module")
def shared_appliance(installed):
    """For tests that change nothing another one sees."""
    with Machine(installed).running() as box:
        box.wait_for("systemctl is-active -q inferd inferd-updater")
        yield box


def as_service(box, unit, command):
    """Run a command where the service is: its user, its view of the file system, its limits."""
    pid = main_pid(box, unit)
    user = ("setpriv", f"--reuid={unit}", f"--regid={unit}", "--init-groups", "--no-new-privs")
    inside = ("nsenter", "-t", str(pid), "-m", "--", *user, "--bounding-set=-all")
    return box.run(*inside, "sh", "-c", command, check=False)
