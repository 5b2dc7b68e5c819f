"""An episode of `rlhf`, `online-dpo` or `grpo` on a simulated rank: the stage's own steps."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.data.prompt_store import PromptData, PromptSummary, TokenLists
from alignctl.engines.megatron.engine import MegatronEngine
from alignctl.on_policy.loop import Learner
from alignctl.on_policy.models import Models, build_engine
from alignctl.on_policy.samples import Samples
from alignctl.on_policy.sampling import gather
from alignctl.on_policy.scoring import Scorer
from alignctl.planning.job import answers_together, waiting
from alignctl.planning.report import RankReport
from alignctl.reporting.phases import Phases
from alignctl.simulation.measures import (
    PhaseRecorder,
    held,
    make_state,
    micro_batches,
    watch_schedule,
)
from alignctl.simulation.process import Rank
from alignctl.simulation.rollout import LOGPROB, SimulatedRollout, different_answers


def simulate_episode(
    config: OnPolicyConfig,
    make_learner: Callable[[Any, Models, PromptData], Learner],
    rank: Rank,
    kind: str,
    gpu_memory: int,
) -> RankReport:
    """Run an episode of one optimizer step.

    It has as few answers as show the peaks. Where nothing is learned, batches have their own size:
    they are measured after it.

    Args:
        config: The run.
        make_learner: Makes the stage's own learner.
        rank: The rank that is played.
        kind: Which ranks are like it.
        gpu_memory: Bytes of a GPU.
    """
    short, recorder = _shortened(config, rank.number), PhaseRecorder(rank.tracker)
    models = _assembled(short, rank, recorder, gpu_memory)
    data = _longest_prompts(short)
    learner = make_learner(short, models, data)
    with recorder.phase("sampling"):
        scorer = Scorer(models, data, None)
        experience = gather(models, scorer, data, 0, Phases())
    with models.while_rollout_sleeps():
        scored = replace(
            experience.scored, scores=np.arange(len(experience.samples), dtype=np.float64)
        )
        learner.learn(replace(experience, scored=scored), 0)
        _score_full_batches(config, models)
    memory = {}
    for role, engine in models.by_role.items():
        with Models.on_device(models, engine):
            memory[role] = held(engine)
    phases = {name: recorder.phases[name] for name in ("start", "sampling", "push", *memory)}
    # Models being made are no activations.
    phases["start"] = replace(phases["start"], activations=0)
    return RankReport(kind, memory, phases, waiting(config, memory))


@dataclass(eq=False, kw_only=True)
class SimulatedModels(Models):
    """The stage's models, of which it is noted what is taken while one is at work.

    Attributes:
        recorder: Where it is noted.
        is_syncing: Whether the sampler is given weights.
    """

    recorder: PhaseRecorder
    is_syncing: bool = False

    @property
    def by_role(self) -> dict[str, MegatronEngine]:
        """Models that take part, by role."""
        roles = {
            "policy": self.policy,
            "reference": self.reference,
            "reward": self.reward,
            "value": self.value,
        }
        return {role: engine for role, engine in roles.items() if engine is not None}

    @contextmanager
    def on_device(self, engine: MegatronEngine) -> Iterator[MegatronEngine]:
        """Hold a model on the device, as the stage does, and measure the phase."""
        (role,) = [role for role, each in self.by_role.items() if each is engine]
        name = "push" if self.is_syncing else role
        with super().on_device(engine), self.recorder.phase(name):
            yield engine

    def sync_weights(self) -> None:
        """Give the policy's weights to the sampler, as the stage does, and measure it."""
        self.is_syncing = True
        super().sync_weights()
        self.is_syncing = False


def _shortened(config: OnPolicyConfig, rank: int) -> OnPolicyConfig:
    """Shorten the run to an episode of one update and as few micro batches as show its peak."""
    layouts = [model.parallel for model in config.models.values() if model.is_trained]
    # Micro batches that all copies of each model that learns have alike.
    evenly = math.lcm(*(config.copies_of(each) for each in layouts))
    count = max(micro_batches(config, each, rank) * config.copies_of(each) for each in layouts)
    units = -(-count // evenly) * evenly * config.batch.micro_batch_size
    size, samples, prompts = config.batch.micro_batch_size, config.answers_compared, units
    if samples == 1:  # micro batches of answers, not of prompts
        samples = answers_together(config, size, is_learned=True)
        prompts = units // samples
    else:
        size *= samples
    experience = config.experience.model_copy(
        update={
            "prompts": prompts,
            "samples": samples,
            "epochs": 1,
            "max_refills": 0,
            "score_batch_size": size,
        }
    )
    batch = config.batch.model_copy(update={"global_batch_size": units})
    short = config.model_copy(update={"experience": experience, "batch": batch})
    return short.without_warmup()


def _assembled(
    config: OnPolicyConfig, rank: Rank, recorder: PhaseRecorder, gpu_memory: int
) -> SimulatedModels:
    """Make all models, in the order in which the stage makes them."""
    rollout: Any = SimulatedRollout(config, rank.tracker, gpu_memory)
    with recorder.phase("start"):
        models = _build(config, rank, rollout, recorder)
    for engine in models.by_role.values():
        watch_schedule(engine, config, rank.tracker)
        if config.offload:
            engine.offload()
    for trained in (models.policy, models.value):
        if trained is not None:
            with Models.on_device(models, trained):
                make_state(trained)
    rollout.wake()
    models.sync_weights()
    return models


def _build(
    config: OnPolicyConfig, rank: Rank, rollout: Any, recorder: PhaseRecorder
) -> SimulatedModels:
    engines: dict[str, Any] = {}
    for role, kind in config.models.items():
        with rank.host.building():
            engines[role] = build_engine(config, role, config.model)
        if kind.is_trained:
            engines[role].create_optimizer()
    return SimulatedModels(
        config, rollout=rollout, end_token_ids=(1,), recorder=recorder, **engines
    )


def _longest_prompts(config: OnPolicyConfig) -> PromptData:
    """Make as many prompts as an episode asks, of the greatest length."""
    count, length = config.experience.prompts, config.data.max_prompt_length
    lists = TokenLists(np.ones(count * length, np.int32), np.arange(count + 1) * length)
    return PromptData(
        folder=Path(),
        summary=PromptSummary(count, 0, 0, 0, length, (), (), count, count * length, 0),
        prompts=lists,
        answers=[None] * count,
        eval_funcs=[None] * count,
        train=np.arange(count),
        validation=np.arange(0),
        file_numbers=np.zeros(count, np.int32),
        lines=np.zeros(count, np.int64),
    )


def _score_full_batches(config: OnPolicyConfig, models: SimulatedModels) -> None:
    """Run one batch of full size through every model that gives numbers without learning."""
    models.config = config
    if models.reward is not None:
        models.document_outputs(models.reward, _full_batches(config, models.reward))
    if config.answers_compared > 1:
        models.target_outputs(models.policy, _full_batches(config, models.policy))
        with models.as_reference() as engine:
            models.document_outputs(engine, _full_batches(config, engine))
        return
    if config.needs_reference:
        with models.as_reference() as engine:
            models.target_outputs(engine, _full_batches(config, engine))
    if models.value is not None:
        models.target_outputs(models.value, _full_batches(config, models.value))


def _full_batches(config: OnPolicyConfig, engine: MegatronEngine) -> Samples:
    """Make a batch of full size for each of a model's copies."""
    count = config.experience.score_batch_size * engine.data_parallel_size
    return _longest_samples(min(count, config.samples_per_step), config)


def _longest_samples(count: int, config: OnPolicyConfig) -> Samples:
    question, answer = config.data.max_prompt_length, config.rollout.max_new_tokens
    prompts = np.arange(count) // answers_together(config, config.experience.score_batch_size)
    return Samples(
        prompts=prompts,
        groups=prompts,
        questions=[np.ones(question, np.int32)] * count,
        answers=different_answers(count, answer),
        logprobs=np.full(count * answer, LOGPROB),
        is_finished=np.zeros(count, np.bool_),
    )
