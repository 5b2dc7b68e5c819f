"""What vLLM takes of each GPU, and the room it has for keys and values."""

from dataclasses import dataclass

from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.config.precision import bytes_of_number
from alignctl.planning.memory import GIB, layer_parameters

_BATCHED_TOKENS = 8192
"""Tokens of vLLM's largest forward pass where the configuration does not say."""


@dataclass(frozen=True)
class Sampler:
    """What vLLM has on each GPU, in bytes.

    Attributes:
        weights: This rank's part of the policy.
        work: Activations and logits of its largest forward pass, by estimate.
        cache: What is left for keys and values; not above 0 if nothing is.
        per_token: Of the cache, for a token of one sequence.
        longest: Tokens of the longest sequence.
        wanted: Sequences that it may work on at the same time.
    """

    weights: int
    work: int
    cache: int
    per_token: int
    longest: int
    wanted: int

    @property
    def sequences(self) -> float:
        """Sequences of full length that the cache has room for."""
        return max(0.0, self.cache / (self.per_token * self.longest))


def sampler(config: OnPolicyConfig, gpu_memory_gib: float) -> Sampler:
    """Estimate the memory of a run's sampler, on GPUs of so much memory."""
    model, settings = config.model, config.rollout
    tp, hidden = settings.tp, model.hidden_size
    b = bytes_of_number(config.precision)
    tables = (1 if model.tie_embeddings else 2) * -(-model.vocab_size // tp) * hidden
    weights = (model.num_layers * layer_parameters(model, tp) + tables) * b
    tokens = settings.max_num_batched_tokens or _BATCHED_TOKENS
    numbers = tokens * (4 * hidden + 3 * model.ffn_hidden_size // tp)
    logits = settings.max_num_seqs * model.vocab_size
    work = numbers * b + 2 * 4 * logits  # logits and log-probabilities, in float32
    share = int(settings.gpu_memory_utilization * gpu_memory_gib * GIB)
    return Sampler(
        weights=weights,
        work=work,
        cache=share - weights - work,
        per_token=2 * model.num_layers * model.num_query_groups // tp * model.head_width * b,
        longest=config.batch.seq_length,
        wanted=settings.max_num_seqs,
    )
