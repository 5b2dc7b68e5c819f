"""What pipeline stages send each other, of which every stage knows the shape beforehand."""

from collections.abc import Sequence
from typing import Self

from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup
from typing_extensions import override

_Shape = tuple[int, int, int]


class KnownShapes(P2PCommunicator):
    """Megatron's communicator between stages, for micro batches of different lengths.

    Megatron's own sends each tensor's shape ahead of it, and waits for the GPU until that is there:
    twice for a micro batch. But every stage has the micro batches, and 1F1B takes them in their
    order, forward and backward: what comes next has the shape of the next micro batch.
    """

    def __init__(
        self, stages: ProcessGroup, config: TransformerConfig, lengths: Sequence[int]
    ) -> None:
        super().__init__(stages, config)
        parts = config.tensor_model_parallel_size if config.sequence_parallel else 1
        shapes = [(length // parts, 1, config.hidden_size) for length in lengths]
        self._forward, self._backward = iter(shapes), iter(shapes)

    @classmethod
    def between(
        cls, stages: ProcessGroup, config: TransformerConfig, lengths: Sequence[int]
    ) -> Self | None:
        """Prepare for one pass over micro batches; None where there is one stage.

        Args:
            stages: The pipeline's group.
            config: The model's.
            lengths: Tokens that are computed of each micro batch: a multiple of the parts in which
                sequence parallelism cuts them.
        """
        return cls(stages, config, lengths) if stages.size() > 1 else None

    @override
    def _communicate_shapes(
        self,
        tensor_send_next: Tensor | None,
        tensor_send_prev: Tensor | None,
        recv_prev: bool,
        recv_next: bool,
    ) -> tuple[_Shape | None, _Shape | None]:
        """Return the shapes of what the stage before and the next one send, if they do."""
        return (
            next(self._forward) if recv_prev else None,
            next(self._backward) if recv_next else None,
        )
