"""Runs whose data is what the policy writes itself, and the rules between their sections."""

import math
from pathlib import Path
from typing import Literal, Self

from typing_extensions import TypeIs, override

from alignctl.config.numbers import MaybeNone
from alignctl.config.on_policy import (
    Baseline,
    Clipping,
    Episodes,
    Experience,
    GroupClipping,
    GroupScore,
    PairChoice,
    Penalty,
    Prompts,
    Score,
    Trust,
    Value,
)
from alignctl.config.roles import LongestBatch, ModelRole, Roles, RoleSettings, ValuedRoles
from alignctl.config.rollout import Rollout
from alignctl.config.run import Direction, TrainingConfig, TrainingSettings
from alignctl.config.sections import (
    DPOLoss,
    EpisodeBatch,
    FilePath,
    Optimizer,
    Parallel,
    one_warmup,
    share_of,
)


class OnPolicySettings(TrainingSettings):
    """What a preset says about every stage that learns from its own answers."""

    batch: EpisodeBatch
    data: Prompts = Prompts()
    train: Episodes
    rollout: Rollout
    experience: Experience
    trust: Trust = Trust()
    score: Score = Score()
    roles: Roles = Roles()
    offload: bool = False
    """Whether models that are not at work wait in the CPU's memory: weights and optimizers; the
    gradients are given back altogether."""


class OnPolicyConfig(OnPolicySettings, TrainingConfig):
    """A run of such a stage."""

    reward_load: FilePath | None = None
    """The reward model: a Hugging Face folder, a Megatron checkpoint or a run folder."""

    reward_load_iteration: MaybeNone | None = None
    """Which of its checkpoints; null: the newest."""

    @property
    def needs_reward_model(self) -> bool:
        """True if a model takes part in scoring."""
        return self.score.needs_model

    @property
    @override
    def needs_reference(self) -> bool:
        return True

    @property
    @override
    def models(self) -> dict[str, ModelRole]:
        models = {"policy": ModelRole(self.parallel, optimizer=self.optimizer)}
        if self.needs_reference and self.lora is None:  # with adapters it is the policy's base
            models["reference"] = ModelRole(self._layout(self.roles.reference))
        if self.needs_reward_model:
            models["reward"] = ModelRole(self._layout(self.roles.reward), "linear")
        return models

    def _layout(self, role: RoleSettings) -> Parallel:
        return role.parallel.beside(self.parallel)

    def layout_key(self, role: str) -> str:
        """Name the section that decides on the layout of a model beside the policy."""
        own: RoleSettings = getattr(self.roles, role)
        return "parallel" if own == RoleSettings() else f"roles.{role}.parallel"

    @property
    @override
    def measured(self) -> dict[str, Direction]:
        names = ["score", *(f"reward_{each.called}" for each in self.score.functions)]
        if self.score.source in ("sparse_only", "merge"):
            names.append("accuracy")
        if self.needs_reward_model:
            names.append("model_score")
        return {**dict.fromkeys(names, "max"), "finished": "max", "length": "min"}

    @property
    def value_load(self) -> Path | None:
        """Path that a value model starts from, if it is not the reward model's."""
        return None

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest prompt with the longest answer."""
        return self.data.max_prompt_length + self.rollout.max_new_tokens

    @property
    def answers_kept_together(self) -> int:
        """Answers to one prompt that no two micro batches of an update ever share out."""
        return 1

    @property
    def fewest_tokens(self) -> tuple[int, str]:
        """Tokens that what is never cut apart may take, and a description of them."""
        described = (
            f"data.max_prompt_length {self.data.max_prompt_length} + rollout.max_new_tokens "
            f"{self.rollout.max_new_tokens}"
        )
        return self.longest_answer, described

    @property
    @override
    def longest_batch(self) -> LongestBatch:
        # The last token of an answer is read by nothing.
        return LongestBatch(
            self.batch.micro_batch_size, self.longest_answer - 1, self.rollout.max_new_tokens
        )

    @property
    @override
    def step_size(self) -> tuple[int, str]:
        return self.experience.prompts, "rows"

    @property
    def samples_per_step(self) -> int:
        """Answers of one episode, over all ranks."""
        return self.experience.prompts * self.experience.samples

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps of one episode."""
        share = -(-self.units_per_step // self.batch.global_batch_size)
        return self.experience.epochs * share

    @property
    def units_per_step(self) -> int:
        """Units of batch.global_batch_size in one episode: answers, or groups of them."""
        return self.samples_per_step // self.answers_compared

    def without_warmup(self) -> Self:
        """Copy the run so that all that learns does so from the first episode on."""
        return self

    def num_episodes(self, num_prompts: int) -> int:
        """Count the episodes of the whole run, with so many prompts to train on."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.epochs is not None
        return max(1, math.ceil(self.train.epochs * num_prompts / self.experience.prompts))

    def _problems(self) -> list[str]:
        return [
            *super()._problems(),
            *self.rollout.problems(
                self.model, seq_length=self.batch.seq_length, world_size=self.world_size
            ),
            *self._experience_problems(),
            *self._score_problems(),
            *self._role_problems(),
        ]

    @override
    def _share_problems(self, replicas: int) -> list[str]:
        if self.batch.micro_batch_tokens is None:
            return super()._share_problems(replicas)
        tokens, (fewest, described) = self.batch.micro_batch_tokens, self.fewest_tokens
        if tokens >= fewest:
            return []
        return [
            f"batch.micro_batch_tokens {tokens} is less than the {fewest} that {described} may "
            f"take: give {fewest} or more"
        ]

    def _engine_problems(self) -> list[str]:
        problems = []
        if self.engine != "megatron":
            problems.append(
                f"engine {self.engine}: alignctl {self.stage} trains with megatron; remove engine"
            )
        dropouts = {
            "model.attention_dropout": self.model.attention_dropout,
            "model.hidden_dropout": self.model.hidden_dropout,
            "lora.dropout": self.lora.dropout if self.lora else 0.0,
        }
        problems += [
            f"{name} {value}: log-probabilities of answers must not depend on chance while "
            f"alignctl {self.stage} learns; set {name} to 0.0"
            for name, value in dropouts.items()
            if value
        ]
        return problems

    def _experience_problems(self) -> list[str]:
        problems = []
        batch, experience = self.batch, self.experience
        if self.units_per_step % batch.global_batch_size:
            times = f" x experience.samples {experience.samples} = {self.samples_per_step} answers"
            what = times if self.units_per_step == self.samples_per_step else ""
            problems.append(
                f"experience.prompts {experience.prompts}{what} are not a multiple of "
                f"batch.global_batch_size {batch.global_batch_size}"
            )
        longest = self.longest_answer
        if longest > batch.seq_length:
            problems.append(
                f"data.max_prompt_length {self.data.max_prompt_length} + rollout.max_new_tokens "
                f"{self.rollout.max_new_tokens} = {longest} exceed batch.seq_length "
                f"{batch.seq_length}"
            )
        if self.rollout.temperature == 0:
            problems.append(
                "rollout.temperature 0: every answer would be the likeliest one, and nothing could "
                "be learned from chance; set it above 0 (validation takes the likeliest anyway)"
            )
        if self.trust.low == self.trust.high:
            problems.append(f"trust.low and trust.high are both {self.trust.low}: nothing counts")
        return problems

    def _score_problems(self) -> list[str]:
        problems = self.score.problems()
        buffer, limit = self.score.overlong_buffer, self.rollout.max_new_tokens
        if buffer is not None and buffer > limit:
            problems.append(
                f"score.overlong_buffer {buffer} exceeds rollout.max_new_tokens {limit}"
            )
        fixed, is_unsaid = self.score.missing_eos_score, self.score.missing_eos is None
        if fixed is not None and is_unsaid and not self.needs_reward_model:
            problems.append(
                f"score.missing_eos_score {fixed} has no effect where no reward model scores, "
                "unless score.missing_eos is replace or add"
            )
        if not self.needs_reward_model:
            problems += [
                f"score.{name} {value} has no effect with score.source {self.score.source}: no "
                "reward model scores"
                for name, value, default in (
                    ("bias", self.score.bias, 0),
                    ("model_coef", self.score.model_coef, 1),
                )
                if value != default
            ]
        if self.reward_load is not None and not self.needs_reward_model:
            problems.append(
                f"reward_load {self.reward_load} has no effect with score.source "
                f"{self.score.source}: no reward model scores; leave it out, or choose merge"
            )
        if self.reward_load_iteration is not None and self.reward_load is None:
            problems.append(
                f"reward_load_iteration {self.reward_load_iteration} has no effect without "
                "reward_load"
            )
        return problems

    def _role_problems(self) -> list[str]:
        """List what is wrong with the layouts of models beside the policy.

        Whether they divide the reward and the value model is known where these are opened.
        """
        problems = []
        for name in type(self.roles).model_fields:
            key, own = f"roles.{name}.parallel", getattr(self.roles, name).parallel
            given = [f"{key}.{size} {n}" for size, n in own.model_dump().items() if n is not None]
            if name not in self.models:
                problems += [f"{one} has no effect: {self._no_model(name)}" for one in given]
            elif given:
                layout = self.models[name].parallel
                problems += self._size_problems(layout, key)
                if name == "reference":
                    problems += self.model.layout_problems(layout.tp, layout.pp, prefix=f"{key}.")
        return problems

    def _no_model(self, name: str) -> str:
        """Say why a role has no model of its own, which it might have."""
        if name == "reward":
            return f"with score.source {self.score.source} no reward model scores"
        if not self.needs_reference:
            return "loss.kl_coef 0 needs no reference"
        return "with lora the reference is the policy without its adapters"

    def _optimizer_problems(self) -> list[str]:
        return self._course_problems("optimizer", self.optimizer)

    def _course_problems(self, key: str, optimizer: Optimizer) -> list[str]:
        """List problems of the learning rate; a warm-up counts updates, several in an episode."""
        steps = self.train.steps
        updates = None if steps is None else steps * self.updates_per_step
        described = f"the {updates} updates of train.steps {steps} episodes"
        return optimizer.problems(key, updates, described)

    def _clipping_problems(self, loss: Clipping) -> list[str]:
        if loss.dual_clip is not None and loss.variant != "ppo":
            return [
                f"loss.dual_clip {loss.dual_clip} has no effect with loss.variant {loss.variant}"
            ]
        return []

    def _group_problems(self) -> list[str]:
        if self.experience.samples == 1:
            return [
                f"experience.samples 1: alignctl {self.stage} compares answers to one prompt with "
                "each other; take 2 or more (8 is usual)"
            ]
        return []


def is_on_policy(config: TrainingConfig) -> TypeIs[OnPolicyConfig]:
    """Tell whether a run learns from its own answers."""
    return isinstance(config, OnPolicyConfig)


class RLHFSettings(OnPolicySettings):
    """The `rlhf` section of a preset."""

    penalty: Penalty = Penalty()
    loss: Clipping = Clipping()
    roles: ValuedRoles = ValuedRoles()
    value: Value


class RLHFConfig(RLHFSettings, OnPolicyConfig):
    """Reinforcement learning from human feedback, by PPO."""

    stage: Literal["rlhf"] = "rlhf"
    """The subcommand."""

    @property
    @override
    def models(self) -> dict[str, ModelRole]:
        layout = self._layout(self.roles.value)
        return {**super().models, "value": ModelRole(layout, "linear", self.value.optimizer)}

    @property
    @override
    def value_load(self) -> Path | None:
        return self.value.load

    @override
    def without_warmup(self) -> Self:
        value = self.value.model_copy(update={"warmup_steps": 0, "warmup_fraction": None})
        return self.model_copy(update={"value": value})

    def value_warmup(self, num_episodes: int) -> int:
        """Count the episodes in which only the value model learns, of so many."""
        if self.value.warmup_steps is not None:
            return self.value.warmup_steps
        return share_of(self.value.warmup_fraction or 0.0, num_episodes)

    def _optimizer_problems(self) -> list[str]:
        value = self._course_problems("value.optimizer", self.value.optimizer)
        return [*super()._optimizer_problems(), *value]

    def _value_share_problems(self) -> list[str]:
        """Say so if the value model's copies cannot have micro batches of the size given."""
        layout, batch = self.models["value"].parallel, self.batch
        replicas, rest = divmod(self.world_size, layout.tp * layout.pp)
        share = batch.micro_batch_size * replicas
        is_policys = replicas == self.data_parallel_size  # which has been looked at
        if rest or is_policys or batch.micro_batch_tokens or batch.global_batch_size % share == 0:
            return []
        return [
            f"batch.global_batch_size {batch.global_batch_size} is not divisible by "
            f"batch.micro_batch_size {batch.micro_batch_size} x {replicas} copies of the value "
            f"model (roles.value.parallel.tp {layout.tp} x roles.value.parallel.pp {layout.pp}) = "
            f"{share}"
        ]

    def _problems(self) -> list[str]:
        problems = [*super()._problems(), *self._clipping_problems(self.loss)]
        if self.experience.max_refills:
            problems.append(
                f"experience.max_refills {self.experience.max_refills}: alignctl rlhf compares no "
                "answers with each other; set it to 0"
            )
        if self.value.load is None and not self.needs_reward_model:
            problems.append(
                "value.load is missing: without a reward model there is none to start values from; "
                "give a model folder"
            )
        problems += one_warmup("value", self.value)
        problems += self._value_share_problems()
        steps = self.train.steps
        if steps is not None and self.value_warmup(steps) >= steps:
            problems.append(
                f"value.warmup_steps {self.value.warmup_steps} is not less than train.steps "
                f"{steps}: the policy would learn nothing; lower it, or give a share of the "
                "episodes in its place, such as value.warmup_fraction=0.1"
            )
        if self.value.clip is None and self.value.clipped_only:
            problems.append("value.clipped_only has no effect with value.clip null")
        return problems


class GRPOSettings(OnPolicySettings):
    """The `grpo` section of a preset."""

    score: GroupScore = GroupScore()
    baseline: Baseline = "group_std"
    """What an answer's score is compared with. group_std: the group's mean, over its deviation
    (GRPO). group_mean: the mean alone (Dr. GRPO). rloo: the mean of the others. reinforce++: mean
    and deviation of all answers of the episode."""
    loss: GroupClipping = GroupClipping()


class GRPOConfig(GRPOSettings, OnPolicyConfig):
    """Group-relative policy optimisation."""

    stage: Literal["grpo"] = "grpo"
    """The subcommand."""

    @property
    @override
    def needs_reference(self) -> bool:
        return self.loss.kl_coef > 0

    def _problems(self) -> list[str]:
        problems = [*super()._problems(), *self._clipping_problems(self.loss)]
        if self.baseline != "reinforce++":
            problems += self._group_problems()
        return problems


class OnlineDPOSettings(OnPolicySettings):
    """The `online_dpo` section of a preset."""

    pairs: PairChoice = "best_worst"
    """Which answers to a prompt are compared: the best with the worst, or every two of different
    score."""
    loss: DPOLoss = DPOLoss()


class OnlineDPOConfig(OnlineDPOSettings, OnPolicyConfig):
    """Direct preference optimisation of answers that the policy has just given."""

    stage: Literal["online-dpo"] = "online-dpo"
    """The subcommand."""

    @property
    @override
    def answers_compared(self) -> int:
        return self.experience.samples

    @property
    @override
    def answers_kept_together(self) -> int:
        return 2 if self.pairs == "best_worst" else self.experience.samples

    @property
    @override
    def fewest_tokens(self) -> tuple[int, str]:
        """The same of all answers that are compared: a pair is never cut apart."""
        prompt, answer = self.data.max_prompt_length, self.rollout.max_new_tokens
        compared = self.answers_kept_together
        apart = compared * self.longest_answer
        # What saves less than an eighth is not shared: then no more than 8/7 of the tokens needed.
        needed = prompt + compared * (answer + 1)
        fewest = min(apart, -(-8 * needed // 7)) if self.batch.share_prompts else apart
        return fewest, f"{compared} compared answers of {super().fewest_tokens[1]} each"

    @property
    @override
    def longest_batch(self) -> LongestBatch:
        count = self.batch.micro_batch_size * self.answers_kept_together
        return LongestBatch(count, self.longest_answer, self.rollout.max_new_tokens)

    def _problems(self) -> list[str]:
        return [*super()._problems(), *self._group_problems(), *self.loss.problems()]
