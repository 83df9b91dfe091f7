"""What GPUs' and NPUs' drivers write is understood; the texts are theirs, shortened."""

from __future__ import annotations

from accelerators.devicetext import (
    Partitioning,
    adapter,
    errors,
    missing_features,
    openvino_devices,
    operators_refused_by_gpu,
    operators_refused_by_npu,
    partitioning,
)

OPENED = """\
INFO: [environment.cc:36] Creating LiteRT environment with options
WARNING: [npu_registry.cc:34] NPU accelerator could not be loaded and registered: kNotFound.
error: XDG_RUNTIME_DIR is invalid or not set in the environment.
WARNING: Logging before InitGoogle() is written to STDERR
I0000 00:00:1795380942.742117   11926 environment.cc:532] Selected adapter: A GPU (Subzero), \
arch=swiftshader, vendor=google, backend=Vulkan, adapterType=CPU / Software
I0000 00:00:1795380942.745538   11926 delegate_kernel.cc:984] Initializing WebGPU-based API.
"""

REFUSED = """\
ERROR: Following operations are not supported by GPU delegate:
ARG_MAX: Tensor type(INT64) is not supported. ArgMax
CUSTOM TFLite_Detection_PostProcess: TFLite_Detection_PostProcess
SQUEEZE: Operation is not supported.
71 operations will run on the GPU, and the remaining 3 operations will run on the CPU.
ERROR: Following operations are not supported by GPU delegate:
SQUEEZE: Operation is not supported.
No operations will run on the GPU, and all 1 operations will run on the CPU.
NOTE: not one of them
"""

LOST = """\
E0000 00:00:1795381305.408998   15335 environment.cc:105] Unknown reason: vkAllocateMemory failed \
with VK_ERROR_OUT_OF_DEVICE_MEMORY
 - While handling unexpected error type OutOfMemory when allowed errors are Validation.
    at CheckVkOOMThenSuccessImpl (third_party/dawn/src/dawn/native/vulkan/VulkanError.cpp:119)
E0000 00:00:1795381305.409131   15335 delegate_webgpu.cc:546] UNKNOWN: ERROR: [third_party/x.cc:613]
└ [Device] is lost.
=== Source Location Trace: ===
third_party/odml/litert/litert/cc/litert_macros.h:570
ERROR: Node number 66 (LITERT_WEBGPU) failed to invoke.
INFO: over
"""

COMPILED = """\
INFO: [openvino_compiler_plugin.cc:497] op type 43 is not supported
INFO: [openvino_compiler_plugin.cc:497] op type 43 is not supported
INFO: [openvino_compiler_plugin.cc:497] op type 131 is not supported
INFO: [compiler_plugin.cc:742] Partitioned subgraph<0>, selected 30 ops, from a total of 32 ops. \
resulted in 2 partitions.
INFO: [openvino_compile_context.cc:77] Using Intel OpenVINO device: CPU
INFO: [openvino_compiler_plugin.cc:642] Compiling partition 1 for device NPU
"""

THROWN = """\
ERROR: [openvino_compiler_plugin.cc:714] Exception in compilation: Exception from src/core.cpp:117:
Exception from src/inference/src/dev/plugin.cpp:54:
VCL compiler loading failed, aborting.

INFO: [compiled_model.cc:1397] 0 compiler plugins were applied successfully:
"""


def test_a_device_that_opens_tells_its_name_and_of_no_error():
    assert adapter(OPENED) == "A GPU (Subzero)"
    assert errors(OPENED) == ()
    assert missing_features(OPENED) == ()
    assert adapter("INFO: nothing of the kind") == ""


def test_operators_that_a_gpu_refuses_are_named_once_with_the_reason():
    named = operators_refused_by_gpu(REFUSED)

    assert named == (
        "ARG_MAX (Tensor type(INT64) is not supported. ArgMax), "
        "CUSTOM TFLite_Detection_PostProcess (TFLite_Detection_PostProcess), "
        "SQUEEZE (Operation is not supported)"
    )
    assert operators_refused_by_gpu(OPENED) == ""


def test_many_refused_operators_are_counted():
    lines = "".join(f"OP_{number}: no\n" for number in range(14))

    named = operators_refused_by_gpu(
        f"Following operations are not supported by GPU delegate:\n{lines}"
    )

    assert named.endswith("OP_9 (no) and 4 more")


def test_errors_are_told_without_where_they_were_written():
    assert errors(LOST) == (
        (
            "Unknown reason: vkAllocateMemory failed with VK_ERROR_OUT_OF_DEVICE_MEMORY - While "
            "handling unexpected error type OutOfMemory when allowed errors are Validation."
        ),
        "UNKNOWN: ERROR: [third_party/x.cc:613] [Device] is lost.",
        "Node number 66 (LITERT_WEBGPU) failed to invoke.",
    )
    assert errors(THROWN) == ("VCL compiler loading failed, aborting.",)


def test_features_that_a_driver_lacks_are_named():
    text = "Warning: Vulkan imageCubeArray feature required.\nVulkan robustBufferAccess required."

    assert missing_features(text) == ("imageCubeArray", "robustBufferAccess")


def test_what_a_compiler_took_is_read_off_its_messages():
    assert partitioning(COMPILED) == Partitioning(operators=32, taken=30, pieces=2)
    assert partitioning(OPENED) is None
    assert operators_refused_by_npu(COMPILED) == (43, 131)
    assert openvino_devices(COMPILED) == {"cpu", "npu"}
