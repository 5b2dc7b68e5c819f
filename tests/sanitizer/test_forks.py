"""Where the code goes another way on a GPU, and what becomes of that way on a machine without one.

A fork that is not in the table fails the test: give it a reason, or better, a test that takes it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import alignctl

SOURCE = Path(alignctl.__file__).parent

ONLY_ON_A_GPU = {
    "engines/deepspeed/engine.py initialize": "malloc's settings are the CPU's",
    "engines/deepspeed/engine.py DeepSpeedEngine.layout": "a checkpoint says where it was made",
    "engines/deepspeed/engine.py DeepSpeedEngine._config": "pinned memory of its optimizer",
    "engines/deepspeed/library.py": "DeepSpeed is told that there is no accelerator",
    "engines/deepspeed/state.py DeepSpeedState.read": "the GPU's random state",
    "engines/deepspeed/state.py _state": "the GPU's random state",
    "engines/device.py": "which device there is; the sanitizer says cuda in its place",
    "engines/device.py join": "this rank's GPU, and NCCL",
    "engines/megatron/cpu.py load": "Megatron's compiled functions",
    "engines/megatron/engine.py MegatronEngine.__init__": "weights made on the GPU",
    "engines/megatron/groups.py initialize": "Megatron's cuda means the CPU",
    "engines/megatron/optimizer.py create": "Transformer Engine's AdamW, for torch's in one pass",
    "engines/megatron/state.py MegatronState.layout": "a checkpoint says where it was made",
    "engines/megatron/state.py _random_state": "the GPU's random state",
    "engines/megatron/state.py _set_random_state": "the GPU's random state",
    "engines/offload.py Offloaded.__init__": "copies that are under way when all are queued",
    "engines/offload.py Offloaded.restore": "copies that are under way when it returns",
    "engines/offload.py _copy_to_host": "pinned memory",
    "engines/rendezvous.py join": "NCCL",
    "evaluation/generation.py start_rollout": "bf16 by default",
    "evaluation/scoring.py RewardScorer.__enter__": "bf16 by default; Megatron's cuda is one",
    "evaluation/tp_workers.py Ranks.__enter__": "a GPU for each rank; cores are not shared",
    "models/attention.py choose_attention": "Transformer Engine's attention",
    "reporting/phases.py Phases.__call__": "a phase ends when the GPU is done",
    "rollouts/alone.py process_group": "this rank's GPU, and NCCL",
    "rollouts/vllm.py Rollout._can_sleep": "vLLM gives memory back on GPUs alone",
    "rollouts/vllm.py _start": "vLLM's memory, CUDA graphs and sleep",
    "rollouts/vllm.py _apart": "the GPU's random state; operators are compiled",
    "stages/eval_lm.py _measured": "bf16 by default; the harness is told the device",
    "stages/shared/training.py _peak_memory": "the GPU's memory, for the process's",
}
"""What no machine without a GPU can run, by module and function, and what it is."""


def find_forks(tree: ast.AST, names: tuple[str, ...] = ()) -> Iterator[str]:
    """Names of the functions that ask whether there is a GPU; empty for a module itself."""
    for node in ast.iter_child_nodes(tree):
        inner = names
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inner = (*names, node.name)
        asks = isinstance(node, ast.Name) and node.id == "IS_GPU"
        asks |= isinstance(node, ast.Attribute) and node.attr == "is_available"
        if asks:
            yield ".".join(names)
        yield from find_forks(node, inner)


def test_every_fork_is_known() -> None:
    found = set()
    for path in {*SOURCE.rglob("*.py"), *(SOURCE / "stages").rglob("*.py")}:  # a link
        name = str(path.relative_to(SOURCE))
        for place in find_forks(ast.parse(path.read_text(encoding="utf-8"))):
            found.add(f"{name} {place}".strip())
    assert found == set(ONLY_ON_A_GPU)
