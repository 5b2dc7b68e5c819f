"""The loop of every on-policy stage.

    gather     prompts -> answers (rollout) -> scores (reward model, rule)
    learn      log-probabilities, advantages or pairs, updates        (the stage's own part)
    push       the new weights to the rollout

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
from alignctl.engines.device import DEVICE
from alignctl.launch import worker
from alignctl.launch.run_folder import RunFolder
from alignctl.on_policy import sample_log
from alignctl.on_policy.crew import Crew, value_folder
from alignctl.on_policy.sampling import Gathered, answer, gather
from alignctl.on_policy.scoring import Scorer
from alignctl.reporting.metrics import MetricsWriter, measured, recorded
from alignctl.reporting.phases import Phases


@dataclass
class Lesson:
    """What was learned from one episode.

    Attributes:
        metrics: What a reader is told.
        kl: KL to the reference of each answer `[S]`, where it is known.
    """

    metrics: dict[str, float]
    kl: NDArray[np.float64] | None = None


class Learner(Protocol):
    """What makes a stage the one that it is."""

    def learn(self, gathered: Gathered, step: int) -> Lesson:
        """Improves the policy with the answers of an episode; `step` are done before it."""

    @property
    def state(self) -> dict[str, Any]:
        """What it remembers from episode to episode, as JSON has it."""

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""


@dataclass(eq=False)
class Loop:
    """The remaining episodes of a run; `step` are done."""

    config: OnPolicyConfig
    folder: RunFolder
    crew: Crew
    data: PromptData
    scorer: Scorer
    learner: Learner
    step: int
    silent: int = 0
    """Episodes in a row in which no answer was right."""
    first_validation: dict[str, float] | None = None
    validation: dict[str, float] | None = None
    last: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Episodes of the whole run."""
        return self.config.num_episodes(len(self.data.train))

    def run(self) -> None:
        """Takes the remaining episodes; writes metrics, checkpoints and, at the end, the result."""
        config = self.config
        is_first = dist.get_rank() == 0
        self._restore()
        with MetricsWriter(self.folder, enabled=is_first, step=self.step) as metrics:
            metrics.start(self.step, self.total)
            if self.step == 0:
                self._validate(metrics)
            while self.step < self.total:
                self._episode(metrics)
                is_last = self.step == self.total
                if is_last or self.step % config.train.eval_interval == 0:
                    self._validate(metrics)
                is_stopping = _stop_requested(self.folder) and not is_last
                if is_last or is_stopping or self.step % config.checkpoint.save_interval == 0:
                    metrics.checkpoint(self.step, self._save())
                if is_stopping:
                    metrics.note(f"stopped after episode {self.step} of {self.total}, as asked")
                    return
        if is_first:
            self.folder.write_result(
                {
                    "stage": config.stage,
                    "steps": self.step,
                    "checkpoint": f"checkpoints/iter_{self.step:07d}",
                    "last": self.last,
                    "first_validation": self.first_validation,
                    "validation": self.validation,
                }
            )

    def _episode(self, metrics: MetricsWriter) -> None:
        config, started, phases = self.config, time.perf_counter(), Phases()
        gathered = gather(self.crew, self.scorer, self.data, self.step, phases)
        with phases("training"), self.crew.while_rollout_sleeps():
            lesson = self.learner.learn(gathered, self.step)
            self.crew.is_stale = True
        with phases("push"):
            self.crew.push()
        self.step += 1
        samples, scored, tokenizer = gathered.samples, gathered.scored, self.scorer.tokenizer
        sample_log.write(self.folder, self.step, gathered, lesson.kl, self.data, tokenizer)
        self.last = {**lesson.metrics, **scored.metrics}
        if self.step % config.train.log_interval == 0 or self.step == self.total:
            tokens = int(samples.lengths.sum())
            metrics.train(
                self.step,
                **lesson.metrics,
                **scored.metrics,
                **gathered.metrics,
                length=float(samples.lengths.mean()),
                finished=float(samples.is_finished.mean()),
                tokens=tokens,
                tokens_per_second=tokens / (time.perf_counter() - started),
                **phases.row,
            )
            for text in sample_log.shown(gathered, self.data, tokenizer, config.experience.shown):
                metrics.note(text)
        if retried := int(gathered.metrics["requests_retried"]):
            failed = int(gathered.metrics["requests_failed"])
            metrics.note(
                f"warning: {retried} requests failed in the sampler and were tried again alone, "
                f"{failed} in vain; the logs of the ranks have its errors"
            )
        self._watch(scored.metrics.get("accuracy"), metrics)

    def _watch(self, accuracy: float | None, metrics: MetricsWriter) -> None:
        """Warns when the rule has found nothing right for a while, if that is what is learned."""
        if self.config.score.source == "dense_only":
            return
        self.silent = self.silent + 1 if accuracy == 0 else 0
        if self.silent and self.silent % self.config.score.alarm_after == 0:
            reasons = ", ".join(
                f"{name.removeprefix('rule_')} {share:.0%}"
                for name, share in self.last.items()
                if name.startswith("rule_")
            )
            metrics.note(
                f"warning: no answer was right in the last {self.silent} episodes, so nothing is "
                f"learned from the rule ({reasons}): are the answers parsed, and the reference "
                "answers the final results? samples/ has both"
            )

    def _validate(self, metrics: MetricsWriter) -> None:
        """Greedy answers to the held-out prompts, the same ones every time."""
        prompts = self.data.validation
        if self.config.train.eval_batches is not None:
            prompts = prompts[: self.config.train.eval_batches * self.config.experience.prompts]
        if not len(prompts):
            return
        samples, _ = answer(self.crew, self.data, prompts, seed=(0,), is_greedy=True)
        with self.crew.while_rollout_sleeps():
            scored = self.scorer.score(samples, is_validation=True)
        self.validation = {
            **scored.metrics,
            "length": float(samples.lengths.mean()),
            "finished": float(samples.is_finished.mean()),
        }
        if self.step == 0:
            self.first_validation = self.validation
        metrics.validation(self.step, **self.validation)

    # ---- what lasts ----

    def _state_file(self, step: int) -> Path:
        return self.folder.path / "state" / f"iter_{step:07d}.json"

    def _save(self) -> Path:
        """Writes everything that a resumed run needs; the policy's checkpoint makes it valid."""
        crew, config, step = self.crew, self.config, self.step
        if dist.get_rank() == 0:
            state = {
                "learner": self.learner.state,
                "running": asdict(self.scorer.running),
                "silent": self.silent,
                "last": self.last,
            }
            self._state_file(step).parent.mkdir(exist_ok=True)
            atomic.write_text(self._state_file(step), json.dumps(state))
        keep = config.checkpoint.keep
        if crew.value is not None:
            assert crew.value_source is not None
            with crew.turn(crew.value) as value:
                value.save(
                    value_folder(self.folder).checkpoints,
                    step,
                    source=crew.value_source,
                    tokenizer=config.tokenizer,
                    # Until the policy's is complete, the one before still belongs to it.
                    keep=keep and max(2, keep),
                    score_offset=crew.value_offset,
                )
        with crew.turn(crew.policy) as policy:
            return policy.save(
                self.folder.checkpoints,
                step,
                source=crew.source,
                tokenizer=config.tokenizer,
                keep=keep,
            )

    def _restore(self) -> None:
        """Recalls what was remembered at the step that the run goes on from."""
        rows = recorded(self.folder, until=self.step) if self.step else []
        for row in rows:
            if row["kind"] == "validation":
                self.validation = measured(row)
                if row["step"] == 0:
                    self.first_validation = self.validation
        if self.step:
            state = json.loads(self._state_file(self.step).read_text("utf-8"))
            self.learner.restore(state["learner"])
            self.scorer.running = RunningStd(**state["running"])
            self.silent, self.last = state["silent"], state["last"]


def _stop_requested(folder: RunFolder) -> bool:
    """Whether any rank was asked to stop, as all of them see it."""
    asked = torch.tensor(int(worker.stop_requested(folder)), device=DEVICE)
    dist.all_reduce(asked)
    return bool(asked)
