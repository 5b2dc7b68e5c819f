"""The models of an on-policy run, which share the device and take turns on it.

policy     learns; its weights go to the rollout after every episode
reference  the policy as it was at the start, frozen; with LoRA no model of its own
reward     scores whole answers, frozen
value      predicts what an answer will be worth, learns (rlhf only)
rollout    vLLM, which samples
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
from alignctl.engines.checkpoints import Checkpoints, start
from alignctl.engines.megatron import MegatronEngine
from alignctl.engines.megatron_weights import hf_weights
from alignctl.launch.run_folder import RunFolder
from alignctl.on_policy.samples import Samples
from alignctl.on_policy.sources import open_reward, open_value
from alignctl.rollouts.vllm import Rollout


@dataclass(eq=False)
class Models:
    """This rank's part of all models.

    Attributes:
        config: The run.
        policy: Log-probabilities at the sampling's temperature.
        rollout: The sampler; it is awake except while the others compute.
        end_token_ids: Tokens that end an answer; the first one is the tokenizer's EOS.
        reference: None where nothing is compared with it, or where it is the policy's base.
        reward: None where a rule alone scores.
        score_offset: What is added to the reward model's scores.
        value: None where nothing is predicted.
        value_offset: What is added to its values.
        is_stale: Whether the policy has learned since the sampler got its weights.
    """

    config: OnPolicyConfig
    policy: MegatronEngine
    rollout: Rollout
    end_token_ids: tuple[int, ...]
    reference: MegatronEngine | None = None
    reward: MegatronEngine | None = None
    score_offset: float = 0.0
    value: MegatronEngine | None = None
    value_offset: float = 0.0
    is_stale: bool = True

    @contextmanager
    def on_device(self, engine: MegatronEngine) -> Iterator[MegatronEngine]:
        """Holds a model on the device while it works; before and after, it may be off it."""
        engine.onload()
        yield engine
        if self.config.offload:
            engine.offload()

    @contextmanager
    def as_reference(self) -> Iterator[MegatronEngine]:
        """Gives the policy as it was at the start: a model, or itself without adapters."""
        if self.config.lora is None:
            assert self.reference is not None
            yield self.reference
            return
        with self.policy.without_adapters():
            yield self.policy

    @contextmanager
    def while_rollout_sleeps(self) -> Iterator[None]:
        """Lets the sampler sleep; it may have lost its weights afterwards."""
        self.rollout.sleep()
        yield
        self.rollout.wake()

    def sync_weights(self) -> None:
        """Gives the policy's weights to the sampler, which must be awake, if it lacks them."""
        if self.is_stale or not self.rollout.has_weights:
            with self.on_device(self.policy):
                self.rollout.load_weights(hf_weights(self.policy))
            self.is_stale = False

    def target_outputs(self, engine: MegatronEngine, samples: Samples) -> NDArray[np.float64]:
        """Computes one number per token of all answers `[N]`: log-probabilities, or values."""
        with self.on_device(engine):
            batches = samples.batches(
                range(len(samples)),
                micro_batch_size=self.config.experience.score_batch_size,
                dp_rank=engine.data_parallel_rank,
                dp_size=engine.data_parallel_size,
            )
            return engine.target_outputs(batches, samples.segments)

    def document_outputs(self, engine: MegatronEngine, samples: Samples) -> NDArray[np.float64]:
        """Computes one number per answer `[S]`: its score, or its log-probabilities' sum."""
        with self.on_device(engine):
            batches = samples.scored_batches(
                micro_batch_size=self.config.experience.score_batch_size,
                dp_rank=engine.data_parallel_rank,
                dp_size=engine.data_parallel_size,
            )
            return engine.document_outputs(batches, len(samples))


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a rank's work begins with.

    Attributes:
        models: Of this rank.
        checkpoints: Where the policy is saved.
        value_checkpoints: Where the value model is saved; None without one.
        step: Episodes that were done before.
    """

    models: Models
    checkpoints: Checkpoints
    value_checkpoints: Checkpoints | None
    step: int


def value_folder(folder: RunFolder) -> RunFolder:
    """Returns where the value model's checkpoints are: a folder that `--load` can be given too."""
    return RunFolder(folder.path / "value")


def load(config: OnPolicyConfig, folder: RunFolder) -> Loaded:
    """Builds and loads all models.

    The sampler comes last and takes the memory that is left; it has the policy's weights.
    """
    # Also where a run goes on: the reference is the policy as it was at the start.
    source = origin.with_own_files(open_model(config), folder)
    keep = config.checkpoint.keep
    checkpoints = Checkpoints(folder.checkpoints, source, config.tokenizer, keep)
    policy = policy_engine(config)
    step = start(policy, source, folder.latest_checkpoint(), seed=config.train.seed)
    reference = reward = value = value_checkpoints = None
    score_offset = value_offset = 0.0
    if config.needs_reference and config.lora is None:
        reference = reference_engine(config, source.model)
        reference.load_weights(source)
    if config.needs_reward_model:
        reward_source = open_reward(config)
        reward = engine_beside(config, reward_source.model, reward_source.head)
        reward.load_weights(reward_source)
        score_offset = _offset(reward_source)
    if isinstance(config, RLHFConfig):
        value_source = origin.with_own_files(open_value(config), folder, "value.load")
        # Until the policy's is complete, the one before still belongs to it.
        value_checkpoints = Checkpoints(
            value_folder(folder).checkpoints, value_source, config.tokenizer, keep and max(2, keep)
        )
        value = _load_value(config, value_checkpoints, step)
        value_offset = _offset(value_source)
    for engine in (policy, reference, reward, value):
        if engine is not None and config.offload:
            engine.offload()
    models = Models(
        config,
        policy,
        _start_rollout(config, source),
        _end_token_ids(config, source),
        reference=reference,
        reward=reward,
        score_offset=score_offset,
        value=value,
        value_offset=value_offset,
    )
    models.sync_weights()
    return Loaded(models, checkpoints, value_checkpoints, step)


def _start_rollout(config: OnPolicyConfig, source: Source) -> Rollout:
    return Rollout(
        source.hf_config,
        config.rollout,
        max_model_len=config.batch.seq_length,
        precision=config.precision,
        seed=config.train.seed,
        timeout_minutes=config.launch.timeout_minutes,
    )


def _end_token_ids(config: OnPolicyConfig, source: Source) -> tuple[int, ...]:
    eos_id = load_tokenizer(source.tokenizer_folder(config.tokenizer)).eos_id
    return end_token_ids(source.companions, eos_id, vocab_size=source.model.vocab_size)


def _load_value(config: RLHFConfig, checkpoints: Checkpoints, step: int) -> MegatronEngine:
    """Loads the value model; in a run that goes on, the one that was saved with the policy."""
    if dist.get_rank() == 0:
        # One of a later step was saved by an attempt that was killed before it saved the policy.
        checkpoint_folder.go_back(checkpoints.folder, step)
    dist.barrier()
    checkpoint = checkpoint_folder.final_name(checkpoints.folder, step) if step else None
    source = checkpoints.source
    engine = value_engine(config, source.model, source.head)
    start(engine, source, checkpoint, seed=config.train.seed)
    return engine


def policy_engine(config: OnPolicyConfig) -> MegatronEngine:
    """Builds the policy, its weights not set."""
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
    """Builds the frozen reference, its weights not set."""
    return engine_beside(config, model, "lm", temperature=config.rollout.temperature)


def value_engine(config: RLHFConfig, model: Model, head: Head) -> MegatronEngine:
    """Builds the value model, its weights not set; a policy gets a new head for it."""
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
    """Builds a model beside the policy, of its own size, on the same grid; its weights not set."""
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


def _offset(source: Source) -> float:
    return (source.manifest.score_offset if source.manifest else None) or 0.0
