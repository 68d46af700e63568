"""Tests that `make test-slow` runs instead of `make test`, by patterns of their ids, each with its reason.

CONTRIBUTING.md sums them up. A test that is slow by itself has the mark in its own file.
"""

import re

TENSORRT = "NVIDIA's builder, whose graphs tests/export/trt/test_trt_graphs.py checks without it"
EMULATED = "emulated processors; the kernels of this one run in every change's tests"
VARIANT = "second variant of a case that every change runs"
DISTRIBUTED = "more processes and launchers than the two processes that every change runs"
NETWORK = "no socket and no stray file: caption and convert stand for the other commands"

NIGHTLY = {
    r"tests/c/test_library.py::.*\[instruct": VARIANT,
    r"tests/engines/test_batcher.py::.*\[(wide|llama)": VARIANT,
    r"tests/engines/test_chat.py::.*\[opt": VARIANT,
    r"tests/engines/test_kernels.py::test_kernels_match_plain_arithmetic\[.*-(aarch64|wasm)": EMULATED,
    "tests/engines/test_kernels.py::test_old_processors_run_only_their_kernels": EMULATED,
    r"tests/engines/test_sampling.py::.*\[opt": VARIANT,
    r"tests/export/checkpoints/test_hugging_face_variants.py::test_larger_images_interpolate_positions\[490": VARIANT,
    r"tests/export/checkpoints/test_lavis.py::test_stage_2_equals_hugging_face\[True": VARIANT,
    r"tests/export/commands/test_export.py::test_activation_bits_with_int4_weights\[None": VARIANT,
    r"tests/export/graphs/test_llm.py::test_int4_graph_equals_dequantized_weights\[opt": VARIANT,
    r"tests/export/graphs/test_llm.py::test_graphs_equal_hugging_face\[tied": VARIANT,
    "tests/export/trt/test_tensorrt_builds.py": TENSORRT,
    r"tests/runtime/commands/test_privacy.py::test_no_socket_and_no_file\[(?!caption)": NETWORK,
    "tests/integrations/test_ray_cluster.py::test_(random|killed_capfilt)": DISTRIBUTED,
    "tests/runtime/test_system.py::test_processors_without_avx2_caption_alike": EMULATED,
    r"tests/train/evaluation/test_evaluate.py::.*\[t5": VARIANT,
    "tests/train/test_distributed.py::test_accelerate_trains_the_same": DISTRIBUTED,
    r"tests/train/test_distributed.py::test_stage1_gathers_itc_and_negatives_from_all_processes\[trained": DISTRIBUTED,
    r"tests/train/test_distributed.py::test_stage2_weighs_tokens_equally\[all": DISTRIBUTED,
    r"tests/train/test_finetune.py::test_recipe_finetunes_a_hugging_face_checkpoint\[(vqa|retrieval)": VARIANT,
    r"tests/train/test_finetune.py::test_timm_and_hugging_face_encoders_train\[hf": VARIANT,
    r"tests/train/test_finetune.py::test_two_processes_train_the_encoder_like_one\[.*stage1": DISTRIBUTED,
    r"tests/train/test_distributed.py::test_half_precision_trains_similarly\[fp16": VARIANT,
    r"tests/structured/test_schema.py::test_whatever_a_schema_accepts_is_valid\[10000": (
        "10,000 random schemas; every change runs 500"
    ),
    "tests/trt/test_build.py::test_(check|broken|failed|ctrl_c|plan_file)": TENSORRT,
}


def reason(nodeid: str) -> str | None:
    """Why a test runs at night only; None if every change runs it."""
    return next((why for pattern, why in NIGHTLY.items() if re.match(pattern, nodeid)), None)
