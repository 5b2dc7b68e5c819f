"""An episode of `rlhf`, `online-dpo` or `grpo` on a simulated rank: the stage's own steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from alignctl.config.on_policy_run import (
    GRPOConfig,
    OnlineDPOConfig,
    OnPolicyConfig,
    RLHFConfig,
)
from alignctl.data.prompt_store import PromptData, PromptSummary, TokenLists
from alignctl.engines.megatron import MegatronEngine
from alignctl.on_policy.crew import (
    Crew,
    engine_beside,
    policy_engine,
    reference_engine,
    value_engine,
)
from alignctl.on_policy.grpo import GRPO
from alignctl.on_policy.loop import Learner
from alignctl.on_policy.online_dpo import OnlineDPO
from alignctl.on_policy.ppo import PPO
from alignctl.on_policy.samples import Samples
from alignctl.on_policy.sampling import gather
from alignctl.on_policy.scoring import Scorer
from alignctl.planning.job import waiting
from alignctl.planning.report import RankReport
from alignctl.reporting.phases import Phases
from alignctl.simulation.measures import Book, held, make_state, micro_batches, watch_schedule
from alignctl.simulation.process import Rank
from alignctl.simulation.rollout import LOGPROB, SimulatedRollout


def simulate_episode(config: OnPolicyConfig, rank: Rank, kind: str, gpu_memory: int) -> RankReport:
    """Runs an episode of one optimizer step.

    It has as few answers as show the peaks. Where nothing is learned, batches have their own size:
    they are measured after it.

    Args:
        config: The run.
        rank: The rank that is played.
        kind: Which ranks are like it.
        gpu_memory: Bytes of a GPU.
    """
    short, book = _shortened(config, rank.stage), Book(rank.ledger)
    crew = _assembled(short, rank, book, gpu_memory)
    data = _longest_prompts(short)
    learner = _learner(short, crew, data)
    with book.phase("sampling"):
        scorer = Scorer(crew, data, None, None)  # type: ignore[arg-type]
        gathered = gather(crew, scorer, data, 0, Phases())
    with crew.while_rollout_sleeps():
        scored = replace(gathered.scored, scores=np.arange(len(gathered.samples), dtype=np.float64))
        learner.learn(replace(gathered, scored=scored), 0)
        _score_full_batches(config, crew)
    models = {}
    for role, engine in crew.models.items():
        with Crew.turn(crew, engine):
            models[role] = held(engine)
    phases = {name: book.phases[name] for name in ("start", "sampling", "push", *models)}
    # Models being made are no activations.
    phases["start"] = replace(phases["start"], activations=0)
    return RankReport(kind, models, phases, waiting(config, models))


class SimulatedCrew(Crew):
    """The stage's crew, which notes what is taken while a model is at work."""

    book: Book
    is_pushing = False

    @property
    def models(self) -> dict[str, MegatronEngine]:
        """Those that take part, by role."""
        roles = {
            "policy": self.policy,
            "reference": self.reference,
            "reward": self.reward,
            "value": self.value,
        }
        return {role: engine for role, engine in roles.items() if engine is not None}

    @contextmanager
    def turn(self, engine: MegatronEngine) -> Iterator[MegatronEngine]:
        """As of the stage."""
        (role,) = [role for role, each in self.models.items() if each is engine]
        name = "push" if self.is_pushing else role
        with super().turn(engine), self.book.phase(name):
            yield engine

    def push(self) -> None:
        """As of the stage."""
        self.is_pushing = True
        super().push()
        self.is_pushing = False


def _shortened(config: OnPolicyConfig, stage: int) -> OnPolicyConfig:
    """The same run with an episode of one update, and of as few micro batches as show its peak."""
    count = micro_batches(config, stage)
    units = count * config.batch.micro_batch_size * config.data_parallel_size
    samples = config.experience.samples if config.units_per_step != config.samples_per_step else 1
    experience = config.experience.model_copy(
        update={
            "prompts": units,
            "samples": samples,
            "epochs": 1,
            "max_refills": 0,
            "score_batch_size": config.batch.micro_batch_size * samples,
        }
    )
    batch = config.batch.model_copy(update={"global_batch_size": units})
    update: dict[str, Any] = {"experience": experience, "batch": batch}
    if isinstance(config, RLHFConfig):
        update["value"] = config.value.model_copy(
            update={"warmup_steps": 0, "warmup_fraction": None}
        )
    return config.model_copy(update=update)


def _assembled(config: OnPolicyConfig, rank: Rank, book: Book, gpu_memory: int) -> SimulatedCrew:
    """All models, in the order in which the stage makes them."""
    rollout: Any = SimulatedRollout(config, rank.ledger, gpu_memory)
    with book.phase("start"):
        crew = _with_models(config, rank, rollout)
    crew.book = book
    for engine in crew.models.values():
        watch_schedule(engine, config, rank.ledger)
        if config.offload:
            engine.offload()
    for trained in (crew.policy, crew.value):
        if trained is not None:
            with Crew.turn(crew, trained):
                make_state(trained)
    rollout.wake()
    crew.push()
    return crew


def _with_models(config: OnPolicyConfig, rank: Rank, rollout: Any) -> SimulatedCrew:
    with rank.host.building():
        policy = policy_engine(config)
    policy.create_optimizer()
    crew = SimulatedCrew(config, policy, None, rollout, (1,))  # type: ignore[arg-type]
    with rank.host.building():
        if config.needs_reference and config.lora is None:
            crew.reference = reference_engine(config, config.model)
        if config.needs_reward_model:
            crew.reward = engine_beside(config, config.model, "linear")
        if isinstance(config, RLHFConfig):
            crew.value = value_engine(config, config.model, "linear")
    if crew.value is not None:
        crew.value.create_optimizer()
    return crew


def _longest_prompts(config: OnPolicyConfig) -> PromptData:
    """As many as an episode asks, of the greatest length."""
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


def _learner(config: Any, crew: Crew, data: PromptData) -> Learner:
    """The stage's own."""
    if isinstance(config, RLHFConfig):
        return PPO.make(config, crew, data)
    if isinstance(config, GRPOConfig):
        return GRPO.make(config, crew, data)
    return OnlineDPO.make(config, crew, data)


def _score_full_batches(config: OnPolicyConfig, crew: SimulatedCrew) -> None:
    """One batch of every model that gives numbers without learning, at its full size."""
    dp = crew.policy.data_parallel_size
    count = min(config.experience.score_batch_size * dp, config.samples_per_step)
    samples = _longest_samples(count, config)
    crew.config = config
    if crew.reward is not None:
        crew.document_outputs(crew.reward, samples)
    if isinstance(config, OnlineDPOConfig):
        crew.target_outputs(crew.policy, samples)
        with crew.as_reference() as engine:
            crew.document_outputs(engine, samples)
        return
    if config.needs_reference:
        with crew.as_reference() as engine:
            crew.target_outputs(engine, samples)
    if crew.value is not None:
        crew.target_outputs(crew.value, samples)


def _longest_samples(count: int, config: OnPolicyConfig) -> Samples:
    question, answer = config.data.max_prompt_length, config.rollout.max_new_tokens
    return Samples(
        prompts=np.arange(count),
        groups=np.arange(count),
        questions=[np.ones(question, np.int32)] * count,
        answers=[np.ones(answer, np.int32)] * count,
        logprobs=np.full(count * answer, LOGPROB),
        is_finished=np.zeros(count, np.bool_),
    )
