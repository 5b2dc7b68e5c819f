"""The streamed forward pass of Megatron-Core: the model that is trained, on the CPU.

Notation used for tensor shapes:
    - T: tokens of the probe; R: vocabulary rows of the probe; H: hidden size; D: width of a head
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor
from typing_extensions import override

from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.config.kernels import Kernels
from alignctl.config.sections import Head, Model, Parallel
from alignctl.data.batch import Pieces
from alignctl.engines.device import stay_on_loopback
from alignctl.engines.streamed.forward import Probe, Scratch, StreamedForward, one_layer
from alignctl.models.attention import Documents
from alignctl.models.megatron import activation_fields, build, transformer_config
from alignctl.models.weight_map import Weight


@contextmanager
def single_rank() -> Iterator[None]:
    """Set up Megatron's parallel state over this process alone, where there is none."""
    with ExitStack() as stack:
        if not dist.is_initialized():
            stay_on_loopback()
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
            stack.callback(dist.destroy_process_group)
        if not parallel_state.is_initialized():
            parallel_state.initialize_model_parallel()
            stack.callback(parallel_state.destroy_model_parallel)
        assert parallel_state.get_tensor_model_parallel_world_size() == 1
        assert parallel_state.get_pipeline_model_parallel_world_size() == 1
        yield


class MegatronForward(StreamedForward):
    """Our `LanguageModel`, its parts called as its own forward pass calls them."""

    def __init__(
        self,
        tensors: Mapping[str, LazyTensor],
        model: Model,
        head: Head,
        probe: Probe,
        scratch: Scratch,
    ) -> None:
        """Build the model, inside of `single_rank`. Arguments are those of `StreamedForward`."""
        one, num_tokens = one_layer(model, probe), len(probe.tokens)
        config = transformer_config(
            one,
            Parallel(),
            dtype=torch.float32,
            use_cpu_initialization=True,
            **activation_fields(one, "plain"),
        )
        with torch.device("meta"):
            # On the CPU, and in float32, which others are not made for.
            plain = Kernels(attention="plain")
            groups = ProcessGroupCollection.use_mpu_process_groups()
            self._module: Any = build(
                one, config, groups, max_sequence_length=num_tokens, kernels=plain
            )
        learned = np.ones(num_tokens, np.bool_)
        self._documents = Documents.at(Pieces((0, num_tokens)), learned, torch.from_numpy)
        self._rotary = self._rotary_angles(num_tokens)
        super().__init__(self._module, tensors, model, head, probe, scratch)

    def _rotary_angles(self, num_tokens: int) -> Tensor | None:
        """Compute the angles `[T, 1, D]`; None where there are none (Bloom).

        Megatron's own `get_emb` says the same, but only on a GPU, or once `megatron_cpu` has
        changed torch and the allocator for good, which would keep all memory that was ever freed.
        """
        if self._module.position_embedding_type == "none":
            return None
        angles = self._module.rotary_pos_emb.get_freqs_non_repeated(num_tokens)
        return torch.cat([angles, angles], dim=-1)[:, None]

    @override
    def embed(self) -> Tensor:
        hidden: Tensor = self._module.embedding(self._probe.tokens[None], position_ids=None)
        return hidden.squeeze(1)

    @override
    def _run_layer(self, hidden: Tensor) -> Tensor:
        output: Tensor
        output, _ = self._module.decoder.layers[0](
            hidden[:, None],
            attention_mask=None,
            rotary_pos_emb=self._rotary,
            packed_seq_params=self._documents,
        )
        return output.squeeze(1)

    @override
    def output(self, hidden: Tensor) -> Tensor:
        hidden = self._module.decoder.final_layernorm(hidden[:, None])
        if self._score is not None:
            scores: Tensor = self._score(hidden)
            return scores.squeeze(1)
        logits: Tensor = self._module._postprocess(hidden, labels=None)
        return logits

    @override
    def _names(self, row: Weight) -> Sequence[str]:
        return [row.megatron]

    @override
    def _parts(self, row: Weight, full: Tensor) -> Sequence[Tensor]:
        return [full]
