"""How a policy is sampled from while it is trained: vLLM's layout, its memory, the sampling."""

from typing import Annotated

from pydantic import Field

from alignctl.config.numbers import Count, Positive, Processes, Weight
from alignctl.config.sections import Model, Section


class SamplingParams(Section):
    """Which tokens are drawn from, wherever a model is asked."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw only from the likeliest tokens that have this probability together."""

    top_k: Count | None = None
    """Draw only from so many of the likeliest tokens; null: from all."""

    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Draw only from tokens at least this likely, as a share of the likeliest one's probability."""

    repetition_penalty: Positive = 1.0
    """Above 1, tokens that prompt or completion have already become less likely."""


class Rollout(SamplingParams):
    """vLLM beside the trainer, on the same devices. It has the trainer's weights and precision."""

    tp: Processes = 1
    """Tensor-parallel ranks of a copy of the model; consecutive ranks make one copy, and there are
    as many copies as fit into the job, whatever the trainer's own layout."""

    max_new_tokens: Count
    """Most tokens of a completion, its end token included; less than batch.seq_length, of which
    the rest is the prompt's."""

    temperature: Weight = 1.0
    """What logits are divided by before a token is drawn, in training too; 0: no chance at all."""

    max_num_seqs: Processes = 256
    """Most completions that one copy of the model works on at the same time."""

    max_num_batched_tokens: Count | None = None
    """Most tokens in one forward pass of it; null: as vLLM sees fit."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of a GPU's memory for vLLM's weights and cache together; acts only on GPUs."""

    kv_cache_gib: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """GiB for each rank's cache of keys and values; acts only without GPUs."""

    enforce_eager: bool = False
    """Compile nothing: vLLM is there much sooner, and slower on GPUs. Always so without GPUs."""

    sleep: bool = True
    """Give the memory of vLLM's weights and cache back while training; acts only on GPUs."""

    verify_push: bool = False
    """After every push of weights, compare the sum of every tensor's bits on both sides."""

    def problems(self, model: Model, *, seq_length: int, world_size: int) -> list[str]:
        """List the reasons why a policy cannot be sampled from like this, one line per reason.

        Args:
            model: The policy.
            seq_length: Longest sequence of prompt and completion, in tokens.
            world_size: Processes on all nodes.
        """
        problems = []
        if self.max_new_tokens >= seq_length:
            problems.append(
                f"rollout.max_new_tokens {self.max_new_tokens} is not less than batch.seq_length "
                f"{seq_length}: no room is left for a prompt"
            )
        if world_size % self.tp:
            problems.append(f"{world_size} processes are not a multiple of rollout.tp {self.tp}")
        if self.temperature == 0 and (self.top_p < 1 or self.top_k or self.min_p):
            problems.append(
                "rollout.top_p, top_k and min_p have no effect at rollout.temperature 0: the "
                "likeliest token is always taken"
            )
        if self.max_num_batched_tokens and self.max_num_batched_tokens < self.max_num_seqs:
            problems.append(
                f"rollout.max_num_batched_tokens {self.max_num_batched_tokens} is less than "
                f"rollout.max_num_seqs {self.max_num_seqs}: each completion takes a token of a pass"
            )
        return problems + model.layout_problems(self.tp, 1, prefix="rollout.")
