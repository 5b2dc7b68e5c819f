"""The sections of a run's configuration: each knob once, with its unit, its bounds, its default."""

import fractions
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from alignctl.config.families import TRAITS, Traits, families_that
from alignctl.config.numbers import (
    Count,
    Fraction,
    Layers,
    MaybeNone,
    Minutes,
    Positive,
    Processes,
    Seconds,
    Seed,
    Several,
    Weight,
    Width,
)

FilePath = Annotated[Path, Field(strict=False)]
"""A path: text is taken for one, although everything else is strict about types."""

Role = Literal["policy", "reward"]
"""What a model is for: a policy gives log-probabilities, a reward (or value) model scores."""

Head = Literal["lm", "linear", "pooler"]
"""What is on top of the last layer. lm: the output layer of a policy. linear: one row without bias
that scores a token, the default of reward models. pooler: two layers with a ReLU between them,
which is ChatLearn's."""


class Section(BaseModel):
    """A group of knobs: frozen, strict about types, and without room for a misspelt key.

    The text below a knob is its documentation. Pydantic could read it (use_attribute_docstrings),
    but parses the source of every class on import, a fifth of the time that a wrong key takes to
    be answered; config.schema reads it when it is asked for.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,
    )


if TYPE_CHECKING:
    Family = str
else:
    Family = Literal[*TRAITS]
"""A family of architectures, by its name."""


class RopeScaling(Section):
    """Rotary positions stretched beyond the length of the first training, as Llama 3.1 does it."""

    factor: Annotated[float, Field(gt=1, le=1e6)]
    """What the slow frequencies are divided by."""

    low_freq_factor: Annotated[float, Field(gt=0, le=1e6)]
    """Frequencies that turn fewer times than this within the original length are slow."""

    high_freq_factor: Annotated[float, Field(gt=0, le=1e6)]
    """Those that turn more often stay as they are; between the two it is interpolated."""

    original_max_position_embeddings: Count
    """Longest sequence of the first training, in tokens."""

    @model_validator(mode="after")
    def _has_a_band(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} is not less than high_freq_factor "
                f"{self.high_freq_factor}"
            )
        return self


class Model(Section):
    """The architecture. A model folder's own config.json must agree with it."""

    family: Family
    """bloom: LayerNorm, GELU, ALiBi, biases. The others: RMSNorm, SwiGLU, rotary positions, no
    biases; llama3 may scale its positions, qwen2 has biases on queries, keys and values, qwen3
    normalises queries and keys."""

    num_layers: Layers
    """Transformer layers, over all pipeline stages."""

    hidden_size: Width
    """Width of the residual stream."""

    num_attention_heads: Width
    """Query heads of each layer, over all tensor-parallel ranks."""

    num_query_groups: Width
    """Key-value heads of each layer; as many as query heads when there is no grouping."""

    ffn_hidden_size: Width
    """Inner width of the feed-forward block."""

    vocab_size: Count
    """Rows of the Hugging Face embedding, before any padding."""

    max_position_embeddings: Count
    """Longest sequence the weights were trained on, in tokens; for bloom it is no limit."""

    norm_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Added to the variance in RMSNorm and LayerNorm."""

    rotary_base: Annotated[float, Field(gt=0, le=1e12)] | None = None
    """Base of the rotary frequencies; bloom has none, all others need it."""

    head_dim: Width | None = None
    """Width of an attention head where it is not hidden_size / num_attention_heads, as in mistral
    and qwen3; null: it is."""

    rope_scaling: RopeScaling | None = None
    """How rotary positions are stretched, in llama3; null: they are not."""

    tie_embeddings: bool
    """Whether the output layer is the embedding itself."""

    vocab_divisor: Count = 128
    """The embedding is padded to a multiple of this times tp, as Megatron does."""

    attention_dropout: Fraction = 0.0
    """Probability of dropping an attention weight while training."""

    hidden_dropout: Fraction = 0.0
    """Probability of dropping an element of a block's output while training."""

    @property
    def traits(self) -> Traits:
        """What all models of the family are alike in."""
        return TRAITS[self.family]

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def attention_width(self) -> int:
        """Width of all query heads end to end."""
        return self.num_attention_heads * self.head_width

    def padded_vocab_size(self, tp: int) -> int:
        """Count the rows of the embedding as Megatron holds it, over all `tp` ranks."""
        multiple = self.vocab_divisor * tp
        return -(-self.vocab_size // multiple) * multiple

    def layout_problems(self, tp: int, pp: int, *, prefix: str = "parallel.") -> list[str]:
        """List the reasons why this model cannot be cut into `tp` x `pp` parts, one per line.

        Args:
            tp: Tensor-parallel ranks.
            pp: Pipeline stages.
            prefix: What the user writes before tp and pp.
        """
        divisions = [
            ("model.num_attention_heads", self.num_attention_heads, f"{prefix}tp", tp),
            ("model.num_query_groups", self.num_query_groups, f"{prefix}tp", tp),
            ("model.ffn_hidden_size", self.ffn_hidden_size, f"{prefix}tp", tp),
            ("model.num_layers", self.num_layers, f"{prefix}pp", pp),
        ]
        return [
            f"{name} {number} is not divisible by {by} {divisor}"
            for name, number, by, divisor in divisions
            if number % divisor
        ]

    @model_validator(mode="after")
    def _architecture_is_possible(self) -> Self:
        problems = self._head_problems()
        heads, groups = self.num_attention_heads, self.num_query_groups
        if heads % groups:
            problems.append(
                f"num_attention_heads {heads} is not divisible by num_query_groups {groups}"
            )
        if self.traits.is_rotary and self.rotary_base is None:
            problems.append(f"rotary_base is missing: {self.family} needs it (10000.0 for Llama 2)")
        if self.traits.positions == "alibi":
            problems.extend(self._alibi_problems())
        if self.rope_scaling and not self.traits.may_scale_positions:
            problems.append(
                f"rope_scaling is set: {self.family} has no scaled rotary positions; those that "
                f"have are {families_that('may_scale_positions')}"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _head_problems(self) -> list[str]:
        """List what is wrong with the width of heads."""
        heads, own = self.num_attention_heads, self.head_dim
        source = f"hidden_size {self.hidden_size} / num_attention_heads {heads}"
        if own is None and self.hidden_size % heads:
            return [
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {heads}"
            ]
        if own is not None and own * heads == self.hidden_size:
            return [f"head_dim {own} has no effect: it is {source}; leave it out"]
        if own is not None and not self.traits.may_set_head_dim:
            return [
                f"head_dim {own} is not {source}, as {self.family} has it; those that may have "
                f"another are {families_that('may_set_head_dim')}"
            ]
        if self.traits.is_rotary and self.head_width % 2:
            which = f"{source} gives heads of" if own is None else "head_dim"
            return [f"{which} {self.head_width}, and rotary positions need an even number"]
        return []

    def _alibi_problems(self) -> list[str]:
        """List what Hugging Face's Bloom cannot express, so that it could never be written back."""
        problems = []
        if self.rotary_base is not None:
            problems.append(
                f"rotary_base {self.rotary_base} has no effect: {self.family} uses ALiBi"
            )
        if self.num_query_groups != self.num_attention_heads:
            problems.append(
                f"num_query_groups {self.num_query_groups} differs from num_attention_heads "
                f"{self.num_attention_heads}: {self.family} has no grouped queries"
            )
        if self.ffn_hidden_size != 4 * self.hidden_size:
            problems.append(
                f"ffn_hidden_size {self.ffn_hidden_size} is not 4 x hidden_size "
                f"{self.hidden_size}, as {self.family} has it"
            )
        return problems


class Parallel(Section):
    """How one model is laid over GPUs; what remains of them is data parallel."""

    tp: Processes = 1
    """Tensor-parallel ranks: each layer is cut this many ways."""

    pp: Processes = 1
    """Pipeline stages: the layers are cut this many ways."""

    sequence_parallel: bool = False
    """Also cut activations between the tensor-parallel blocks; acts only when tp > 1."""

    distributed_optimizer: bool = False
    """Spread the optimizer's state over the data-parallel ranks."""

    overlap_grad_reduce: bool = False
    """Sum gradients over the data-parallel ranks while the last micro batch still goes backward."""

    overlap_param_gather: bool = False
    """Gather new weights while the next step goes forward, with distributed_optimizer and
    overlap_grad_reduce."""

    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: none, attention's, or whole layers'."""

    logits_chunk_size: Count | None = None
    """Learned tokens of a micro batch whose logits exist at a time, computed again in the backward
    pass: for large vocabularies. null: those of all, computed once. A reward model has none."""

    def problems(self) -> list[str]:
        """List settings that need others, one line each."""
        needed = [
            f"parallel.{name} true"
            for name in ("distributed_optimizer", "overlap_grad_reduce")
            if self.overlap_param_gather and not getattr(self, name)
        ]
        return [f"parallel.overlap_param_gather true needs {' and '.join(needed)}"] * bool(needed)

    @property
    def has_buckets(self) -> bool:
        """True if buckets of gradients, too, decide which rank has which optimizer state."""
        return self.distributed_optimizer and self.overlap_grad_reduce


class Launch(Section):
    """The processes to start."""

    nproc_per_node: Processes
    """Processes on each node: one per GPU."""

    nnodes: Processes = 1
    """Nodes, each of which runs the same command."""

    timeout_minutes: Minutes = 30
    """How long a rank waits for the others in one collective before it gives up."""

    start_timeout_seconds: Seconds = 600
    """How long nodes, and then ranks, wait for each other before the start."""

    node_timeout_seconds: Seconds = 120
    """Of several nodes: one that has not been heard of for this long is lost, and ends the job."""

    max_restarts: MaybeNone = 0
    """How often a job that lost a process or a node goes on by itself from its last checkpoint."""


class Batch(Section):
    """How many sequences, and how long. Of preferences, a prompt with all its answers is one."""

    micro_batch_size: Count
    """Sequences in one forward pass on one data-parallel rank."""

    global_batch_size: Count
    """Sequences per optimizer step, over all data-parallel ranks; with data.packing=step rows."""

    seq_length: Several
    """Longest sequence in tokens; with packing, the capacity that documents are packed into."""


class AnswersBatch(Batch):
    """How many sequences, and how long. Of preferences, a prompt with all its answers is one."""

    share_prompts: bool = True
    """Whether what the answers to one prompt begin with is computed once for all of them: in fewer
    tokens the same numbers but for rounding. false: once for each."""


class EpisodeBatch(AnswersBatch):
    """How many answers, and how long; of online-dpo, a prompt with all its answers is one."""

    micro_batch_tokens: Count | None = None
    """Most input tokens, as they are computed, in one forward pass on one data-parallel rank, in
    updates and where nothing is learned; at least those of the longest prompt and answer. It takes
    the place of micro_batch_size and experience.score_batch_size, which then have no effect; null:
    these count."""


COUNTED = (("batch", "micro_batch_size"), ("experience", "score_batch_size"))
"""The knobs whose place `batch.micro_batch_tokens` takes; every preset has the first."""


class RewardLoss(Section):
    """What a reward model minimises: -log sigmoid(r_b - r_w) of a better and a worse answer."""

    margin: Weight = 0.0
    """How far apart scores have to be for each unit between the data's; 0: the order is all."""

    centering: Weight = 0.0
    """Weight of (r_b + r_w)^2, which draws the scores of a pair towards a sum of 0; TRL suggests
    0.01."""


DPOVariant = Literal["sigmoid", "sigmoid_norm", "ipo"]
"""Which loss of direct preference optimisation."""


class DPOLoss(Section):
    """What direct preference optimisation minimises."""

    variant: DPOVariant = "sigmoid"
    """sigmoid: DPO itself. sigmoid_norm: with log-probabilities per token of the answer, so that
    long answers have no larger steps. ipo: a squared distance, also per token."""

    beta: Positive = 0.1
    """How strongly the policy is held to the reference."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a preference is the wrong way round (conservative DPO); not of ipo."""

    nll: Weight = 0.0
    """Weight of the better answer's own loss per token (RPO), which keeps it likely."""

    def problems(self) -> list[str]:
        """List settings that have no effect beside each other, one line each."""
        if self.variant == "ipo" and self.label_smoothing:
            return [
                f"loss.label_smoothing {self.label_smoothing} has no effect with loss.variant "
                "ipo: a squared distance has no wrong way round; set it to 0"
            ]
        return []


class Optimizer(Section):
    """AdamW and its learning-rate schedule."""

    lr: Annotated[float, Field(gt=0, le=10)]
    """Learning rate at the end of the warm-up."""

    min_lr: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Learning rate at the end of the decay."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate from lr to min_lr after the warm-up."""

    warmup_steps: MaybeNone | None = None
    """Optimizer steps over which the learning rate rises from 0 to lr; null: warmup_fraction says
    how many."""

    warmup_fraction: Fraction | None = None
    """The same as a share of decay_steps, rounded down to whole steps, so that a shorter run warms
    up for a shorter time; null: the learning rate is lr from the first step on."""

    decay_steps: Count | None = None
    """Optimizer step at which min_lr is reached, warm-up included; null: the last step."""

    weight_decay: Weight = 0.0
    """Decoupled weight decay of matrices; biases and norms have none."""

    clip_grad: Positive | None = 1.0
    """Largest norm of the gradient of all parameters together; null: not clipped."""

    beta1: Fraction = 0.9
    """Decay of the first moment."""

    beta2: Fraction = 0.999
    """Decay of the second moment."""

    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the square root of the second moment."""

    def problems(
        self, key: str, total: int | None, described: str, *, warmup: str | None = None
    ) -> list[str]:
        """List the reasons why the learning rate cannot take this course, one line per reason.

        Args:
            key: What the user writes before the names of these knobs.
            total: Optimizer steps of the run, where they are known.
            described: That number as the user knows it.
            warmup: Likewise the steps of the warm-up, where that is not `warmup_steps`.
        """
        problems = []
        if self.min_lr > self.lr:
            problems.append(f"{key}.min_lr {self.min_lr} exceeds {key}.lr {self.lr}")
        if self.decay_steps is not None:
            total, described = self.decay_steps, f"{key}.decay_steps {self.decay_steps}"
        if total is not None and self.warmup(total) >= total:
            warmup = warmup or f"{key}.warmup_steps {self.warmup_steps}"
            problems.append(
                f"{warmup} is not less than {described}: lower it, or give a share of the steps "
                f"in its place, such as {key}.warmup_fraction=0.1"
            )
        return problems + one_warmup(key, self)

    def warmup(self, total_steps: int) -> int:
        """Count the optimizer steps of the warm-up in a run of so many."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return share_of(self.warmup_fraction or 0.0, self.decay_steps or total_steps)


WARMUPS = ("warmup_steps", "warmup_fraction", "warmup_tokens")
"""The knobs of which one says how long a warm-up is."""


def one_warmup(key: str, section: Section) -> list[str]:
    """Return a line if a section, which the user calls `key`, has several warm-up lengths."""
    values = {name: getattr(section, name, None) for name in WARMUPS}
    given = [f"{key}.{name} {value}" for name, value in values.items() if value is not None]
    return [f"{' and '.join(given)}: give one (null unsets)"] if len(given) > 1 else []


def share_of(fraction: float, total: int) -> int:
    """Take a share of steps, rounded down; 0.29 of 100 are 29, though the float 0.29 is less."""
    return math.floor(fractions.Fraction(str(fraction)) * total)


class Lora(Section):
    """Low-rank adapters, trained in the place of the weights, which stay as they are."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rows of A and columns of B; less than the model's hidden_size."""

    alpha: Annotated[float, Field(gt=0, le=65536)] = 32.0
    """An adapter adds alpha / rank x B A x to what its layer computes."""

    dropout: Fraction = 0.0
    """Probability of dropping an element of an adapter's input while training; not of the stages
    that learn from their own answers."""

    targets: Annotated[
        tuple[str, ...],
        Field(min_length=1, strict=False),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = ("all",)
    """What gets adapters: all, attention, mlp, or names of linear layers as Hugging Face has them,
    such as [q_proj, v_proj]."""

    def modules(self, family: str) -> tuple[str, ...]:
        """List Hugging Face's names of the targets, in the order of a layer."""
        groups = TRAITS[family].lora_targets
        return tuple(
            name
            for group, names in groups.items()
            for name in names
            if {"all", group, name} & set(self.targets)
        )

    def problems(self, model: Model) -> list[str]:
        """List the reasons why this model cannot have these adapters, one line per reason."""
        groups = model.traits.lora_targets
        names = [name for each in groups.values() for name in each]
        known = {"all", *groups, *names}
        problems = [
            f"lora.targets names {target!r}, which {model.family} does not have: its layers are "
            f"{', '.join(names)}, and its groups all, {', '.join(groups)}"
            for target in self.targets
            if target not in known
        ]
        if self.rank >= model.hidden_size:
            problems.append(
                f"lora.rank {self.rank} is not less than model.hidden_size {model.hidden_size}: "
                "such adapters are larger than what they change"
            )
        return problems


class Train(Section):
    """How long, and how often to look."""

    steps: Count | None = None
    """Optimizer steps; either this or `epochs`."""

    epochs: Positive | None = None
    """Passes over the training rows; either this or `steps`."""

    seed: Seed = 1234
    """Seed of the order of the rows and of everything random."""

    eval_interval: Count = 1000
    """Optimizer steps between two validations; the last step is always followed by one."""

    eval_batches: Count | None = None
    """Global batches per validation; null: every validation row once."""

    patience: Count | None = None
    """Validations in a row without a better checkpoint.keep_best (null there: loss, or score of the
    on-policy stages) after which the run ends, as if it had come to its last step; null: never."""

    log_interval: Count = 1
    """Optimizer steps between two rows of metrics."""


class Checkpoint(Section):
    """When checkpoints are written, and how many stay."""

    save_interval: Count = 1000
    """Optimizer steps between two checkpoints; the last step always gets one."""

    keep: Count | None = None
    """Newest checkpoints kept on disk; null: all of them."""

    keep_best: str | None = None
    """What is measured on held-out rows, such as loss: whenever it is better than ever, a
    checkpoint is written, linked as best/ in the run folder and never removed; null: none is."""

    best_is: Literal["min", "max"] | None = None
    """Which value of it is the best; null: the lowest of a loss, the highest of an accuracy."""


class Tracking(Section):
    """Trackers that get what metrics.jsonl gets, by their own libraries: see docs/tracking.md."""

    wandb: bool = False
    """Weights & Biases: offline unless WANDB_API_KEY or WANDB_MODE say otherwise."""

    mlflow: bool = False
    """MLflow: in files of the run folder unless MLFLOW_TRACKING_URI names a server."""

    trackio: bool = False
    """Trackio: in the run folder unless TRACKIO_DIR names another."""

    swanlab: bool = False
    """SwanLab: offline unless SWANLAB_API_KEY or SWANLAB_MODE say otherwise."""

    project: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9._-]+$")] = (
        "alignctl"
    )
    """What trackers file the run under: letters, digits, dots, dashes."""

    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """What the run is called there; null: the name of its folder."""

    @property
    def names(self) -> list[str]:
        """Trackers that are wanted."""
        return [name for name in ("wandb", "mlflow", "trackio", "swanlab") if getattr(self, name)]


class Profile(Section):
    """Steps of which rank 0 leaves a trace of torch's profiler."""

    steps: Annotated[tuple[Count, ...], Field(min_length=2, max_length=2, strict=False)] | None = (
        None
    )
    """The first and the last of them, such as [10, 12]; null: none. The trace is written to
    profile/ in the run folder, for chrome://tracing or Perfetto."""

    def problems(self, total: int | None) -> list[str]:
        """List the reasons why these steps cannot be profiled, one line per reason.

        Args:
            total: Steps of the run, where they are known.
        """
        if self.steps is None:
            return []
        first, last = self.steps
        shown = f"profile.steps [{first}, {last}]"
        if last < first:
            return [f"{shown}: the last step is before the first one"]
        if last - first >= _MOST_PROFILED:
            return [
                f"{shown}: {last - first + 1} steps, and a trace of more than {_MOST_PROFILED} is "
                "too large to be opened"
            ]
        if total is not None and last > total:
            return [f"{shown}: the run has {total} steps (train.steps)"]
        return []


_MOST_PROFILED = 20
"""Steps of a trace."""


class DeepSpeed(Section):
    """How DeepSpeed spreads a model over the data-parallel ranks; acts only with that engine."""

    zero_stage: Literal[1, 2, 3] = 2
    """What each rank holds only a share of: 1 the optimizer's state, 2 also the gradients, 3 also
    the weights."""

    offload_optimizer: bool = False
    """Keep the optimizer's state in the memory of the CPU, and take its steps there."""
