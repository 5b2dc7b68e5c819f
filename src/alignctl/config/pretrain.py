"""Continued pretraining: its sections, and the rules between them."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from typing_extensions import override

from alignctl.config.bounds import MOST_TOKENS
from alignctl.config.data import Inputs
from alignctl.config.numbers import Tokens
from alignctl.config.run import Direction, GrowingConfig, GrowingSettings
from alignctl.config.sections import Optimizer, Train, one_warmup


def _shares(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?(,\d+(\.\d+)?){2}", text) or not sum(_numbers(text)[:1]):
        raise ValueError(
            f"data.split {text!r} is not three shares, of which the first is not 0, such as 98,2,0"
        )
    return text


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


class Corpora(Inputs):
    """Which indexed datasets are learned from, and how their documents become sequences."""

    split: Annotated[str, AfterValidator(_shares)] = "98,2,0"
    """Shares of each dataset's documents, in their order, that are trained on, held out, and left
    alone (Megatron's test split); acts only where `validation` is null."""

    cross_document_attention: bool = True
    """Whether a token sees what precedes its document in the sequence, as in Megatron by default;
    false: documents are cut after each EOD, and attention and positions begin anew."""


class Pretraining(Train):
    """How long, and how often to look."""

    tokens: Tokens | None = None
    """Tokens to train on, over all ranks: rounded down to whole steps of batch.global_batch_size x
    batch.seq_length; acts only where `steps` and `epochs` are null."""


class TokenSchedule(Optimizer):
    """AdamW and its learning-rate schedule."""

    warmup_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    """Tokens over which the learning rate rises from 0 to lr, rounded down to whole steps; in the
    place of warmup_steps or warmup_fraction."""


class PretrainSettings(GrowingSettings):
    """The `pretrain` section of a preset."""

    data: Corpora = Corpora()
    optimizer: TokenSchedule
    train: Pretraining


class PretrainConfig(PretrainSettings, GrowingConfig):
    """A run of continued pretraining."""

    stage: Literal["pretrain"] = "pretrain"
    """The subcommand."""

    @property
    @override
    def measured(self) -> dict[str, Direction]:
        return {**super().measured, "perplexity": "min", "token_accuracy": "max"}

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all ranks."""
        return self.batch.global_batch_size * self.batch.seq_length

    @property
    @override
    def step_size(self) -> tuple[int, str]:
        return self.tokens_per_step, "tokens"

    @property
    @override
    def schedule(self) -> Optimizer:
        if self.optimizer.warmup_tokens is None:
            return self.optimizer
        steps = self.optimizer.warmup_tokens // self.tokens_per_step
        return self.optimizer.model_copy(update={"warmup_steps": steps, "warmup_tokens": None})

    @override
    def total_steps(self, num_sequences: int) -> int:
        if not self._counts_tokens:
            return super().total_steps(num_sequences)
        assert self.train.tokens is not None
        return self.train.tokens // self.tokens_per_step

    @property
    def _counts_tokens(self) -> bool:
        """True if the length of the run is given in tokens."""
        train = self.train
        return train.steps is None and train.epochs is None and train.tokens is not None

    @override
    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.data.blend is not None and self.train.epochs is not None:
            problems.append(
                f"train.epochs {self.train.epochs} is not defined with data.blend, which draws "
                "from its datasets by their weights: give train.tokens or train.steps"
            )
        return problems

    @override
    def _schedule_problems(self) -> list[str]:
        train = self.train
        if train.steps is None and train.epochs is None and train.tokens is None:
            return ["none of train.steps, train.epochs and train.tokens set: give one"]
        if train.tokens is None or not self._counts_tokens:
            return super()._schedule_problems()
        if train.tokens < self.tokens_per_step:
            return [
                f"train.tokens {train.tokens} is less than one step of batch.global_batch_size "
                f"{self.batch.global_batch_size} x batch.seq_length {self.batch.seq_length} = "
                f"{self.tokens_per_step} tokens"
            ]
        return self._optimizer_problems()

    @override
    def _optimizer_problems(self) -> list[str]:
        train = self.train
        total = None if train.epochs is not None else self.total_steps(0)
        described = f"the {total} steps of train.{'tokens' if self._counts_tokens else 'steps'}"
        if several := one_warmup("optimizer", self.optimizer):
            return several
        tokens, steps = self.optimizer.warmup_tokens, self.schedule.warmup_steps
        warmup = None if tokens is None else f"optimizer.warmup_tokens {tokens}, {steps} steps,"
        return self.schedule.problems("optimizer", total, described, warmup=warmup)
