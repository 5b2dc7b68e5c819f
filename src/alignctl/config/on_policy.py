"""The sections of stages that learn from what the policy writes itself."""

from typing import Annotated, Literal

from pydantic import Field

from alignctl.config.data import Rows
from alignctl.config.numbers import (
    Count,
    Fraction,
    MaybeNone,
    Positive,
    Processes,
    ProcessorSeconds,
    Real,
    Several,
    Weight,
)
from alignctl.config.rewards import RewardFunction, label_problems
from alignctl.config.sections import FilePath, Optimizer, Section, Train

LongPrompts = Literal["drop", "cut"]
"""What happens to a prompt with too many tokens: its row is left out, or it loses its start."""

ScoreSource = Literal["dense_only", "sparse_only", "merge", "functions"]
"""Who scores answers, in the words of ChatLearn's `math_reward_strategy`: a reward model, the rule
that each row names, or both; and what ChatLearn has not, rewards of one's own alone."""

MissingEOS = Literal["keep", "replace", "add"]
"""What a given score does to an answer that the limit cut: nothing, takes its place, is added."""

Aggregation = Literal["token", "sequence", "constant"]
"""What a loss is the mean over: tokens, answers, or answers of a constant number of tokens."""


Baseline = Literal["group_std", "group_mean", "rloo", "reinforce++"]
"""What an answer's score is compared with, to tell how much better than others it is."""

PairChoice = Literal["best_worst", "all"]
"""Which answers to a prompt are compared: the best and the worst, or every two that differ."""


class Prompts(Rows):
    """What the policy is asked."""

    max_prompt_length: Several = 512
    """Most tokens of a prompt, BOS included."""

    long_prompts: LongPrompts = "drop"
    """What happens to a prompt with more: drop leaves its row out; cut takes its start away, but
    never BOS. Either is counted and told."""


class Episodes(Train):
    """How long, and how often to look.

    A step, here and in checkpoints, is an episode: the policy answers prompts, the answers are
    scored, and it learns from them in one update or several.
    """

    steps: Count | None = None
    """Episodes; either this or `epochs`."""

    epochs: Positive | None = None
    """Passes over the prompts; either this or `steps`."""

    eval_interval: Count = 100
    """Episodes between two validations; the last is always followed by one."""

    eval_batches: Count | None = None
    """Held-out prompts per validation, in multiples of the prompts of an episode; null: all."""

    log_interval: Count = 1
    """Episodes between two rows of metrics."""


class Experience(Section):
    """What one episode gathers, and how often it is learned from."""

    prompts: Count
    """Prompts of one episode, over all ranks."""

    samples: Count = 1
    """Answers to each prompt, which are compared with each other."""

    epochs: Count = 1
    """Passes over the answers of an episode while learning."""

    score_batch_size: Count = 8
    """Answers in one forward pass where nothing is learned, on one data-parallel rank: of the
    reward, reference and value models."""

    max_refills: MaybeNone = 0
    """Further prompts are asked, at most so many times, in the place of those whose answers all
    got the same score, before penalties of length and repetition (DAPO's dynamic sampling); 0: they
    stay, and teach nothing but these penalties."""

    shown: MaybeNone = 1
    """Answers of an episode that are shown while the run goes on; all are in samples/."""


class Trust(Section):
    """What is done about answers that are not quite the trained policy's own.

    The sampler computes log-probabilities in another way than the trainer.
    """

    correction: Literal["truncate", "mask_tokens", "mask_samples", "none"] = "truncate"
    """truncate: each token weighs p_trainer / p_sampler, at most cap. mask_tokens, mask_samples:
    tokens, or answers by their geometric mean, with a ratio outside of low to high do not count."""

    cap: Annotated[float, Field(ge=1, le=1e9)] = 2.0
    """The largest weight, with truncate."""

    low: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The smallest ratio that counts, with a mask; for answers rather 0.999."""

    high: Annotated[float, Field(ge=1, le=1e9)] = 5.0
    """The largest; for answers rather 1.002."""

    max_difference: Positive = 0.1
    """Mean |log p_trainer - log p_sampler| per token above which the run stops: about 1e-6 in
    float32 and 0.01 in bfloat16 are usual, more with top_p or top_k."""


class Score(Section):
    """How answers are scored."""

    source: ScoreSource = "dense_only"
    """In ChatLearn's words. dense_only: by the reward model. sparse_only: by the rule that each row
    names, 1 or 0. merge: both, added. functions: by score.functions alone, which any of the others
    may have beside it."""

    functions: list[RewardFunction] = Field([], max_length=32)
    """Rewards of one's own, weighted and added to the score: Python functions and servers, such as
    [{file: my_reward.py, weight: 2.0}, {url: "http://127.0.0.1:8000", name: judge}]."""

    bias: Real = 0.0
    """Taken from a reward model's score before anything else."""

    clip: Positive = 100.0
    """Largest magnitude of a reward model's score."""

    model_coef: Positive = 1.0
    """Weight of the reward model's score, scaled and clipped; a rule's has 1."""

    scale: Literal["none", "running"] = "none"
    """running: scores of the reward model are divided by the deviation of all of them so far."""

    missing_eos: MissingEOS | None = None
    """What becomes of the score of an answer that the limit cut, at whose last token a reward model
    never learned to score: missing_eos_score takes its place, or is added to it, or it stays; null:
    replace where a reward model takes part, keep where a rule alone scores. But with keep, such an
    answer is never preferred to another one."""

    missing_eos_score: Real | None = None
    """See missing_eos. null: with replace, 1 less than the lowest score of an answer of the episode
    that ended, whatever the level of the reward model's scores is; with add, -1."""

    overlong_buffer: Count | None = None
    """Tokens before rollout.max_new_tokens over which a penalty grows from 0 to 1 (DAPO); null:
    none."""

    ngram_coef: Weight = 0.0
    """Weight of ChatLearn's penalty of repeated pairs and triples of tokens."""

    workers: Processes = 1
    """Processes of each rank that judge answers by rules, and of each function in a file."""

    timeout_seconds: ProcessorSeconds = 3.0
    """Processor seconds that judging one answer may take; 20 times as long by the clock. One that
    takes longer is tried once more, alone, before it counts as wrong."""

    alarm_after: Count = 3
    """Episodes in a row without any score but 0 from the rule after which a warning is given."""

    @property
    def needs_model(self) -> bool:
        """True if a reward model takes part."""
        return self.source in ("dense_only", "merge")

    @property
    def of_cut_answers(self) -> MissingEOS:
        """`missing_eos`, or what its null means."""
        return self.missing_eos or ("replace" if self.needs_model else "keep")

    def problems(self) -> list[str]:
        """List what is wrong between these knobs, a line each."""
        problems = label_problems(self.functions, "score.functions")
        if self.source == "functions" and not self.functions:
            problems.append("score.source functions: score.functions is empty, so nothing scores")
        return problems


class GroupScore(Score):
    """How answers are scored that are compared with each other."""

    source: ScoreSource = "sparse_only"
    """In ChatLearn's words. sparse_only: by the rule that each row names, 1 or 0. dense_only: by
    the reward model. merge: both, added. functions: by score.functions alone, which any of the
    others may have beside it."""


class Penalty(Section):
    """What distance from the reference costs, as a part of the reward."""

    coef: Weight = 0.02
    """Cost of a nat of KL; with the adaptive controller, at first."""

    controller: Literal["fixed", "adaptive"] = "fixed"
    """adaptive: the coefficient leads the KL of whole answers towards target (Ziegler 2019)."""

    target: Positive = 6.0
    """Nats per answer, with adaptive."""

    horizon: Positive = 10000.0
    """Answers over which the coefficient adapts, with adaptive."""

    lm_coef: Real = 0.0
    """Reward of each token per nat of the reference's own log-probability."""


class Clipping(Section):
    """How far one episode may move the policy."""

    variant: Literal["ppo", "gspo", "cispo"] = "ppo"
    """ppo: each token's ratio is clipped. gspo: the answer's geometric mean, with bounds such as
    clip_low 3e-4 and clip_high 4e-4. cispo: the ratio is a clipped weight without a gradient."""

    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    """How far below 1 the ratio of new to old probabilities still has a gradient."""

    clip_high: Positive = 0.2
    """How far above 1; DAPO takes 0.28."""

    dual_clip: Annotated[float, Field(gt=1, le=1e9)] | None = None
    """Bound of the loss of bad tokens, in multiples of their advantage; only of ppo; null: none."""

    aggregation: Aggregation = "token"
    """Mean over tokens, over answers of the means over their tokens (GRPO), or over answers of sums
    divided by rollout.max_new_tokens (Dr. GRPO)."""

    entropy_coef: Weight = 0.0
    """Weight of the entropy, which keeps the policy curious."""

    max_kl: Positive | None = None
    """KL of old and new policy per token above which an episode's remaining updates are left out;
    null: none are."""


class GroupClipping(Clipping):
    """How far one episode may move the policy, and what holds it to the reference."""

    aggregation: Aggregation = "sequence"
    """Mean over tokens (DAPO), over answers of the means over their tokens (GRPO), or over answers
    of sums divided by rollout.max_new_tokens (Dr. GRPO)."""

    kl_coef: Weight = 0.0
    """Weight of the KL to the reference in the loss, with the value of k3 and the gradient of k2;
    0: no reference model is held."""


class Value(Section):
    """The value model: what an answer will be worth, from each prefix of it."""

    load: FilePath | None = None
    """The model it starts from; null: the reward model."""

    optimizer: Optimizer
    """Its own AdamW."""

    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount of rewards by distance in tokens."""

    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """GAE's lambda: 1 trusts the rewards, 0 the values."""

    clip: Positive | None = 0.1
    """How far a value may move in one episode; null: any distance."""

    clipped_only: bool = False
    """ChatLearn's variant of clipping, in which a value that has gone too far stays there."""

    warmup_steps: MaybeNone | None = None
    """Episodes at the start in which only the value model learns; null: warmup_fraction says how
    many."""

    warmup_fraction: Fraction | None = None
    """The same as a share of all episodes, rounded down; null: none."""

    bootstrap_cut: bool = False
    """Whether an answer that the limit cut counts as going on, rather than as ended there."""
