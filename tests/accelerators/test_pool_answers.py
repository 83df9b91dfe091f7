"""A pool's answers are the model's own, whatever kind of tensors it has."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from ai_edge_litert.interpreter import Interpreter
from support import tflite_builder as models

from accelerators.base import DataType
from accelerators.errors import InvokeFailed


def reference(model: bytes, x: np.ndarray) -> np.ndarray:
    """What the runtime itself says."""
    interpreter = Interpreter(model_content=model)
    index = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(index, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(index, x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


async def test_answer_equals_the_runtimes_own(open_pool):
    model = models.mlp((8, 16, 4))
    x = np.random.default_rng(1).random((1, 8), np.float32)
    bench = await open_pool(model)

    outputs = await bench.call(x=x)

    np.testing.assert_array_equal(outputs["probabilities"], reference(model, x))


async def test_report_describes_the_file(open_pool, save):
    model = models.mlp((8, 4))
    bench = await open_pool(model)

    report = bench.pool.report
    signature = report.signatures[0]

    assert report.digest == hashlib.sha256(model).hexdigest()
    assert report.runtime.startswith("litert ")
    assert (report.device, report.requested_device, report.degraded) == ("cpu", "cpu", False)
    assert (signature.name, signature.inputs[0].name) == ("serving_default", "x")
    assert (signature.inputs[0].shape, signature.inputs[0].datatype) == ((-1, 8), DataType.FP32)
    assert signature.outputs[0].shape == (-1, 4)
    assert not report.stateful
    assert report.memory_bytes > 0
    assert report.load_s > 0
    assert report.warm_s > 0


async def test_tensor_names_are_cut_where_the_file_has_no_signature(open_pool):
    bench = await open_pool(models.mlp((8, 4), signature=None))

    signature = bench.pool.report.signatures[0]

    assert signature.name == "serving_default"
    assert signature.inputs[0].name == "serving_default_x"
    assert signature.outputs[0].name == "StatefulPartitionedCall"


async def test_rows_change_from_call_to_call(open_pool):
    model = models.mlp((8, 16, 4))
    rng = np.random.default_rng(2)
    bench = await open_pool(model)
    rows = [rng.random((count, 8), np.float32) for count in (1, 5, 2, 8, 1, 64, 1)]

    answers = [(await bench.call(x=x))["probabilities"] for x in rows]

    for x, answer in zip(rows, answers, strict=True):
        np.testing.assert_allclose(answer, reference(model, x), rtol=1e-5)


async def test_every_dimension_the_file_leaves_open_may_change(open_pool):
    bench = await open_pool(models.free_picture())
    sizes = [(1, 2, 3, 3), (1, 40, 30, 3), (2, 1, 1, 3), (1, 2, 3, 3)]

    answers = [(await bench.call(x=np.full(size, 4, np.float32)))["y"] for size in sizes]

    assert [answer.shape for answer in answers] == sizes
    assert all((answer == 5).all() for answer in answers)


async def test_model_that_cannot_take_a_picture_of_one_pixel_is_served(open_pool):
    bench = await open_pool(models.valid_convolution())

    assert bench.pool.report.signatures[0].inputs[0].shape == (-1, -1, -1, 3)
    assert (await bench.call(x=np.ones((1, 5, 4, 3), np.float32)))["y"].shape == (1, 3, 2, 1)
    with pytest.raises(InvokeFailed, match="cannot take inputs of this shape"):
        await bench.call(x=np.ones((1, 1, 1, 3), np.float32))
    assert (await bench.call(x=np.ones((2, 3, 3, 3), np.float32)))["y"].tolist() == [[[[27]]]] * 2


@pytest.mark.parametrize("shape", [(1, 7), (1, 9), (8,), (1, 8, 1), (0, 8), ()], ids=str)
async def test_wrong_shape_is_an_error_of_the_call_alone(open_pool, shape):
    bench = await open_pool(models.mlp((8, 4)))
    pids = bench.pool.pids

    with pytest.raises(InvokeFailed, match=r"input 'x' has shape .* the model takes \[-1, 8\]"):
        await bench.call(x=np.ones(shape, np.float32))

    assert (await bench.call(x=np.ones((1, 8), np.float32)))["probabilities"].shape == (1, 4)
    assert bench.pool.pids == pids


async def test_fixed_rows_are_not_changed_unless_a_probe_has_shown_it_works(open_pool):
    bench = await open_pool(models.mlp((8, 4), batch=1))

    assert bench.pool.report.max_batch == 1
    with pytest.raises(InvokeFailed, match="has shape"):
        await bench.call(x=np.ones((2, 8), np.float32))


async def test_wrong_dtype_is_a_bug_of_the_caller_and_takes_no_slot(open_pool):
    bench = await open_pool(models.mlp((8, 4)))
    free = bench.pool.free_slots

    with pytest.raises(TypeError):
        bench.pool.call("serving_default", {"x": np.ones((1, 8), np.float64)})

    assert bench.pool.free_slots == free


async def test_what_the_model_refuses_is_an_error_of_the_call_alone(open_pool):
    bench = await open_pool(models.gather(rows=4))
    pids = bench.pool.pids

    with pytest.raises(InvokeFailed, match=r"(?i)gather|failed to invoke"):
        await bench.call(index=np.array([99], np.int32))

    assert (await bench.call(index=np.array([2], np.int32)))["y"].tolist() == [[4, 5]]
    assert bench.pool.pids == pids


async def test_runtimes_old_complaints_are_not_repeated(open_pool):
    bench = await open_pool(models.gather(rows=4))
    texts = []

    for _ in range(5):
        with pytest.raises(InvokeFailed) as caught:
            await bench.call(index=np.array([99], np.int32))
        texts.append(str(caught.value))

    assert len(set(texts)) == 1


async def test_rank_0_numbers_go_in_and_come_out_as_arrays(open_pool):
    bench = await open_pool(models.scalar_double())

    answer = (await bench.call(x=np.array(21, np.float32)))["y"]

    assert isinstance(answer, np.ndarray)
    assert (answer.shape, answer.dtype, float(answer)) == ((), np.float32, 42.0)


async def test_strings_keep_every_byte(open_pool):
    bench = await open_pool(models.strings((-1, 2)))
    words = np.array([[b"h\xc3\xa9llo", b""], [b"nul\0inside\0", b"\xff\xfe not UTF-8"]], object)

    answer = (await bench.call(a=words))["output_0"]

    assert answer.tolist() == words.tolist()


async def test_many_long_strings_make_the_slot_grow(open_pool):
    bench = await open_pool(models.strings((-1, 2)), memory_mib=256)
    words = np.array([[b"x" * 100_000, b"y" * 200_000]] * 20, object)

    answer = (await bench.call(a=words))["output_0"]

    assert answer.tolist() == words.tolist()
    assert (await bench.call(a=words[:1]))["output_0"].tolist() == words[:1].tolist()


async def test_output_size_follows_the_result(open_pool):
    bench = await open_pool(models.where(6))

    none = (await bench.call(x=np.zeros(6, np.bool_)))["y"]
    some = (await bench.call(x=np.array([0, 1, 0, 0, 1, 0], np.bool_)))["y"]

    assert bench.pool.report.signatures[0].outputs[0].shape == (-1, 1)
    assert (none.shape, none.dtype) == ((0, 1), np.int64)
    assert some.tolist() == [[1], [4]]


async def test_each_signature_is_called_by_its_name(open_pool):
    bench = await open_pool(models.two_signatures())
    a, b = np.full((2, 2), 3, np.float32), np.full((2, 2), 4, np.float32)

    added = await bench.call("add", a=a, b=b)
    multiplied = await bench.call("mul", a=a, b=b)

    assert (added["output"] == 7).all()
    assert (multiplied["output"] == 12).all()


async def test_inputs_stand_in_the_order_of_the_subgraph(open_pool):
    bench = await open_pool(models.two_signatures())

    assert [spec.name for spec in bench.pool.report.signatures[0].inputs] == ["b", "a"]


async def test_signature_that_does_not_work_is_left_out_and_noted(open_pool):
    bench = await open_pool(models.two_signatures(broken=True))

    assert [signature.name for signature in bench.pool.report.signatures] == ["add"]
    assert "mul" in bench.pool.report.notes[0]
    assert "unresolved custom op: NobodyHasThis" in bench.pool.report.notes[0]


async def test_signature_with_a_type_that_has_no_name_is_left_out(open_pool):
    bench = await open_pool(models.complex_output())

    assert [signature.name for signature in bench.pool.report.signatures] == ["good"]
    assert "bad" in bench.pool.report.notes[0]


async def test_answers_are_the_callers_own(open_pool):
    bench = await open_pool(models.scale(2.0))

    first = (await bench.call(x=np.full((1, 4), 1, np.float32)))["y"]
    first[:] = 99
    second = (await bench.call(x=np.full((1, 4), 2, np.float32)))["y"]

    assert (first == 99).all()
    assert (second == 4).all()


async def test_inputs_are_copied_before_call_returns(open_pool):
    bench = await open_pool(models.scale(2.0))
    x = np.full((1, 4), 1, np.float32)

    answer = bench.pool.call("serving_default", {"x": x})
    x[:] = 50

    assert ((await answer).outputs["y"] == 2).all()


async def test_calls_that_are_staged_keep_their_order_and_their_answers(open_pool):
    bench = await open_pool(models.scale(2.0))
    answers = []

    for number in range(200):
        await bench.until(lambda: bench.pool.free_slots > 0)
        x = np.full((1 + number % 3, 4), number, np.float32)
        answers.append(bench.pool.call("serving_default", {"x": x}))
    results = await asyncio.gather(*answers)

    assert [float(r.outputs["y"][0, 0]) for r in results] == [2.0 * n for n in range(200)]


async def test_times_are_on_the_clock_everyone_reads(open_pool):
    bench = await open_pool(models.scale())
    loop = asyncio.get_running_loop()
    before = loop.time()

    result = await bench.pool.call("serving_default", {"x": np.ones((1, 4), np.float32)})

    assert before <= result.started_at <= result.finished_at <= loop.time()
    assert 0 < result.invoke_s <= result.finished_at - result.started_at


async def test_cancelled_call_gives_its_slot_back_when_it_is_done(open_pool):
    bench = await open_pool(models.scale())
    free = bench.pool.free_slots

    bench.pool.call("serving_default", {"x": np.ones((1, 4), np.float32)}).cancel()

    await bench.until(lambda: bench.pool.free_slots == free)
    assert (await bench.call(x=np.ones((1, 4), np.float32)))["y"].shape == (1, 4)


async def test_call_without_a_free_slot_is_a_bug(open_pool):
    bench = await open_pool(models.scale())
    x = np.ones((1, 4), np.float32)
    answers = [bench.pool.call("serving_default", {"x": x}) for _ in range(bench.pool.free_slots)]

    with pytest.raises(RuntimeError, match="free slot"):
        bench.pool.call("serving_default", {"x": x})

    await asyncio.gather(*answers)


async def test_several_instances_share_the_calls(open_pool):
    bench = await open_pool(models.scale(), instances=3)
    x = np.ones((1, 4), np.float32)

    answers = [bench.pool.call("serving_default", {"x": x}) for _ in range(bench.pool.free_slots)]
    await asyncio.gather(*answers)

    assert bench.pool.alive == len(set(bench.pool.pids)) == 3
    assert bench.pool.free_slots == len(answers)


async def test_worker_is_cut_off_from_its_parents(open_pool):
    bench = await open_pool(models.scale(), memory_mib=100)
    worker = psutil.Process(bench.pool.pids[0])

    proc = Path(f"/proc/{worker.pid}")
    status = (proc / "status").read_text()
    limits = (proc / "limits").read_text()
    files = [str(link.readlink()) for link in (proc / "fd").iterdir()]

    assert worker.name() == "inferd-worker"
    assert "NoNewPrivs:\t1" in status
    assert "Max core file size        0" in limits
    assert "Max data size             unlimited" not in limits
    assert int((proc / "oom_score_adj").read_text()) > 0
    assert len([name for name in files if name.startswith("socket:")]) == 1
    assert worker.num_threads() == 1


async def test_pool_whose_model_is_in_processes_does_not_import_the_runtime(save, tmp_path):
    path = save(models.scale())
    program = f"""
import asyncio, sys
import numpy as np
from pathlib import Path
from accelerators.base import LoadSpec
from accelerators.forkserver import ForkServer
from accelerators.supervisor import WorkerPool

async def main():
    server = ForkServer()
    await server.start()
    spec = LoadSpec(Path({str(path)!r}))
    pool = WorkerPool(spec, server, on_capacity=lambda: None, on_event=print)
    await pool.start()
    result = await pool.call("serving_default", {{"x": np.ones((1, 4), np.float32)}})
    print(result.outputs["y"].tolist())
    await pool.stop()
    await server.stop()
    print([name for name in sys.modules if "litert" in name])

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )

    stdout, _ = await process.communicate()

    assert stdout.decode().splitlines() == ["[[2.0, 2.0, 2.0, 2.0]]", "[]"]
