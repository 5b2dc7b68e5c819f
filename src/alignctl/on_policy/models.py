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
from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.config.sections import Head, Model
from alignctl.data.tokenizer import load_tokenizer
from alignctl.engines import checkpoint_folder
from alignctl.engines.checkpoints import Checkpoints, start
from alignctl.engines.megatron.engine import MegatronEngine
from alignctl.engines.megatron.weights import hf_weights
from alignctl.on_policy.samples import Samples
from alignctl.on_policy.sources import open_reward, open_value
from alignctl.rollouts.vllm import Rollout
from alignctl.run_folder import RunFolder


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

    @property
    def flops(self) -> float:
        """Operations that all models so far have needed of this rank."""
        engines = (self.policy, self.reference, self.reward, self.value)
        return sum(engine.flops for engine in engines if engine is not None)

    @contextmanager
    def on_device(self, engine: MegatronEngine) -> Iterator[MegatronEngine]:
        """Hold a model on the device while it works; before and after, it may be off it."""
        engine.onload()
        yield engine
        if self.config.offload:
            engine.offload()

    @contextmanager
    def as_reference(self) -> Iterator[MegatronEngine]:
        """Yield the policy as it was at the start: a model, or the policy without adapters."""
        if self.config.lora is None:
            assert self.reference is not None
            yield self.reference
            return
        with self.policy.without_adapters():
            yield self.policy

    @contextmanager
    def while_rollout_sleeps(self) -> Iterator[None]:
        """Put the sampler to sleep for the block; it may have lost its weights afterwards."""
        self.rollout.sleep()
        yield
        self.rollout.wake()

    def sync_weights(self) -> None:
        """Give the policy's weights to the sampler, which must be awake, if it lacks them."""
        if self.is_stale or not self.rollout.has_weights:
            with self.on_device(self.policy):
                self.rollout.load_weights(hf_weights(self.policy))
            self.is_stale = False

    def target_outputs(self, engine: MegatronEngine, samples: Samples) -> NDArray[np.float64]:
        """Compute one number per token of all answers `[N]`: log-probabilities, or values."""
        with self.on_device(engine):
            batches = samples.batches(
                range(len(samples)),
                micro_batch_size=self.config.experience.score_batch_size,
                micro_batch_tokens=self.config.batch.micro_batch_tokens,
                dp_rank=engine.data_parallel_rank,
                dp_size=engine.data_parallel_size,
                share_prompts=self.config.batch.share_prompts,
            )
            return engine.target_outputs(batches, samples.segments)

    def document_outputs(self, engine: MegatronEngine, samples: Samples) -> NDArray[np.float64]:
        """Compute one number per answer `[S]`: its score, or its log-probabilities' sum."""
        with self.on_device(engine):
            batches = samples.scored_batches(
                micro_batch_size=self.config.experience.score_batch_size,
                micro_batch_tokens=self.config.batch.micro_batch_tokens,
                dp_rank=engine.data_parallel_rank,
                dp_size=engine.data_parallel_size,
                share_prompts=self.config.batch.share_prompts,
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


def load(config: OnPolicyConfig, folder: RunFolder) -> Loaded:
    """Build and load all models.

    The sampler comes last and takes the memory that is left; it has the policy's weights.
    """
    # Also where a run goes on: the reference is the policy as it was at the start.
    source = origin.with_own_files(open_model(config), folder)
    keep = config.checkpoint.keep
    checkpoints = Checkpoints(folder.checkpoints, source, config.tokenizer, keep)
    policy = build_engine(config, "policy", config.model)
    step = start(policy, source, folder.latest_checkpoint(), seed=config.train.seed)
    reference = reward = value = value_checkpoints = None
    score_offset = value_offset = 0.0
    if "reference" in config.models:
        reference = build_engine(config, "reference", source.model)
        reference.load_weights(source)
    if "reward" in config.models:
        reward_source = open_reward(config)
        reward = build_engine(config, "reward", reward_source.model, reward_source.head)
        reward.load_weights(reward_source)
        score_offset = _offset(reward_source)
    if "value" in config.models:
        value_source = origin.with_own_files(open_value(config), folder, "value.load")
        # Until the policy's is complete, the one before still belongs to it.
        value_checkpoints = Checkpoints(
            folder.value.checkpoints, value_source, config.tokenizer, keep and max(2, keep)
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
    return end_token_ids(source.auxiliary, eos_id, vocab_size=source.model.vocab_size)


def _load_value(config: OnPolicyConfig, checkpoints: Checkpoints, step: int) -> MegatronEngine:
    """Load the value model; in a run that goes on, the one that was saved with the policy."""
    if dist.get_rank() == 0:
        # One of a later step was saved by an attempt that was killed before it saved the policy.
        checkpoint_folder.go_back(checkpoints.folder, step)
    dist.barrier()
    checkpoint = checkpoint_folder.final_name(checkpoints.folder, step) if step else None
    source = checkpoints.source
    engine = build_engine(config, "value", source.model, source.head)
    start(engine, source, checkpoint, seed=config.train.seed)
    return engine


def build_engine(
    config: OnPolicyConfig, name: str, model: Model, head: Head = "lm"
) -> MegatronEngine:
    """Build a model of the run, its weights not set.

    Args:
        config: The run.
        name: Its role.
        model: Its architecture: each has a size and a layout of its own, on the same ranks.
        head: The one that it was loaded with; where scores are wanted, a policy gets a new one.
    """
    role = config.models[name]
    return MegatronEngine(
        model.model_copy(update={"attention_dropout": 0.0, "hidden_dropout": 0.0}),
        role.parallel,
        precision=config.precision,
        seq_length=config.batch.seq_length,
        optimizer=role.optimizer,
        loss_scale=config.loss_scale,
        kernels=config.kernels,
        head=role.head if head == "lm" else head,
        lora=config.lora if role.is_trained else None,
        is_value=name == "value",
        temperature=config.rollout.temperature if role.head == "lm" else 1.0,
        with_entropy=name == "policy",
    )


def _offset(source: Source) -> float:
    return (source.manifest.score_offset if source.manifest else None) or 0.0
