"""`inferctl bench` as a person runs it. What is fastest here depends on no clock: it is forced."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess

import psutil
import pytest
from support import tflite_builder as build
from support.daemon import running_daemon
from support.inferctl import COMMAND, ENVIRONMENT, TIMEOUT_S, inferctl

from daemon.cli.arguments import parse
from daemon.errors import ConfigError
from daemon.modelfile import parse_model_file

QUICK = ("--seconds", "0.05")
NOBODY = "unix:/nobody"
PATIENT = "# ours\n[batching]\nmax_delay_ms = 50 # far too long\n"
"""A request that is alone waits for 50 ms: any other setting has a shorter median."""


def bench(*arguments):
    return inferctl("bench", *arguments, *QUICK, "--url", NOBODY)


def report_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def model(tmp_path):
    """A model's folder whose present setting is as bad as can be."""
    folder = tmp_path / "dense"
    folder.mkdir()
    (folder / "model.tflite").write_bytes(build.mlp())
    (folder / "model.toml").write_text(PATIENT)
    return folder


def test_the_demo_model_is_measured_with_its_own_samples(demo_model):
    listed = ("--instances", "1,2", "--threads", "1", "--batch", "1,8")

    report = report_of(bench(demo_model, *listed, "--json"))

    settings = {(each["instances"], each["max_size"]) for each in report["settings"]}
    assert settings >= {(1, 8), (2, 8), (1, 1)}
    assert {each["outcome"] for each in report["settings"]} == {"measured"}
    assert all(each["memory_bytes"] > 0 for each in report["settings"])
    assert report["asked"].startswith("10 samples of its folder, uint8 [1, 28, 28, 1]")


def test_the_table_begins_with_the_present_setting_and_marks_the_best(demo_model):
    done = bench(demo_model, "--instances", "1", "--threads", "1", "--batch", "1,8")

    lines = done.stdout.splitlines()
    head = next(number for number, line in enumerate(lines) if "INSTANCES" in line)
    (best,) = (line for line in lines if line.startswith("*"))
    assert "present" in lines[head + 1]
    assert "best" in best


def test_the_time_it_takes_is_told_before_it_begins(demo_model):
    done = bench(demo_model, "--goal", "latency", "--threads", "1")

    assert "measuring fashion: at most 1 setting of 0.05 s each" in done.stderr


def test_a_short_run_says_that_its_figures_scatter(demo_model):
    assert "0.05 s a setting is short" in bench(demo_model, "--threads", "1").stdout


def test_the_best_setting_is_offered_with_the_lines_to_write(model):
    done = bench(model, "--goal", "latency", "--threads", "1")

    assert done.returncode == 0, done.stderr
    assert "Best is 1 instance x 1 thread, batches up to 8: p50 " in done.stdout
    offer = f"--apply writes it into {model}/model.toml:\n\n[batching]\nmax_delay_ms = 0.0\n"
    assert done.stdout.endswith(offer)
    assert (model / "model.toml").read_text() == PATIENT


def test_apply_writes_the_best_setting_and_nothing_else(model):
    done = bench(model, "--goal", "latency", "--threads", "1", "--apply")

    assert done.returncode == 0, done.stderr
    assert (model / "model.toml").read_text() == PATIENT.replace("= 50 ", "= 0.0 ")
    assert f"Written into {model}/model.toml." in done.stdout


def test_apply_without_a_daemon_says_when_it_takes_effect(model):
    report = report_of(bench(model, "--goal", "latency", "--threads", "1", "--apply", "--json"))

    assert report["applied"] == f"{model}/model.toml"
    assert report["changes"] == {"batching": {"max_delay_ms": 0.0}}
    assert "No daemon answers at unix:/nobody" in report["told"][1]
    assert "models.poll_interval_s" in report["told"][1]


def test_a_setting_that_is_the_best_already_is_not_written(demo_model, tmp_path):
    copy = shutil.copytree(demo_model, tmp_path / "fashion")
    before = (copy / "model.toml").stat()

    done = bench(copy, "--goal", "latency", "--threads", "1", "--apply")

    assert done.returncode == 0
    assert done.stdout.endswith("Nothing was written.\n")
    assert (copy / "model.toml").stat().st_mtime_ns == before.st_mtime_ns


async def test_a_daemon_takes_the_setting_up_at_once(model):
    async with running_daemon([model]) as daemon:
        arguments = ("--goal", "latency", "--threads", "1", "--apply", "--url", daemon.url)

        done = await asyncio.to_thread(inferctl, "bench", model, *arguments, *QUICK)

        assert f"The daemon at {daemon.url} has taken it up for dense." in done.stdout
        assert daemon.registry.find("dense", None, None).settings.max_delay_s == 0.0


async def test_a_daemon_that_serves_other_files_is_left_alone(model, demo_model):
    async with running_daemon([demo_model]) as daemon:
        arguments = ("--goal", "latency", "--threads", "1", "--apply", "--url", daemon.url)

        done = await asyncio.to_thread(inferctl, "bench", model, *arguments, *QUICK)

    assert done.returncode == 0, done.stderr
    assert "does not serve this file" in done.stdout


async def test_a_model_that_only_the_daemon_knows_is_asked_for_by_its_path(demo_model):
    async with running_daemon([demo_model]) as daemon:
        done = await asyncio.to_thread(inferctl, "bench", "fashion", "--url", daemon.url)

    assert done.returncode == 2
    assert "give its path, or its --config" in done.stderr


def test_a_model_is_found_by_its_name_in_a_configuration(model, tmp_path):
    config = tmp_path / "inferd.toml"
    config.write_text(f"[models]\nfolders = ['{tmp_path}']\n")

    done = bench("dense", "--config", config, "--threads", "1", "--goal", "latency", "--json")

    assert report_of(done)["path"] == str(model / "model.tflite")


def test_a_mistyped_model_is_a_usage_error_that_says_what_to_do():
    done = bench("fashon")

    assert done.returncode == 2
    assert "argument MODEL: 'fashon' is no path, and no model of the configuration" in done.stderr
    assert "give the path of a .tflite file or of a model's folder" in done.stderr


def test_a_bad_configuration_is_told_as_such(model, tmp_path):
    (tmp_path / "inferd.toml").write_text("[defaults]\nthreds = 1\n")

    done = bench(model, "--config", tmp_path / "inferd.toml")

    assert done.returncode == 78
    assert "did you mean 'threads'" in done.stderr


def test_more_requests_than_the_queue_holds_are_a_usage_error(model):
    (model / "model.toml").write_text("[limits]\nqueue = 4\n")

    done = bench(model, "--clients", "5")

    assert done.returncode == 2
    assert "argument --clients: '5': expected at most 4" in done.stderr


@pytest.mark.parametrize("damage", [b"no model at all", b""])
def test_a_model_that_cannot_be_served_is_refused(model, damage):
    (model / "model.tflite").write_bytes(damage)

    done = bench(model)

    assert done.returncode == 1
    assert "inferctl bench: the model cannot be served: " in done.stderr
    assert done.stdout == ""


def test_a_model_toml_that_does_not_fit_the_model_is_refused(model):
    (model / "model.toml").write_text("[input]\nkind = 'image'\n")

    done = bench(model)

    assert done.returncode == 1
    assert "model.toml does not fit the model" in done.stderr


def test_apply_to_a_lone_file_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "dense.tflite").write_bytes(build.mlp())

    done = bench(tmp_path / "dense.tflite", "--apply")

    assert done.returncode == 1
    assert done.stdout == ""
    assert "dense.tflite is a lone file" in done.stderr
    assert "measuring" not in done.stderr


def test_apply_to_a_release_is_refused_before_anything_is_measured(model, tmp_path):
    release = tmp_path / "store" / "dense" / ("0" * 64)
    shutil.copytree(model, release)

    done = bench(release, "--apply")

    assert done.returncode == 1
    assert "what is in a release is never changed" in done.stderr
    assert (release / "model.toml").read_text() == PATIENT


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_apply_into_a_folder_one_may_not_write_is_refused_before_anything_is_measured(model):
    model.chmod(0o555)

    done = bench(model, "--apply")

    assert done.returncode == 1
    assert "you may not write into" in done.stderr


def test_a_stateful_model_has_one_instance(tmp_path):
    (tmp_path / "sum.tflite").write_bytes(build.accumulator())

    report = report_of(bench(tmp_path / "sum.tflite", "--json"))

    assert {each["instances"] for each in report["settings"]} == {1}
    assert (
        "the model keeps state between calls: it has one instance and no batches"
        in (report["notes"])
    )


def test_settings_over_the_models_own_memory_bound_are_refused_with_the_figures(model):
    (model / "model.toml").write_text("[health]\nmax_memory_mib = 1\n")

    done = bench(model)

    assert done.returncode == 1
    assert "too much memory: a worker takes " in done.stdout
    assert "and health.max_memory_mib is 1 MiB" in done.stdout
    assert done.stdout.endswith("Nothing could be measured.\n")


def test_a_model_whose_sizes_callers_choose_is_asked_with_one_it_answers(tmp_path):
    (tmp_path / "free.tflite").write_bytes(build.free_picture())

    report = report_of(bench(tmp_path / "free.tflite", "--threads", "1", "--json"))

    assert report["asked"] == "random numbers, float32 [1, 1, 1, 3]"


def test_a_run_broken_off_by_control_c_leaves_no_process(model):
    with subprocess.Popen(
        [*COMMAND, "bench", model, "--seconds", "60", "--url", NOBODY],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert any(line.startswith("measuring dense") for line in process.stderr)
        children = psutil.Process(process.pid).children(recursive=True)

        process.send_signal(signal.SIGINT)

        assert process.wait(TIMEOUT_S) == 130
    assert children
    assert psutil.wait_procs(children, TIMEOUT_S)[1] == []


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "asked"),
    [
        ("mobilenet_v2_1.0_224_quant", "uint8 [1, 224, 224, 3]"),
        ("coco_ssd_mobilenet_v1_quant_meta", "uint8 [1, 300, 300, 3]"),
        ("yamnet_classifier_meta", "float32 [15600]"),
        ("gather_string", "object [10], int64 [3]"),
    ],
)
def test_real_models_are_measured(shared_models, file, asked):
    done = bench(shared_models / "models" / f"{file}.tflite", "--goal", "latency", "--json")

    report = report_of(done)
    assert report["asked"] == f"random numbers, {asked}"
    assert report["best"] in [
        {key: each[key] for key in report["best"]} for each in report["settings"]
    ]


@pytest.mark.parametrize(
    "option",
    [
        "--goal=speed",
        "--seconds=0",
        "--seconds=nan",
        "--seconds=601",
        "--clients=0",
        "--instances=0",
        "--instances=65",
        "--threads=1,,2",
        "--batch=257",
        "--batch=1,2,3,4,5,6,7,8,9",
    ],
)
def test_a_value_that_cannot_be_tried_is_a_usage_error(option, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(["bench", "m", option])

    assert exit_info.value.code == 2
    assert f"error: argument {option.partition('=')[0]}: " in capsys.readouterr().err


def test_as_much_may_be_tried_as_a_model_toml_takes():
    text = "[placement]\ninstances = 64\nthreads = 64\n[batching]\nmax_size = 256\n"
    tables = parse_model_file(text)

    arguments = parse(["bench", "m", "--instances=64", "--threads=64", "--batch=256"])

    assert arguments.instances == (tables.placement.instances,)
    assert arguments.threads == (tables.placement.threads,)
    assert arguments.batch == (tables.batching.max_size,)
    for number in ("64", "256"):
        with pytest.raises(ConfigError):
            parse_model_file(text.replace(number, str(int(number) + 1)))
