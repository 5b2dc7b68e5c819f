"""The sampler of a simulated rank: vLLM's memory by arithmetic, answers as long as they can be."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.rollouts.samples import Completion, Generated, Request, Sampling
from alignctl.simulation.memory_tracker import MemoryTracker

LOGPROB = 1.0
"""Of every token: what a simulated trainer finds as well."""


def different_answers(count: int, length: int) -> list[NDArray[np.int32]]:
    """Make token ids of answers, of which no two begin alike."""
    return [np.full(length, 1 + number, np.int32) for number in range(count)]


class SimulatedRollout:
    """What a stage sees of `alignctl.rollouts.vllm.Rollout`.

    Attributes:
        has_weights: Whether weights were pushed, and not lost in sleep since.
    """

    def __init__(self, config: OnPolicyConfig, tracker: MemoryTracker, gpu_memory: int) -> None:
        self._settings = config.rollout
        self._tracker = tracker
        self._share = int(config.rollout.gpu_memory_utilization * gpu_memory)
        self._version = 0
        self.has_weights = False

    def load_weights(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """Take all weights, one at a time."""
        for _ in stream:
            pass
        self._version += 1
        self.has_weights = True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Generated:
        """Make answers of the greatest length that end there: no cut one would be preferred.

        They differ from their first token on, so that they have no more than a prompt in common.
        """
        assert self.has_weights
        length = sampling.max_new_tokens
        answers: list[Completion | None] = [
            Completion(token_ids, np.full(length, LOGPROB, np.float32), "stop")
            for token_ids in different_answers(len(requests), length)
        ]
        return Generated(answers, 0, 0, self._version)

    def sleep(self) -> None:
        """Give the memory back."""
        if self._settings.sleep:
            self._tracker.hold(0)
            self.has_weights = False

    def wake(self) -> None:
        """Take the memory again."""
        self._tracker.hold(self._share)
