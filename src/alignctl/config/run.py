"""The whole description of a run, and the rules between its sections."""

import math
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from typing_extensions import override

from alignctl.config.data import Data, Inputs, Preferences, ReferencedPreferences, Rows
from alignctl.config.kernels import Kernels
from alignctl.config.precision import LossScale, Precision
from alignctl.config.roles import LongestBatch, ModelRole
from alignctl.config.sections import (
    AnswersBatch,
    Batch,
    Checkpoint,
    DeepSpeed,
    DPOLoss,
    FilePath,
    Launch,
    Lora,
    Model,
    Optimizer,
    Parallel,
    Profile,
    RewardLoss,
    Section,
    Tracking,
    Train,
)

Direction = Literal["min", "max"]
"""Which values are better: the lower, or the higher ones."""

_PAIR = 2
"""Answers of a row where the configuration does not say: a better one and a worse one."""


class Settings(Section):
    """What a preset says about every stage."""

    precision: Precision
    """Of activations and weights; bf16 and fp16 with float32 master weights, fp16 also with a loss
    scale."""

    parallel: Parallel
    launch: Launch


class RunConfig(Settings):
    """What every stage is told: settings, and where things lie."""

    stage: str
    """The subcommand, such as sft."""

    preset: str
    """Name or path of the preset this came from."""

    load: FilePath | None = None
    """The model to start from: a Hugging Face folder, a Megatron checkpoint or a run folder."""

    output: FilePath
    """The run folder."""

    tokenizer: FilePath | None = None
    """Tokenizer folder; null: beside the model."""

    model: Model

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return self.launch.nproc_per_node * self.launch.nnodes

    @property
    def data_parallel_size(self) -> int:
        """Copies of the model that share the batch."""
        return self.copies_of(self.parallel)

    def copies_of(self, layout: Parallel) -> int:
        """Count the data-parallel copies of a model of this layout."""
        return self.world_size // (layout.tp * layout.pp)

    def complete(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """Give a configuration of this stage that was written down the defaults of what it lacks.

        A run that an older alignctl has started can so be told from one with other settings.

        Args:
            recorded: The configuration, as plain values; returned as it is where it is none of
                today's.
        """
        try:
            known = type(self).model_validate(recorded)
        except ValidationError:
            return recorded
        completed: dict[str, Any] = known.model_dump(mode="json")
        return completed

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems = self._problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> list[str]:
        """List every broken rule between sections, each in one line with its numbers."""
        return self._layout_problems()

    def _layout_problems(self) -> list[str]:
        tp, pp = self.parallel.tp, self.parallel.pp
        return [
            *self.model.layout_problems(tp, pp),
            *self.parallel.problems(),
            *self._size_problems(self.parallel, "parallel"),
        ]

    def _size_problems(self, layout: Parallel, key: str) -> list[str]:
        """Say so if the processes cannot be shared out among copies of a layout, named by `key`."""
        tp, pp = layout.tp, layout.pp
        if self.world_size % (tp * pp) == 0:
            return []
        return [
            f"{self.world_size} processes (launch.nproc_per_node "
            f"{self.launch.nproc_per_node} x launch.nnodes {self.launch.nnodes}) are not a "
            f"multiple of {key}.tp {tp} x {key}.pp {pp} = {tp * pp}"
        ]


class TrainingSettings(Settings):
    """What a preset says about every stage that trains one model on rows."""

    engine: Literal["megatron", "deepspeed"] = "megatron"
    """Who trains: megatron is Megatron-Core; deepspeed is ZeRO on transformers' layers, and takes
    from `parallel` only what is recomputed."""

    deepspeed: DeepSpeed = DeepSpeed()
    kernels: Kernels = Kernels()
    batch: Batch
    data: Inputs = Rows()
    optimizer: Optimizer
    loss_scale: LossScale = LossScale()
    lora: Lora | None = None
    """Low-rank adapters to train, of rlhf's value model too; null: all weights are trained."""
    train: Train
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()
    profile: Profile = Profile()


class TrainingConfig(TrainingSettings, RunConfig):
    """A run of such a stage."""

    @property
    def architecture(self) -> Model:
        """Model as it is trained."""
        return self.model

    @property
    def extra_rows(self) -> int | None:
        """Rows that the vocabulary of `model` gets; None in stages that cannot give it any."""
        return None

    @property
    def schedule(self) -> Optimizer:
        """Course of the learning rate, counted in optimizer steps."""
        return self.optimizer

    @property
    def models(self) -> dict[str, ModelRole]:
        """Models of the run by their roles, in the order in which they are made."""
        return {"model": ModelRole(self.parallel, optimizer=self.optimizer)}

    @property
    def needs_reference(self) -> bool:
        """True if the policy is compared with what it was at the start."""
        return False

    @property
    def answers_compared(self) -> int:
        """Texts that a unit of the batch compares with each other, at most; 1: it compares none."""
        return 1

    @property
    def longest_batch(self) -> LongestBatch:
        """Longest micro batch there can be."""
        length = self.batch.seq_length
        return LongestBatch(self.batch.micro_batch_size, length, length)

    @property
    def step_size(self) -> tuple[int, str]:
        """Size of an optimizer step in the data, and its unit."""
        return self.batch.global_batch_size, "rows"

    @property
    def measured(self) -> dict[str, Direction]:
        """What is measured on held-out rows and can be watched, with its better direction."""
        return {"loss": "min"}

    @property
    def watched(self) -> tuple[str, Direction]:
        """What tells the best checkpoint, and its direction."""
        name = self.checkpoint.keep_best or next(iter(self.measured))
        return name, self.checkpoint.best_is or self.measured[name]

    def total_steps(self, num_sequences: int) -> int:
        """Count the optimizer steps of the whole run.

        Args:
            num_sequences: Sequences of one pass over the training data.
        """
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.epochs is not None
        sequences = self.train.epochs * num_sequences
        return max(1, math.ceil(sequences / self.batch.global_batch_size))

    def describe_course(self) -> str:
        """Describe in a line what the run takes, as far as that is known without the data."""
        size, unit = self.step_size
        if self.train.epochs is not None:
            return f"{self.train.epochs:g} passes in steps of {size:,} {unit}"
        steps = self.total_steps(0)
        return f"{steps:,} steps of {size:,} {unit}, {steps * size:,} in all"

    @property
    def pack_capacity(self) -> int | None:
        """Tokens of the sequences that the rows of a step are packed into; None: they are not."""
        return None

    @property
    def num_micro_batches(self) -> int:
        """Forward passes of one data-parallel rank in one optimizer step.

        With rows that are packed step by step as many as there can be: when each fills a sequence.
        """
        return self.micro_batches_of(self.parallel)

    def micro_batches_of(self, layout: Parallel) -> int:
        """Count the same for a model of this layout."""
        share = self.batch.micro_batch_size * self.copies_of(layout)
        return -(-self.batch.global_batch_size // share)

    def _problems(self) -> list[str]:
        return [
            *super()._problems(),
            *self.data.problems(),
            *self._engine_problems(),
            *self._batch_problems(),
            *self._schedule_problems(),
            *self.loss_scale.problems(self.precision),
            *self.kernels.problems(self.model, self.engine),
            *(self.lora.problems(self.model) if self.lora else []),
            *self._overlap_problems(),
            *self.profile.problems(self.train.steps),
            *self._watch_problems(),
        ]

    def _watch_problems(self) -> list[str]:
        settings = self.checkpoint
        if settings.keep_best is not None and settings.keep_best not in self.measured:
            near = get_close_matches(settings.keep_best, self.measured, n=1)
            guess = f"; did you mean {near[0]}?" if near else ""
            return [
                f"checkpoint.keep_best {settings.keep_best}: alignctl {self.stage} does not "
                f"measure this on held-out rows, but {', '.join(self.measured)}{guess}"
            ]
        if settings.best_is and settings.keep_best is None and self.train.patience is None:
            return [
                f"checkpoint.best_is {settings.best_is} has no effect without "
                "checkpoint.keep_best or train.patience"
            ]
        return []

    def _overlap_problems(self) -> list[str]:
        if self.lora is None or not self.parallel.overlap_param_gather:
            return []
        # Nor would Megatron's hooks see that adapters are read.
        return [
            "parallel.overlap_param_gather true has no place with lora: adapters are soon "
            "gathered; leave it out"
        ]

    def _engine_problems(self) -> list[str]:
        if self.engine == "megatron":
            return []
        problems = [
            f"parallel.{name} {value}: engine deepspeed does not cut layers; set parallel.{name} "
            "to 1 (deepspeed.zero_stage 3 spreads the weights over all processes instead)"
            for name, value in (("tp", self.parallel.tp), ("pp", self.parallel.pp))
            if value != 1
        ]
        for name in ("logits_chunk_size", "overlap_grad_reduce", "overlap_param_gather"):
            if value := getattr(self.parallel, name):
                problems.append(
                    f"parallel.{name} {str(value).lower()} has no effect with engine deepspeed: "
                    "leave it out"
                )
        if self.model.hidden_dropout and not self.model.traits.has_hidden_dropout:
            problems.append(
                f"model.hidden_dropout {self.model.hidden_dropout} has no effect with engine "
                f"deepspeed: transformers' {self.model.traits.hf_class} has no such dropout; set "
                "it to 0.0"
            )
        return problems

    @property
    def training_layout(self) -> dict[str, int | bool]:
        """Layout that a checkpoint must have been saved at to be resumed."""
        return self.layout_to_resume(self.parallel)

    def layout_to_resume(self, parallel: Parallel) -> dict[str, int | bool]:
        """Return the layout that a checkpoint of a model must have been saved at to be resumed."""
        if self.engine == "deepspeed":
            return {"zero_stage": self.deepspeed.zero_stage, "dp": self.data_parallel_size}
        return {
            "tp": parallel.tp,
            "pp": parallel.pp,
            "dp": self.copies_of(parallel),
            "distributed_optimizer": parallel.distributed_optimizer,
            "overlap_grad_reduce": parallel.has_buckets,
        }

    def _batch_problems(self) -> list[str]:
        problems = []
        batch, model = self.batch, self.model
        replicas, rest = divmod(self.world_size, self.parallel.tp * self.parallel.pp)
        if rest == 0:
            problems += self._share_problems(replicas)
        if model.traits.is_rotary and batch.seq_length > model.max_position_embeddings:
            problems.append(
                f"batch.seq_length {batch.seq_length} exceeds model.max_position_embeddings "
                f"{model.max_position_embeddings}"
            )
        return problems

    def _share_problems(self, replicas: int) -> list[str]:
        """List the reasons why so many ranks cannot have micro batches of the size given."""
        batch = self.batch
        share = batch.micro_batch_size * replicas
        if self.pack_capacity is not None or batch.global_batch_size % share == 0:
            return []
        return [
            f"batch.global_batch_size {batch.global_batch_size} is not divisible by "
            f"batch.micro_batch_size {batch.micro_batch_size} x {replicas} data-parallel "
            f"ranks = {share}"
        ]

    def _schedule_problems(self) -> list[str]:
        problems = []
        train = self.train
        if (train.steps is None) == (train.epochs is None):
            state = "neither" if train.steps is None else "both"
            problems.append(
                f"{state} of train.steps and train.epochs set: give one (the other is null)"
            )
        return problems + self._optimizer_problems()

    def _optimizer_problems(self) -> list[str]:
        steps = self.train.steps
        return self.optimizer.problems("optimizer", steps, f"train.steps {steps}")


class GrowingSettings(TrainingSettings):
    """What a preset says about stages whose model may get a larger vocabulary."""

    extra_vocab_size: Annotated[int, Field(ge=0, le=10**7)] = 0
    """Rows that the embedding and the output layer get beyond model.vocab_size, each the mean of
    all rows there were: for a tokenizer with more tokens."""


class GrowingConfig(GrowingSettings, TrainingConfig):
    """A run of such a stage."""

    @property
    @override
    def architecture(self) -> Model:
        rows = self.model.vocab_size + self.extra_vocab_size
        return self.model.model_copy(update={"vocab_size": rows})

    @property
    @override
    def extra_rows(self) -> int | None:
        return self.extra_vocab_size

    @override
    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.lora is not None and self.extra_vocab_size:
            problems.append(
                f"extra_vocab_size {self.extra_vocab_size} has no place with lora: adapters leave "
                "the embedding as it is"
            )
        return problems


class SFTSettings(GrowingSettings):
    """The `sft` section of a preset."""

    data: Data = Data()


class SFTConfig(SFTSettings, GrowingConfig):
    """A supervised fine-tuning run."""

    stage: Literal["sft"] = "sft"
    """The subcommand."""

    @property
    @override
    def measured(self) -> dict[str, Direction]:
        return {**super().measured, "token_accuracy": "max"}

    @property
    @override
    def pack_capacity(self) -> int | None:
        return self.batch.seq_length if self.data.packing == "step" else None

    @property
    @override
    def step_size(self) -> tuple[int, str]:
        if self.data.packing != "all":
            return super().step_size
        length = self.batch.seq_length
        return self.batch.global_batch_size, f"packed sequences of {length:,} tokens"


class PreferenceConfig(TrainingConfig):
    """A run that compares the answers of a row."""

    batch: AnswersBatch
    data: Preferences = Preferences()

    @property
    @override
    def measured(self) -> dict[str, Direction]:
        return {**super().measured, "accuracy": "max", "margin": "max"}

    @property
    @override
    def answers_compared(self) -> int:
        return self.data.max_response or _PAIR

    @property
    @override
    def longest_batch(self) -> LongestBatch:
        length = self.batch.seq_length
        return LongestBatch(self.batch.micro_batch_size * self.answers_compared, length, length - 1)

    @override
    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.data.max_response is None and self.data.select != "firstk":
            problems.append(
                f"data.select {self.data.select} has no effect without data.max_response: all "
                "answers are taken; give the number of answers to take"
            )
        return problems


class RewardSettings(TrainingSettings):
    """The `reward` section of a preset."""

    batch: AnswersBatch
    data: Preferences = Preferences()
    loss: RewardLoss = RewardLoss()


class RewardConfig(RewardSettings, PreferenceConfig):
    """The training of a reward model."""

    stage: Literal["reward"] = "reward"
    """The subcommand."""

    @property
    @override
    def models(self) -> dict[str, ModelRole]:
        return {"model": ModelRole(self.parallel, "linear", self.optimizer)}


class DPOSettings(TrainingSettings):
    """The `dpo` section of a preset."""

    batch: AnswersBatch
    data: ReferencedPreferences = ReferencedPreferences()
    loss: DPOLoss = DPOLoss()


class DPOConfig(DPOSettings, PreferenceConfig):
    """Direct preference optimisation."""

    stage: Literal["dpo"] = "dpo"
    """The subcommand."""

    @property
    @override
    def measured(self) -> dict[str, Direction]:
        return {**super().measured, "chosen_reward": "max", "chosen_logprob": "max"}

    @property
    @override
    def needs_reference(self) -> bool:
        return True

    def _problems(self) -> list[str]:
        return [*super()._problems(), *self.loss.problems()]
