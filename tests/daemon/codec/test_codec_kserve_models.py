"""Models are described as KServe v2 and Triton clients expect it."""

from __future__ import annotations

from support.kserve_views import make_view, tensor

from accelerators.base import DataType
from daemon.codec.kserve_models import (
    describe_config,
    describe_model,
    describe_repository,
    describe_server,
    describe_statistics,
)
from daemon.models.status import ModelStatus, Tally, VersionState, VersionStatistics, VersionStatus

ROWS = [tensor("x", shape=(-1, 3))]
SCORES = [tensor("y", shape=(-1, 2))]


def metadata(view):
    signature = next(iter(view.signatures.values()))
    return describe_model("m", [2, 10, 1], view.report, signature)


def config(view):
    return describe_config("m", [1], view.report, view.signatures)


def test_the_server_announces_only_what_is_offered():
    document = describe_server("1.2.3")

    assert document["name"] == "inferd"
    assert document["version"] == "1.2.3"
    assert "binary_tensor_data" in document["extensions"]
    assert "system_shared_memory" not in document["extensions"]


def test_versions_are_texts_in_numeric_order():
    assert metadata(make_view())["versions"] == ["1", "2", "10"]


def test_tensors_are_described_with_free_dimensions_as_minus_one():
    view = make_view([tensor("x", DataType.INT64, (-1, 3))], [tensor("y", DataType.BYTES, (2,))])

    document = metadata(view)

    assert document["inputs"] == [{"name": "x", "datatype": "INT64", "shape": (-1, 3)}]
    assert document["outputs"] == [{"name": "y", "datatype": "BYTES", "shape": (2,)}]


def test_a_fixed_first_dimension_is_free_when_batching_is_proven():
    assert metadata(make_view(max_batch=4))["inputs"][0]["shape"] == (-1, 3)
    assert metadata(make_view(max_batch=1))["inputs"][0]["shape"] == (1, 3)


def test_the_configuration_leaves_out_the_batch_dimension_when_batching_is_proven():
    document = config(make_view(ROWS, SCORES, max_batch=8))

    assert document["max_batch_size"] == 8
    assert document["input"][0]["dims"] == (3,)
    assert document["output"][0]["dims"] == (2,)
    assert document["dynamic_batching"] == {}


def test_the_configuration_keeps_all_dimensions_when_batching_is_not_proven():
    document = config(make_view(ROWS, SCORES, max_batch=1))

    assert document["max_batch_size"] == 0
    assert document["input"][0]["dims"] == (-1, 3)
    assert "dynamic_batching" not in document


def test_a_model_with_an_output_without_rows_has_no_batch_size():
    assert config(make_view(ROWS, [tensor("y", shape=())], max_batch=8))["max_batch_size"] == 0


def test_datatypes_have_their_configuration_names():
    view = make_view([tensor("x", DataType.BYTES, (1,))], [tensor("y", DataType.UINT8, (1,))])

    document = config(view)

    assert document["input"][0]["data_type"] == "TYPE_STRING"
    assert document["output"][0]["data_type"] == "TYPE_UINT8"


def test_statistics_count_rows_and_invocations_and_no_cache():
    statistics = VersionStatistics(
        inferences=5,
        executions=2,
        last_inference_ms=1234,
        success=Tally(2, 900),
        queue=Tally(2, 100),
        batches={4: (Tally(1, 1), Tally(1, 2), Tally(1, 3))},
    )

    document = describe_statistics("m", 3, statistics, 4096)

    assert document["version"] == "3"
    assert document["inference_count"] == 5
    assert document["execution_count"] == 2
    assert document["inference_stats"]["success"] == {"count": 2, "ns": 900}
    assert document["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    assert document["batch_stats"] == [
        {
            "batch_size": 4,
            "compute_input": {"count": 1, "ns": 1},
            "compute_infer": {"count": 1, "ns": 2},
            "compute_output": {"count": 1, "ns": 3},
        }
    ]
    assert document["memory_usage"] == [{"type": "CPU", "id": 0, "byte_size": 4096}]


BROKEN = VersionStatus(1, VersionState.UNAVAILABLE, "parse: not a model")
READY = VersionStatus(2, VersionState.READY)


def test_the_index_lists_every_version_with_its_state_oldest_first():
    entries = describe_repository([ModelStatus("m", (READY, BROKEN))], only_ready=False)

    assert entries == [
        {"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "parse: not a model"},
        {"name": "m", "version": "2", "state": "READY", "reason": ""},
    ]


def test_the_index_of_ready_models_leaves_out_the_others():
    models = [ModelStatus("m", (READY, BROKEN)), ModelStatus("n", (BROKEN,))]

    assert [(e["name"], e["version"]) for e in describe_repository(models, only_ready=True)] == [
        ("m", "2")
    ]


def test_a_model_without_versions_stays_listed():
    (entry,) = describe_repository([ModelStatus("m", (), wanted=False)], only_ready=False)

    assert entry == {"name": "m", "state": "UNAVAILABLE", "reason": "unloaded"}
