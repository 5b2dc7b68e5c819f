"""Answers that the policy has given: what every on-policy step learns from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from alignctl.algorithms.samples import Segments
from alignctl.data.batch import (
    Document,
    PreferenceBatch,
    TokenBatch,
    count_computed,
    with_every_token_an_input,
)
from alignctl.data.distinct import find_distinct
from alignctl.data.micro_batches import dealt_groups, dealt_micro_batches


@dataclass(frozen=True, eq=False)
class Samples:
    """The answers of one episode, S in all, the same on every rank.

    Attributes:
        prompts: The number of each answer's prompt in the prepared data `[S]`.
        groups: Answers to one prompt have one number `[S]`; a prompt that is asked twice in one
            episode makes two groups.
        questions: Token ids of the prompt of each answer.
        answers: Token ids of each answer, the end token included where it ended; at least one.
        logprobs: What the sampler says of the answers' tokens, end to end `[N]`.
        is_finished: Whether an answer ended by itself, before the limit `[S]`.
    """

    prompts: NDArray[np.int64]
    groups: NDArray[np.int64]
    questions: list[NDArray[np.int32]]
    answers: list[NDArray[np.int32]]
    logprobs: NDArray[np.float64]
    is_finished: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.answers)

    @cached_property
    def segments(self) -> Segments:
        """Places of the tokens of each answer among all answers' tokens."""
        lengths = torch.tensor([len(answer) for answer in self.answers], dtype=torch.int64)
        return Segments.of_lengths(lengths)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each answer `[S]`."""
        return np.asarray([len(answer) for answer in self.answers], np.int64)

    @property
    def distinct(self) -> tuple[list[int], NDArray[np.int64]]:
        """Samples of which each is the first of its equals (same prompt and answer), D in all.

        Returns:
            Numbers of samples `[D]`, rising; and for each sample a place in them `[S]`.
        """
        contents = [answer.tobytes() for answer in self.answers]
        return find_distinct(zip(self.prompts.tolist(), contents, strict=True))

    def select(self, samples: Sequence[int]) -> Self:
        """Select these answers alone, in this order."""
        parts = np.split(self.logprobs, np.cumsum(self.lengths)[:-1])
        return type(self)(
            prompts=self.prompts[samples],
            groups=self.groups[samples],
            questions=[self.questions[sample] for sample in samples],
            answers=[self.answers[sample] for sample in samples],
            logprobs=np.concatenate([parts[sample] for sample in samples]),
            is_finished=self.is_finished[samples],
        )

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Join the answers of several, end to end; groups keep their numbers."""
        return cls(
            prompts=np.concatenate([part.prompts for part in parts]),
            groups=np.concatenate([part.groups for part in parts]),
            questions=[each for part in parts for each in part.questions],
            answers=[each for part in parts for each in part.answers],
            logprobs=np.concatenate([part.logprobs for part in parts]),
            is_finished=np.concatenate([part.is_finished for part in parts]),
        )

    def tokens(self, sample: int) -> int:
        """Count the tokens of a prompt and its answer."""
        return len(self.questions[sample]) + len(self.answers[sample])

    def said(self, sample: int) -> list[int]:
        """Return the tokens of an answer without its end token, which need not be special."""
        tokens: list[int] = self.answers[sample].tolist()
        return tokens[:-1] if self.is_finished[sample] else tokens

    def end_by(self, eos_id: int) -> Self:
        """End answers by EOS, whatever token ended them, as a reward model reads them.

        It learned at EOS what an answer is worth, and the policy may end one by other tokens too.
        """
        eos = np.asarray([eos_id], np.int32)
        answers = [
            np.concatenate([answer[:-1], eos]) if is_finished else answer
            for answer, is_finished in zip(self.answers, self.is_finished, strict=True)
        ]
        return replace(self, answers=answers)

    def document(self, sample: int) -> Document:
        """Join prompt and answer; the answer is learned, and the number is the document's row."""
        question, answer = self.questions[sample], self.answers[sample]
        tokens = np.concatenate([question, answer]).astype(np.int32)
        return Document(tokens, np.arange(len(tokens)) >= len(question), sample)

    def by_prompt(self, samples: Sequence[int]) -> list[list[int]]:
        """Group these answers by their prompt; groups are in the order of their first answers."""
        groups: dict[int, list[int]] = {}
        for sample in samples:
            groups.setdefault(int(self.prompts[sample]), []).append(sample)
        return list(groups.values())

    def batches(
        self,
        samples: Sequence[int],
        *,
        micro_batch_size: int,
        micro_batch_tokens: int | None = None,
        dp_rank: int,
        dp_size: int,
        share_prompts: bool = False,
    ) -> list[TokenBatch]:
        """Make one rank's micro batches, which hold each of these answers once over all ranks.

        Args:
            samples: Numbers of the answers.
            micro_batch_size: Answers in a micro batch.
            micro_batch_tokens: In its place, the most tokens that are computed; None: it counts.
            dp_rank: This data-parallel rank.
            dp_size: Data-parallel ranks.
            share_prompts: Whether what the answers to a prompt begin with is computed once; they
                are then in one micro batch, or in few.

        Returns:
            As many on every rank; one that runs out ends with fillers.
        """
        dealt = self._partition(
            samples,
            self.document,
            micro_batch_size=micro_batch_size,
            micro_batch_tokens=micro_batch_tokens,
            dp_rank=dp_rank,
            dp_size=dp_size,
            share_prompts=share_prompts,
        )
        return [TokenBatch.sharing(self._documents(groups)) for groups in dealt]

    def scored_batches(
        self,
        *,
        micro_batch_size: int,
        micro_batch_tokens: int | None = None,
        dp_rank: int,
        dp_size: int,
        share_prompts: bool = False,
    ) -> list[TokenBatch]:
        """Make micro batches of all answers for a reward model, which reads the last token too."""

        def read_whole(sample: int) -> Document:
            return with_every_token_an_input(self.document(sample))

        dealt = self._partition(
            range(len(self)),
            # Where answers are counted, tokens only balance ranks: as ever by those of a policy.
            self.document if micro_batch_tokens is None else read_whole,
            micro_batch_size=micro_batch_size,
            micro_batch_tokens=micro_batch_tokens,
            dp_rank=dp_rank,
            dp_size=dp_size,
            share_prompts=share_prompts,
        )
        return [
            PreferenceBatch.from_groups(
                self._documents(groups), np.zeros(sum(map(len, groups))), share_prompts=True
            )
            for groups in dealt
        ]

    def _documents(self, groups: Sequence[Sequence[int]]) -> list[list[Document]]:
        return [[self.document(sample) for sample in group] for group in groups]

    def _partition(
        self,
        samples: Sequence[int],
        document: Callable[[int], Document],
        *,
        micro_batch_size: int,
        micro_batch_tokens: int | None,
        dp_rank: int,
        dp_size: int,
        share_prompts: bool,
    ) -> list[list[list[int]]]:
        """Deal the answers to the micro batches of a rank, in groups with a shared beginning.

        Ranks have about as many tokens; `document` makes what is computed for an answer.
        """
        groups = self.by_prompt(samples) if share_prompts else [[sample] for sample in samples]
        if len(groups) < len(samples) or micro_batch_tokens is not None:
            known = cache(document)
            return dealt_groups(
                groups,
                lambda part: count_computed([known(sample) for sample in part]),
                micro_batch_size=micro_batch_size,
                micro_batch_tokens=micro_batch_tokens,
                dp_rank=dp_rank,
                dp_size=dp_size,
            )
        parts = dealt_micro_batches(
            [self.tokens(sample) for sample in samples],
            micro_batch_size=micro_batch_size,
            dp_rank=dp_rank,
            dp_size=dp_size,
        )
        return [[[samples[place]] for place in part] for part in parts]
