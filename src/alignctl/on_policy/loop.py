"""The loop of every on-policy stage.

    gather     prompts -> answers (rollout) -> scores (reward model, rule, functions)
    learn      log-probabilities, advantages or pairs, updates        (the stage's own part)
    sync       the new weights to the rollout

An episode is a step of the run: checkpoints, metrics and resuming count episodes. Nothing is kept
between episodes but weights, optimizers, random states and the few numbers of `Learner.state`.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from alignctl import atomic
from alignctl.algorithms.scores import RunningStd
from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.data.prompt_store import PromptData
from alignctl.data.tokenizer import Tokenizer
from alignctl.engines.best import Watch
from alignctl.engines.conclusion import conclude
from alignctl.engines.device import DEVICE, to_device
from alignctl.engines.flops import measure_use
from alignctl.launch import worker
from alignctl.on_policy import sample_log
from alignctl.on_policy.alarm import Alarm
from alignctl.on_policy.models import Loaded, Models
from alignctl.on_policy.sampling import Experience, answer, gather
from alignctl.on_policy.scoring import Scorer
from alignctl.reporting.metrics import MetricsWriter, measured, recorded
from alignctl.reporting.phases import Phases
from alignctl.reporting.profiler import Profiler
from alignctl.run_folder import RunFolder


@dataclass
class UpdateResult:
    """What was learned from one episode.

    Attributes:
        metrics: What a reader is told.
        kl: KL to the reference of each answer `[S]`, where it is known.
    """

    metrics: dict[str, float]
    kl: NDArray[np.float64] | None = None


class Learner(Protocol):
    """What makes a stage the one that it is."""

    def learn(self, experience: Experience, step: int) -> UpdateResult:
        """Improve the policy with the answers of an episode; `step` are done before it."""

    @property
    def state(self) -> dict[str, Any]:
        """Values that the learner keeps from episode to episode, as JSON has them."""

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""


@dataclass(eq=False)
class Loop:
    """The remaining episodes of a run; `step` are done."""

    config: OnPolicyConfig
    folder: RunFolder
    loaded: Loaded
    data: PromptData
    tokenizer: Tokenizer
    scorer: Scorer
    learner: Learner
    step: int = field(init=False)
    watch: Watch = field(init=False)
    alarm: Alarm = field(init=False)
    first_validation: dict[str, float] | None = None
    validation: dict[str, float] | None = None
    last: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Set the step after the episodes that were done before."""
        self.step, self.alarm = self.loaded.step, Alarm(self.config.score)
        self.watch = Watch.of(self.config)

    @property
    def models(self) -> Models:
        """Models of this rank."""
        return self.loaded.models

    @property
    def total(self) -> int:
        """Episodes of the whole run."""
        return self.config.num_episodes(len(self.data.train))

    def run(self) -> None:
        """Run the remaining episodes; write metrics, checkpoints and, at the end, the result."""
        config, is_first = self.config, dist.get_rank() == 0
        self._restore()
        tracking = config.tracking.model_dump()
        writer = MetricsWriter(self.folder, enabled=is_first, step=self.step, tracking=tracking)
        profiler = Profiler(self.folder, config.profile.steps, enabled=is_first, step=self.step)
        with writer as metrics, profiler:
            metrics.start(self.step, self.total)
            if self.step == 0:
                self._validate(metrics)
            while not self.is_done:
                profiler.before(self.step + 1)
                self._episode(metrics)
                if trace := profiler.after(self.step):
                    metrics.note(f"profile: {trace}")
                if self._conclude_episode(metrics):
                    return
        if is_first:
            self.folder.write_result(
                {
                    "stage": self.config.stage,
                    "steps": self.step,
                    "checkpoint": f"checkpoints/iter_{self.step:07d}",
                    "last": self.last,
                    "first_validation": self.first_validation,
                    "validation": self.validation,
                    **self.watch.result,
                }
            )

    @property
    def is_done(self) -> bool:
        """True if no episode is left, or patience has ended."""
        return self.step == self.total or self.watch.is_over

    def _conclude_episode(self, metrics: MetricsWriter) -> bool:
        """Validate and save where it is time; tell whether the run was asked to stop here."""
        return conclude(
            self.config,
            self.folder,
            self.watch,
            self.step,
            self.total,
            validate=lambda: self._validate(metrics),
            save=lambda _: metrics.checkpoint(self.step, self._save()),
            is_stop_requested=lambda: _stop_requested(self.folder),
            note=metrics.note,
        )

    def _episode(self, metrics: MetricsWriter) -> None:
        config, started, phases = self.config, time.perf_counter(), Phases()
        flops_before = self.models.flops
        experience = gather(self.models, self.scorer, self.data, self.step, phases)
        with phases("training"), self.models.while_rollout_sleeps():
            found = self.learner.learn(experience, self.step)
            self.models.is_stale = True
        with phases("push"):
            self.models.sync_weights()
        self.step += 1
        samples, scored, tokenizer = experience.samples, experience.scored, self.tokenizer
        sample_log.write(self.folder, self.step, experience, found.kl, self.data, tokenizer)
        self.last = {**found.metrics, **scored.metrics}
        if self.step % config.train.log_interval == 0 or self.step == self.total:
            tokens = int(samples.lengths.sum())
            metrics.train(
                self.step,
                **found.metrics,
                **scored.metrics,
                **experience.metrics,
                length=float(samples.lengths.mean()),
                finished=float(samples.is_finished.mean()),
                tokens=tokens,
                tokens_per_second=tokens / (time.perf_counter() - started),
                **self._measure_use(self.models.flops - flops_before, phases),
                **phases.row,
            )
            for text in sample_log.shown(experience, self.data, tokenizer, config.experience.shown):
                metrics.note(text)
        if retried := int(experience.metrics["requests_retried"]):
            failed = int(experience.metrics["requests_failed"])
            metrics.note(
                f"warning: {retried} requests failed in the sampler and were tried again alone, "
                f"{failed} in vain; the logs of the ranks have its errors"
            )
        self._warn_of_rewards(metrics)
        if warning := self.alarm.observe(scored.metrics):
            metrics.note(warning)

    def _measure_use(self, flops: float, phases: Phases) -> dict[str, float]:
        """Measure how well all ranks' GPUs were used while answers were scored and learned from."""
        total = to_device(np.array([flops]))
        dist.all_reduce(total)
        seconds = phases.seconds["scoring"] + phases.seconds["training"]
        return measure_use(total.item(), seconds, self.config.precision)

    def _warn_of_rewards(self, metrics: MetricsWriter) -> None:
        """Tell what rewards of one's own have failed of."""
        if self.scorer.own is not None:
            for warning in self.scorer.own.take_warnings():
                metrics.note(warning)

    def _validate(self, metrics: MetricsWriter) -> bool:
        """Sample and score greedy answers to the held-out prompts, the same ones every time.

        Returns:
            Whether the policy is better than ever before.
        """
        prompts = self.data.validation
        if self.config.train.eval_batches is not None:
            prompts = prompts[: self.config.train.eval_batches * self.config.experience.prompts]
        if not len(prompts):
            return False
        samples, _ = answer(self.models, self.data, prompts, seed=(0,), is_greedy=True)
        with self.models.while_rollout_sleeps():
            scored = self.scorer.score(samples, is_validation=True)
        self.validation = {
            **scored.metrics,
            "length": float(samples.lengths.mean()),
            "finished": float(samples.is_finished.mean()),
        }
        if self.step == 0:
            self.first_validation = self.validation
        metrics.validation(self.step, **self.validation)
        self._warn_of_rewards(metrics)
        return self.watch.observe(self.step, self.validation)

    # ---- what lasts ----

    def _state_file(self, step: int) -> Path:
        return self.folder.path / "state" / f"iter_{step:07d}.json"

    def _save(self) -> Path:
        """Write everything that a resumed run needs; the policy's checkpoint makes it valid."""
        loaded, models, step = self.loaded, self.models, self.step
        if dist.get_rank() == 0:
            state = {
                "learner": self.learner.state,
                "running": asdict(self.scorer.running),
                "silent": self.alarm.silent,
                "last": self.last,
            }
            self._state_file(step).parent.mkdir(exist_ok=True)
            atomic.write_text(self._state_file(step), json.dumps(state))
        if loaded.value_checkpoints is not None:
            assert models.value is not None
            with models.on_device(models.value) as value:
                loaded.value_checkpoints.save(value, step, score_offset=models.value_offset)
        with models.on_device(models.policy) as policy:
            return loaded.checkpoints.save(policy, step)

    def _restore(self) -> None:
        """Restore what was saved at the step that the run goes on from."""
        rows = recorded(self.folder, until=self.step) if self.step else []
        self.watch.recall(self.folder, rows, links=dist.get_rank() == 0)
        for row in rows:
            if row["kind"] == "validation":
                self.validation = measured(row)
                if row["step"] == 0:
                    self.first_validation = self.validation
        if self.step:
            state = json.loads(self._state_file(self.step).read_text("utf-8"))
            self.learner.restore(state["learner"])
            self.scorer.running = RunningStd(**state["running"])
            self.alarm.silent, self.last = state["silent"], state["last"]


def _stop_requested(folder: RunFolder) -> bool:
    """Tell whether any rank was asked to stop; the answer is the same on all ranks."""
    asked = torch.tensor(int(worker.stop_requested(folder)), device=DEVICE)
    dist.all_reduce(asked)
    return bool(asked)
