"""How often a step may wait for the GPU: by case, phase, and file with what is waited for.

Phases are `loop` (the passes over micro batches: nothing of ours waits there), `update` (the rest
of an optimizer step, per optimizer step), and of an episode `sampling`, `push` and `else`. What a
change adds or spares is to be written down here, with its reason.

The boundary is vLLM: what its own code makes is neither host nor GPU, and what it waits for is its
own affair. Ours ends where requests and weights are handed over (`rollouts/vllm.py`,
`rollouts/vllm_weights.py`).
"""

Counts = dict[str, int]

AT_FIRST = {
    # Megatron's angles, once a model; made on the GPU where there is one.
    "common/embeddings/rotary_pos_embedding.py: copy to the GPU",
}
"""What a loop waits for in the first step, or in the validation before it."""

_STEP: Counts = {
    # Loss, weight and metrics of all micro batches and ranks.
    "alignctl/engines/sums.py: list to the host": 1,
    # The gradient norm, which says whether the step may be taken.
    "megatron/core/utils.py: copy gpu and host": 1,
    "megatron/core/utils.py: number to the host": 1,
    "core/optimizer/clip_grads.py: number to the host": 1,
}

_SAMPLING: Counts = {
    # Completions are packed on the host, and all ranks get all of them.
    "alignctl/rollouts/vllm.py: copy gpu and host": 1,
    "alignctl/rollouts/vllm.py: copy to the GPU": 2,
    "alignctl/rollouts/vllm.py: list to the host": 2,
    "alignctl/rollouts/vllm.py: copy to the host": 2,
    "alignctl/rollouts/vllm.py: number to the host": 1,
}

# Sums of all tensors' bits, which prove that they arrived.
_PUSH: Counts = {"alignctl/rollouts/vllm_weights.py: list to the host": 1}

_RULE: Counts = {
    # What rules made of the answers of each rank.
    "alignctl/on_policy/scoring.py: copy to the GPU": 1,
    "alignctl/on_policy/scoring.py: copy to the host": 1,
}

# Operations of all ranks, for the MFU of the trainer.
_USED: Counts = {"alignctl/on_policy/loop.py: number to the host": 1}

# Log-probabilities that an update has found on its way.
_FOUND: Counts = {"alignctl/engines/sums.py: copy to the host": 1}

# Gradients are scattered in the host's memory by gloo; NCCL does it where they are.
_SCATTERED: Counts = {"core/distributed/param_and_grad_buffer.py: copy gpu and host": 1}


def _episode(update: Counts, num_passes: int, more: Counts | None = None) -> dict[str, Counts]:
    """The budget of an episode in which so many passes over its answers only compute numbers.

    With `offload` a model that comes to the device, or goes, is waited for.
    """
    passes = {"alignctl/engines/sums.py: copy to the host": num_passes}
    return {
        "update": update,
        "sampling": _SAMPLING,
        "push": _PUSH,
        "else": {**_RULE, **_USED, **passes, **(more or {})},
    }


BUDGET: dict[str, dict[str, Counts]] = {
    "pretrain-pp": {"update": _STEP},
    "sft-tp": {"update": _STEP},
    "sft-dp-bf16": {"update": _STEP | _SCATTERED},
    # DeepSpeed's gradient norm, and whether it is finite, in its own code.
    "sft-deepspeed": {
        "update": {
            "alignctl/engines/sums.py: list to the host": 1,
            "deepspeed/runtime/utils.py: copy gpu and host": 2,
            "deepspeed/runtime/utils.py: number to the host": 3,
            "engines/deepspeed/optimizer.py: number to the host": 1,
        }
    },
    "reward-bloom-flex-pp": {"update": _STEP},
    "dpo-lora-tp": {"update": _STEP},
    # Scores, log-probabilities, those of the reference, and values.
    "rlhf-pp-offload": _episode(_STEP, 4, {"alignctl/engines/offload.py: synchronize": 14}),
    "rlhf-tp-flex": _episode(_STEP, 4),
    # Scores, and log-probabilities of policy and reference.
    "online-dpo-tp": _episode(_STEP, 3),
    "online-dpo-pp": _episode(_STEP, 3),
    # Scores and the reference's log-probabilities; the policy's are found by the one update.
    "grpo-tp": _episode(_STEP | _FOUND, 2),
    "grpo-dp-bf16": _episode(_STEP | _SCATTERED | _FOUND, 2),
}
