"""The models of an on-policy run. They share the device, and take turns on it.

policy     learns; its weights go to the rollout after every episode
reference  the policy as it was at the start, frozen; with LoRA no model of its own
reward     scores whole answers, frozen
value      predicts what an answer will be worth, learns (rlhf only)
rollout    vLLM, which samples
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from alignctl.checkpoints import origin
from alignctl.checkpoints.generation_config import end_token_ids
from alignctl.checkpoints.preflight import open_model
from alignctl.checkpoints.source import Source
from alignctl.config.on_policy_run import OnPolicyConfig, RLHFConfig
from alignctl.config.sections import Head, Lora, Model, Optimizer
from alignctl.data.tokenizer import load_tokenizer
from alignctl.engines import checkpoint_folder
from alignctl.engines.megatron import MegatronEngine
from alignctl.engines.megatron_weights import hf_weights
from alignctl.launch.run_folder import RunFolder
from alignctl.on_policy.opening import open_reward, open_value
from alignctl.on_policy.samples import Samples
from alignctl.rollouts.vllm import Rollout


@dataclass(eq=False)
class Crew:
    """This rank's part of all models.

    Attributes:
        config: The run.
        policy: Log-probabilities at the sampling's temperature.
        source: What the policy started from.
        rollout: The sampler; it is awake except while the others compute.
        end_token_ids: Tokens that end an answer; the first one is the tokenizer's EOS.
        reference: None where nothing is compared with it, or where it is the policy's base.
        reward: None where a rule alone scores.
        score_offset: What is added to the reward model's scores.
        value: None where nothing is predicted.
        value_source: What it started from.
        value_offset: What is added to its values.
        is_stale: Whether the policy has learned since the sampler got its weights.
    """

    config: OnPolicyConfig
    policy: MegatronEngine
    source: Source
    rollout: Rollout
    end_token_ids: tuple[int, ...]
    reference: MegatronEngine | None = None
    reward: MegatronEngine | None = None
    score_offset: float = 0.0
    value: MegatronEngine | None = None
    value_source: Source | None = None
    value_offset: float = 0.0
    is_stale: bool = True

    @contextmanager
    def turn(self, engine: MegatronEngine) -> Iterator[MegatronEngine]:
        """The time that a model is at work; before and after, it may be off the device."""
        engine.onload()
        yield engine
        if self.config.offload:
            engine.offload()

    @contextmanager
    def as_reference(self) -> Iterator[MegatronEngine]:
        """The policy as it was at the start: a model of its own, or itself without adapters."""
        if self.config.lora is None:
            assert self.reference is not None
            yield self.reference
            return
        with self.policy.without_adapters():
            yield self.policy

    @contextmanager
    def while_rollout_sleeps(self) -> Iterator[None]:
        """The time that the sampler is not needed; it may have lost its weights afterwards."""
        self.rollout.sleep()
        yield
        self.rollout.wake()

    def push(self) -> None:
        """Gives the policy's weights to the sampler, which must be awake, if it lacks them."""
        if self.is_stale or not self.rollout.has_weights:
            with self.turn(self.policy):
                self.rollout.load_weights(hf_weights(self.policy))
            self.is_stale = False

    def target_outputs(self, engine: MegatronEngine, samples: Samples) -> NDArray[np.float64]:
        """One number per token of all answers `[N]`: log-probabilities, or values."""
        with self.turn(engine):
            batches = samples.batches(
                range(len(samples)),
                micro_batch_size=self.config.experience.score_batch_size,
                dp_rank=engine.data_parallel_rank,
                dp_size=engine.data_parallel_size,
            )
            return engine.target_outputs(batches, samples.segments)

    def document_outputs(self, engine: MegatronEngine, samples: Samples) -> NDArray[np.float64]:
        """One number per answer `[S]`: its score, or its log-probabilities' sum."""
        with self.turn(engine):
            batches = samples.scored_batches(
                micro_batch_size=self.config.experience.score_batch_size,
                dp_rank=engine.data_parallel_rank,
                dp_size=engine.data_parallel_size,
            )
            return engine.document_outputs(batches, len(samples))


def value_folder(folder: RunFolder) -> RunFolder:
    """Where the value model's checkpoints are: a folder that `--load` can be given too."""
    return RunFolder(folder.path / "value")


def assemble(config: OnPolicyConfig, folder: RunFolder) -> tuple[Crew, int]:
    """Builds and loads all models; returns them and the episodes that were done before.

    The sampler comes last and takes the memory that is left; it has the policy's weights.
    """
    crew, step = _policy(config, folder)
    if config.needs_reference and config.lora is None:
        crew.reference = reference_engine(config, crew.source.model)
        crew.reference.load_weights(crew.source)
    if config.needs_reward_model:
        source = open_reward(config)
        crew.reward = engine_beside(config, source.model, source.head)
        crew.reward.load_weights(source)
        crew.score_offset = _offset(source)
    if isinstance(config, RLHFConfig):
        _add_value(crew, config, folder, step)
    for engine in (crew.policy, crew.reference, crew.reward, crew.value):
        if engine is not None and config.offload:
            engine.offload()
    crew.rollout = Rollout(
        crew.source.hf_config,
        config.rollout,
        max_model_len=config.batch.seq_length,
        precision=config.precision,
        seed=config.train.seed,
        timeout_minutes=config.launch.timeout_minutes,
    )
    crew.push()
    return crew, step


def _policy(config: OnPolicyConfig, folder: RunFolder) -> tuple[Crew, int]:
    # Also where a run goes on: the reference is the policy as it was at the start.
    source = origin.with_own_files(open_model(config), folder)
    engine = policy_engine(config)
    step = _load(engine, source, folder.latest_checkpoint(), seed=config.train.seed)
    eos_id = load_tokenizer(source.tokenizer_folder(config.tokenizer)).eos_id
    ends = end_token_ids(source.companions, eos_id, vocab_size=source.model.vocab_size)
    return Crew(config, engine, source, None, ends), step  # type: ignore[arg-type]


def _add_value(crew: Crew, config: RLHFConfig, folder: RunFolder, step: int) -> None:
    """The value model; in a run that goes on, the one that was saved with the policy."""
    checkpoints = value_folder(folder).checkpoints
    if dist.get_rank() == 0:
        # One of a later step was saved by an attempt that was killed before it saved the policy.
        checkpoint_folder.go_back(checkpoints, step)
    dist.barrier()
    checkpoint = checkpoint_folder.final_name(checkpoints, step) if step else None
    source = origin.with_own_files(open_value(config), folder, "value.load")
    crew.value = value_engine(config, source.model, source.head)
    _load(crew.value, source, checkpoint, seed=config.train.seed)
    crew.value_source, crew.value_offset = source, _offset(source)


def policy_engine(config: OnPolicyConfig) -> MegatronEngine:
    """The policy, its weights not set."""
    return MegatronEngine(
        config.model,
        config.parallel,
        precision=config.precision,
        seq_length=config.batch.seq_length,
        optimizer=config.optimizer,
        loss_scale=config.loss_scale,
        lora=config.lora,
        temperature=config.rollout.temperature,
        with_entropy=True,
    )


def reference_engine(config: OnPolicyConfig, model: Model) -> MegatronEngine:
    """The frozen reference, its weights not set."""
    return engine_beside(config, model, "lm", temperature=config.rollout.temperature)


def value_engine(config: RLHFConfig, model: Model, head: Head) -> MegatronEngine:
    """The value model, its weights not set; one that starts from a policy gets a new head."""
    head = "linear" if head == "lm" else head
    return engine_beside(
        config,
        model,
        head,
        optimizer=config.value.optimizer,
        lora=config.lora,
        is_value=True,
    )


def engine_beside(
    config: OnPolicyConfig,
    model: Model,
    head: Head,
    *,
    optimizer: Optimizer | None = None,
    lora: Lora | None = None,
    is_value: bool = False,
    temperature: float = 1.0,
) -> MegatronEngine:
    """A model beside the policy, of its own size, on the same grid; its weights not set."""
    return MegatronEngine(
        model.model_copy(update={"attention_dropout": 0.0, "hidden_dropout": 0.0}),
        config.parallel,
        precision=config.precision,
        seq_length=config.batch.seq_length,
        optimizer=optimizer,
        loss_scale=config.loss_scale,
        head=head,
        lora=lora,
        is_value=is_value,
        temperature=temperature,
    )


def _load(engine: MegatronEngine, source: Source, checkpoint: Path | None, *, seed: int) -> int:
    """Loads the weights to start from, or resumes a checkpoint; returns the episodes done."""
    if checkpoint is None:
        engine.load_weights(source, seed=seed)
    engine.create_optimizer()
    return 0 if checkpoint is None else engine.resume(checkpoint)


def _offset(source: Source) -> float:
    return (source.manifest.score_offset if source.manifest else None) or 0.0
