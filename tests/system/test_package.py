"""Installing, serving, upgrading, removing: with apt, from a signed repository, under systemd."""

from __future__ import annotations

import json
import subprocess

from support import tflite_builder

FILES = "find / -xdev \\( -path /proc -o -path /sys -o -path /drop \\) -prune -o -print | sort"
# What apt and systemd keep for themselves, whatever package comes and goes.
NOT_OURS = (
    "/var/lib/apt/",
    "/var/cache/",
    "/var/lib/dpkg/",
    "/var/log/",
    "/run/systemd/",
    "/run/udev/",
    "/run/log/",
    "/var/lib/systemd/",
    "/var/tmp/",
    "/tmp/",
)


def test_after_apt_install_it_runs_and_answers(bought):
    units = ("inferd", "inferd-updater", "inferd.socket")

    assert [bought.ask("systemctl", "is-active", unit) for unit in units] == ["active"] * 3
    assert bought.predict("double", 1, 2, 3, 4) == [2, 4, 6, 8]
    assert "ready    yes" in bought.ask("inferctl", "status")
    assert bought.ask("systemctl", "is-system-running") == "running"


def test_it_answers_over_mqtt_with_mosquitto_beside_it(appliance):
    appliance.write("/etc/inferd/conf.d/mqtt.toml", '[mqtt]\nurl = "mqtt://127.0.0.1"\n')
    appliance.run("systemctl", "start", "mosquitto")
    appliance.run("systemctl", "restart", "inferd")
    appliance.wait_until_ready("double")
    appliance.sh(
        "timeout 30 mosquitto_sub -h 127.0.0.1 -t 'inferd/+/availability' -C 1 | grep -q online"
    )
    inputs = [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
    request = json.dumps({"id": "1", "inputs": inputs})
    appliance.write("/tmp/request", request)
    device = appliance.ask("hostname")

    answer = appliance.sh(
        "mosquitto_sub -h 127.0.0.1 -t answers -C 1 -W 20 > /tmp/answer & listening=$!; sleep 1; "
        f"mosquitto_pub -h 127.0.0.1 -V 5 -t inferd/{device}/models/double/predict -f /tmp/request "
        "-D publish response-topic answers; wait $listening; cat /tmp/answer"
    )

    assert json.loads(answer)["outputs"][0]["data"] == [2, 4, 6, 8]


def test_a_package_that_was_changed_on_its_way_is_refused(bare, packages):
    (package,) = (packages.folder / "apt/pool").rglob("*.deb")
    raw = bytearray(package.read_bytes())
    raw[len(raw) // 2] ^= 1
    package.write_bytes(raw)

    done = bare.run("sh", "-c", "apt-get -q update && apt-get -q install -y inferd", check=False)

    assert done.returncode != 0
    assert bare.run("dpkg", "-s", "inferd", check=False).returncode != 0


def test_a_repository_that_somebody_else_signed_is_refused(bare, packages, tmp_path):
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    key = ("--quick-generate-key", "other@inferd.invalid", "ed25519", "sign", "2d")
    gpg = ("gpg", "--homedir", str(other), "--batch", "--quiet")
    subprocess.run((*gpg, "--passphrase", "", *key), check=True)
    release = packages.folder / "apt/dists/bookworm/InRelease"
    plain = packages.folder / "apt/dists/bookworm/Release"
    signing = ("--yes", "--clearsign", "--output", str(release), str(plain))
    subprocess.run((*gpg, *signing), check=True)

    done = bare.run("apt-get", "-q", "update", check=False)

    assert "NO_PUBKEY" in done.stdout + done.stderr


def test_an_upgrade_under_load_loses_no_request_and_keeps_what_the_operator_made(bought, packages):
    bought.sh("sed -i 's/^keepalive_s = 30/keepalive_s = 31/' /etc/inferd/inferd.toml")
    bought.write("/etc/inferd/conf.d/site.toml", '[device]\nid = "press-7"\n')
    before = bought.ask("systemctl", "show", "-P", "MainPID", "inferd")
    packages.publish(packages.second)
    bought.write("/load.py", LOAD)
    bought.run("systemd-run", "--quiet", "--unit=load", "python3", "/load.py")
    bought.wait_for("test $(wc -l < /answers) -gt 200")

    keep = "-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
    bought.sh(f"apt-get -q update && apt-get -q -y {keep} upgrade")
    bought.wait_until_ready("double")
    seen = int(bought.ask("sh", "-c", "wc -l < /answers"))
    bought.wait_for(f"test $(wc -l < /answers) -gt {seen + 200}")
    bought.sh("systemctl stop load")

    assert "+next" in bought.ask("dpkg-query", "-W", "-f", "${Version}", "inferd")
    assert bought.ask("systemctl", "show", "-P", "MainPID", "inferd") != before
    assert set(bought.ask("sh", "-c", "sort -u /answers").split("\n")) == {"200"}
    assert "keepalive_s = 31" in bought.ask("cat", "/etc/inferd/inferd.toml")
    assert "press-7" in bought.ask("inferctl", "status")
    assert bought.predict("double", 1, 2, 3, 4) == [2, 4, 6, 8]


def test_a_purge_leaves_no_file_and_no_process(bare):
    bare.sh("apt-get -q update")
    before = set(bare.sh(FILES).splitlines())
    bare.sh("apt-get -q install -y --no-install-recommends inferd")
    bare.put_model("double", tflite_builder.scale(2.0, batch=1))
    bare.wait_until_ready("double")

    bare.sh("apt-get -q purge -y inferd")

    left = [
        path
        for path in sorted(set(bare.sh(FILES).splitlines()) - before)
        if not path.startswith(NOT_OURS)
    ]
    # Debian keeps the users that a package made, so that no other one gets their files.
    assert [path for path in left if path not in {"/etc/passwd-", "/etc/group-"}] == []
    assert bare.ask("pgrep", "-af", "/usr/bin/inferd") == ""
    assert bare.ask("systemctl", "list-units", "--all", "--plain", "--no-legend", "inferd*") == ""


LOAD = """
import http.client, time

def ask(connection):
    connection.request("GET", "/v2/models/double/ready")
    answer = connection.getresponse()
    answer.read()
    return answer

kept = http.client.HTTPConnection("127.0.0.1", 8080, timeout=60)
with open("/answers", "w", buffering=1) as file:
    while True:
        for connection in (kept, http.client.HTTPConnection("127.0.0.1", 8080, timeout=60)):
            try:
                answer = ask(connection)
                file.write(f"{answer.status}\\n")
                if answer.getheader("Connection") == "close":
                    connection.close()
            except OSError as exc:
                file.write(f"{type(exc).__name__} kept={connection is kept}\\n")
                connection.close()
        time.sleep(0.005)
"""
