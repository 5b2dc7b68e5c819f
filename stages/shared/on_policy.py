"""A rank's work in the stages whose policy writes the answers itself."""

from contextlib import ExitStack
from typing import Any

import torch.distributed as dist

from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.data.prompt_store import PromptData
from alignctl.data.tokenizer import load_tokenizer
from alignctl.on_policy import models
from alignctl.on_policy.loop import Loop
from alignctl.on_policy.own_rewards import OwnRewards
from alignctl.on_policy.scoring import Judge, Scorer
from alignctl.rewards.functions import Functions
from alignctl.rewards.workers import RuleWorkers
from alignctl.run_folder import RunFolder
from alignctl.stages.shared import training
from alignctl.stages.shared.prepared import prepared_data
from alignctl.stages.shared.stage import Stage


def run(stage: Stage[Any], config: OnPolicyConfig, folder: RunFolder) -> None:
    """Do one rank's work: load or resume, episodes, validate, save.

    Args:
        stage: The stage, whose learner learns from the episodes.
        config: The run.
        folder: Its folder.
    """
    assert stage.learner is not None
    config = training.initialize(config, folder)
    data = PromptData.open(prepared_data(folder), config.data.weights.values())
    loaded = models.load(config, folder)
    tokenizer = load_tokenizer(loaded.checkpoints.source.tokenizer_folder(config.tokenizer))
    settings = config.score
    with ExitStack() as stack:
        judge = own = None
        if any(rule is not None for rule in data.eval_funcs):
            workers = RuleWorkers(settings.workers, settings.timeout_seconds)
            judge = Judge(tokenizer, stack.enter_context(workers))
        if settings.functions:
            functions = Functions(settings.functions, settings.workers)
            own = OwnRewards(stack.enter_context(functions), tokenizer, data)
        scorer = Scorer(loaded.models, data, judge, own)
        learner = stage.learner(config, loaded.models, data)
        Loop(config, folder, loaded, data, tokenizer, scorer, learner).run()
    loaded.models.rollout.close()
    dist.barrier()
    dist.destroy_process_group()
