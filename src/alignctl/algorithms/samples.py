"""The samples of a step: numbers per response token of all of them, laid end to end.

Every rank holds those of the whole step, on the CPU, so what is computed from them (advantages,
baselines, pairs) is the same on all ranks without a collective. A loss then sees the tokens of its
micro batch, and `select` says which of all tokens these are.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from alignctl.algorithms.copies import to_device
from alignctl.data.batch import TokenBatch


@dataclass(frozen=True, eq=False)
class Segments:
    """Where each sample's tokens are among all tokens.

    Attributes:
        offsets: `[S+1]`, int64: sample `s` is `[offsets[s], offsets[s+1])`, at least one token;
            starts with 0, ends with N.
    """

    offsets: Tensor

    def __post_init__(self) -> None:
        """Assert that the offsets have the shape above."""
        assert self.offsets[0] == 0
        assert bool((self.lengths > 0).all()), "a sample without a response token"

    @classmethod
    def of_lengths(cls, lengths: Tensor) -> Self:
        """Make segments of so many tokens each `[S]`, int64."""
        return cls(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sample `[S]`, int64."""
        return self.offsets.diff()

    @property
    def last(self) -> Tensor:
        """Place of each sample's last token `[S]`, int64."""
        return self.offsets[1:] - 1

    def sums(self, values: Tensor) -> Tensor:
        """Sum over the tokens `[N]` of each sample `[S]`, floating point, differentiable.

        A sample's sum depends on no other sample and, unlike one by `index_add` on a GPU, comes
        out the same in every run.
        """
        lengths = to_device(self.lengths, values.device)
        # "Unsafe" leaves checks of the lengths out, which fail where there is no sample at all.
        return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)

    def means(self, values: Tensor) -> Tensor:
        """Compute the means over the tokens `[N]` of each sample `[S]`."""
        return self.sums(values) / to_device(self.lengths, values.device)

    def spread(self, values: Tensor) -> Tensor:
        """Repeat the number of each sample `[S]` at each of its tokens `[N]`, of any dtype."""
        lengths = to_device(self.lengths, values.device)
        # A GPU would have to be asked how many tokens these are.
        return values.repeat_interleave(lengths, output_size=int(self.offsets[-1]))


class Selection(NamedTuple):
    """The response tokens of a micro batch, M in number.

    Attributes:
        positions: Where they are in the micro batch `[M]`, int64, on the device of its targets;
            samples that begin alike have some in common.
        indices: Where they are among those of all samples `[M]`, int64, on the CPU.
        segments: The samples of the micro batch, in its order: M tokens in all, on the CPU.
    """

    positions: Tensor
    indices: Tensor
    segments: Segments


def select(batch: TokenBatch, targets: Tensor, segments: Segments) -> Selection:
    """Find the response tokens of a micro batch among those of all samples.

    Args:
        batch: Whole samples; `rows` has their numbers, -1 for a filler, which learns nothing.
        targets: As the engine has them.
        segments: Of all samples. The learned targets of a document are its sample's response.
    """
    is_real = torch.tensor(batch.rows) >= 0
    samples = torch.tensor(batch.rows)[is_real]
    lengths = segments.lengths[samples]
    learned = torch.from_numpy(batch.targets_per_document)
    assert torch.equal(learned[is_real], lengths), "a document that is not the sample's response"
    local = Segments.of_lengths(lengths)
    indices = torch.arange(int(local.offsets[-1]))
    indices = indices + local.spread(segments.offsets[samples] - local.offsets[:-1])
    positions = to_device(batch.learned, targets.device)
    assert len(positions) == len(indices), "a learned target outside the samples"
    return Selection(positions, indices, local)
