"""Where the code goes another way on a GPU, and where that way is taken without one.

A fork that is in neither table fails the test: write a test that takes it, or say what no machine
without a GPU can run. Under the sanitizer code hears that there is a GPU: what its ranks do stands
here for forks of the engines, with gloo in NCCL's place and memory that is not pinned.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import alignctl

SOURCE = Path(alignctl.__file__).parent
TESTS = Path(__file__).parents[1]

_TRAINING = "sanitizer/test_stages.py test_training_keeps_its_tensors_apart"
_EPISODES = "sanitizer/test_stages.py test_episodes_keep_their_tensors_apart"
_RESUMED = "sanitizer/test_stages.py test_a_resumed_run_keeps_its_tensors_apart"
_CHOSEN = "sanitizer/test_chosen_forks.py"

EXECUTED = {
    "algorithms/copies.py to_device": _TRAINING,
    "doctor/gpu_trial.py main": "doctor/test_devices.py test_a_device_that_is_not_there_is_named",
    "engines/deepspeed/engine.py DeepSpeedEngine.layout": _RESUMED,
    "engines/deepspeed/engine.py initialize": _RESUMED,
    "engines/deepspeed/state.py DeepSpeedState.read": _RESUMED,
    "engines/deepspeed/state.py _state": _RESUMED,
    "engines/device.py join": _TRAINING,
    "engines/megatron/cpu.py _names_cuda": (
        "engines/test_megatron_cpu.py test_what_names_cuda_is_made_on_the_cpu"
    ),
    "engines/megatron/engine.py MegatronEngine._make_config": _TRAINING,
    "engines/megatron/groups.py initialize": _TRAINING,
    "engines/megatron/optimizer.py create": _TRAINING,
    "engines/megatron/state.py MegatronState.layout": _TRAINING,
    "engines/megatron/state.py _random_state": _TRAINING,
    "engines/megatron/state.py _set_random_state": _RESUMED,
    "engines/offload.py Offloaded.__init__": _EPISODES,
    "engines/offload.py Offloaded.restore": _EPISODES,
    "engines/offload.py _copy_to_host": _EPISODES,
    "engines/rendezvous.py join": _TRAINING,
    "evaluation/tp_workers.py Ranks.__enter__": f"{_CHOSEN} test_more_ranks_than_gpus_are_refused",
    "models/attention.py choose_attention": f"{_CHOSEN} test_attention_is_one_kernel",
    "models/flex_attention.py attend": (
        "models/test_flex_attention.py test_the_compiled_kernel_computes_the_same"
    ),
    "reporting/phases.py Phases.__call__": f"{_CHOSEN} test_a_phase_ends_when_the_gpu_is_done",
    "rollouts/vllm.py _apart": f"{_CHOSEN} test_the_sampler_leaves_the_gpus_random_state_alone",
    "stages/shared/training.py _peak_memory": f"{_CHOSEN} test_the_peak_of_memory_is_the_gpus",
}
"""Forks whose way on a GPU a test takes, and that test."""

ONLY_ON_A_GPU = {
    "doctor/gpu_trial.py _all_reduce": "NCCL",
    "engines/deepspeed/engine.py DeepSpeedEngine._config": "pinned memory of its optimizer",
    "engines/deepspeed/library.py": "DeepSpeed is told that there is no accelerator",
    "engines/device.py": "which device there is; the sanitizer says cuda in its place",
    "engines/megatron/cpu.py load": "Megatron's functions, compiled for it",
    "evaluation/generation.py start_rollout": "bf16 by default",
    "evaluation/scoring.py RewardScorer.__enter__": "bf16 by default; Megatron's cuda is one",
    "reporting/profiler.py Profiler.before": "kernels are traced too",
    "rollouts/alone.py process_group": "this rank's GPU, and NCCL",
    "rollouts/vllm.py Rollout._can_sleep": "vLLM gives memory back on GPUs alone",
    "rollouts/vllm.py _start": "vLLM's memory, CUDA graphs and sleep",
    "stages/eval_lm.py _measured": "bf16 by default; the harness is told the device",
    "engines/flops.py peak_flops": "what the GPU's maker says that it can do",
}
"""What no machine without a GPU can run, by module and function, and what it is."""


def find_forks(tree: ast.AST, names: tuple[str, ...] = ()) -> Iterator[str]:
    """Names of the functions that ask whether there is a GPU; empty for a module itself.

    By `IS_GPU`, `is_available()`, `is_cuda`, or by comparing something with "cuda".
    """
    for node in ast.iter_child_nodes(tree):
        inner = names
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inner = (*names, node.name)
        asks = isinstance(node, ast.Name) and node.id == "IS_GPU"
        asks |= isinstance(node, ast.Attribute) and node.attr in ("is_available", "is_cuda")
        asks |= isinstance(node, ast.Compare) and any(
            isinstance(each, ast.Constant) and each.value == "cuda"
            for each in (node.left, *node.comparators)
        )
        if asks:
            yield ".".join(names)
        yield from find_forks(node, inner)


def test_every_fork_is_known() -> None:
    found = set()
    for path in {*SOURCE.rglob("*.py"), *(SOURCE / "stages").rglob("*.py")}:  # a link
        name = str(path.relative_to(SOURCE))
        for place in find_forks(ast.parse(path.read_text(encoding="utf-8"))):
            found.add(f"{name} {place}".strip())
    assert not EXECUTED.keys() & ONLY_ON_A_GPU.keys()
    assert found == EXECUTED.keys() | ONLY_ON_A_GPU.keys()


def test_the_tests_that_take_them_are_there() -> None:
    for test in set(EXECUTED.values()):
        file, name = test.split()
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert name in {getattr(node, "name", None) for node in tree.body}, test


def test_a_fork_is_found_however_it_asks() -> None:
    asked = {
        "named": "IS_GPU",
        "typed": 'device.type == "cuda"',
        "compared": '"cuda" != device',
        "tensor": "query.is_cuda",
        "torch": "torch.cuda.is_available()",
        "none": 'move(tensor, "cuda")',
    }
    text = "".join(f"def {name}():\n    return {how}\n" for name, how in asked.items())
    assert set(find_forks(ast.parse(text))) == asked.keys() - {"none"}
