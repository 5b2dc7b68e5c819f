"""The torchrun jobs of the DeepSpeed engine, and one of Megatron's to compare with.

results = deepspeed_jobs.run(folder, world=2, is_fast=True)
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignctl.config.sections import Lora
from alignctl.launch.job import Job, worker_environment
from tests.parallel import documents, preferences
from tests.parallel.deepspeed_cases import ALL, FAST, DeepSpeedCase

if TYPE_CHECKING:
    from torch import Tensor

    from alignctl.algorithms.loss import Loss
    from alignctl.data.batch import TokenBatch
    from alignctl.engines.protocol import Engine

ROOT = Path(__file__).parents[2]
TIMEOUT_MINUTES = 2
STEPS = 3
OPTIMIZER = documents.TRAIN_OPTIMIZER.model_copy(update={"eps": 1e-4})
"""AdamW makes a whole step of any gradient above eps. Some are 0 but for rounding, such as that of
a bias of keys, and 1e-8 would make steps of their rounding errors."""
SEED = 11
"""Of new score heads, and of new adapters."""
LORA = Lora(rank=4, alpha=6.0)

Result = dict[str, Any]


def run(folder: Path, *, world: int, is_fast: bool) -> dict[str, Result]:
    """Runs the cases of one world over the models in `folder`; results by the cases' names.

    Args:
        folder: Holds the models.
        world: Of the cases.
        is_fast: Whether they are those of FAST, or the others; Megatron's are not divided.

    Raises:
        RuntimeError: The job failed; the message ends with the last lines of its output.
    """
    results = folder / f"deepspeed_results_{world}_{is_fast}.json"
    nproc = max(1, world)
    environment = os.environ | dict(worker_environment(2, os.environ))
    arguments = (str(folder), str(results), *_names(world, is_fast=is_fast))
    job = Job("tests.parallel.deepspeed_jobs", arguments, nproc=nproc, master_port=0)
    done = subprocess.run(
        job.command(), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500
    )
    if done.returncode != 0:
        raise RuntimeError(f"the job of world {world} failed:\n{done.stderr[-6000:]}")
    found: dict[str, Result] = json.loads(results.read_text())
    return found


def _names(world: int, *, is_fast: bool) -> list[str]:
    return [
        case.name
        for case in ALL
        if case.world == world and (world == 0 or (case in FAST) is is_fast)
    ]


# ---- what every rank runs ----


def main(folder: Path, results: Path, names: Sequence[str]) -> None:
    """Runs some cases of one world; what ranks find is put together."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    cases = [case for case in ALL if case.name in names]
    _initialize(cases[0].world)
    found: dict[str, Result] = {}
    for case in cases:
        mine = KINDS[case.kind](case, folder)
        everybody: list[Result] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(everybody, mine)
        found[case.name] = {key: value for one in everybody for key, value in one.items()}
    if dist.get_rank() == 0:
        results.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _initialize(world: int) -> None:
    if world == 0:
        from alignctl.config.sections import Parallel
        from alignctl.engines.megatron import groups as megatron_groups

        megatron_groups.initialize([Parallel()], seed=1, timeout_minutes=TIMEOUT_MINUTES)
    else:
        from alignctl.engines.deepspeed import engine as deepspeed

        deepspeed.initialize(seed=1, timeout_minutes=TIMEOUT_MINUTES)


def engine_of(
    case: DeepSpeedCase, folder: Path, *, is_loaded: bool = True, is_trained: bool = True
) -> "Engine":
    """The engine of a case, with its weights and its optimizer."""
    from alignctl.checkpoints.find import find

    source = find(folder / case.model / "hf", vocab_divisor=documents.VOCAB_DIVISOR)
    head = case.head if case.loss == "reward" else "lm"
    engine: Engine
    if case.world == 0:
        from alignctl.engines.megatron.engine import MegatronEngine

        engine = MegatronEngine(
            source.model,
            case.parallel,
            precision=case.precision,
            seq_length=documents.SEQ_LENGTH,
            optimizer=OPTIMIZER if is_trained else None,
            loss_scale=case.loss_scale,
            head=head,
            lora=LORA if case.lora else None,
        )
    else:
        from alignctl.engines.deepspeed.engine import DeepSpeedEngine

        engine = DeepSpeedEngine(
            source.model,
            case.parallel,
            case.zero,
            precision=case.precision,
            optimizer=OPTIMIZER if is_trained else None,
            loss_scale=case.loss_scale,
            head=head,
            lora=LORA if case.lora else None,
        )
    if is_loaded:
        engine.load_weights(source, seed=SEED)
    if is_trained:
        if case.loss == "dpo":  # whose stage asks for the reference's log-probabilities first
            engine.document_outputs(batches_of(case, 0, engine), sum(preferences.SIZES))
        engine.create_optimizer()
    return engine


def loss_of(case: DeepSpeedCase) -> "Loss":
    """The loss of a case, with all of its terms."""
    import numpy as np

    from alignctl.algorithms.cross_entropy import CrossEntropy
    from alignctl.algorithms.dpo import DPO
    from alignctl.algorithms.reward import BradleyTerry

    if case.loss == "dpo":
        reference = -100 * np.random.default_rng(6).random(sum(preferences.SIZES))
        return DPO(reference, "sigmoid", beta=0.2, label_smoothing=0.1, nll=0.3)
    return BradleyTerry(margin=0.5, centering=0.01) if case.loss == "reward" else CrossEntropy()


def batches_of(case: DeepSpeedCase, step: int, engine: "Engine") -> Sequence["TokenBatch"]:
    """This rank's micro batches of a step."""
    share = {"dp_rank": engine.data_parallel_rank, "dp_size": engine.data_parallel_size}
    if case.loss == "sft":
        return documents.micro_batches(documents.of_step(step, count=8), case.grouping, **share)
    return preferences.micro_batches(step, int(case.grouping), **share)


def train(case: DeepSpeedCase, folder: Path) -> Result:
    """Loss and gradient norm of a few steps, and how far the weights are from Megatron's."""
    from safetensors.torch import load_file, save_file

    engine = engine_of(case, folder)
    loss = loss_of(case)
    found = [
        engine.train_step(batches_of(case, step, engine), loss, learning_rate=OPTIMIZER.lr)
        for step in range(STEPS)
    ]
    result: Result = {
        "loss": [each.loss for each in found],
        "grad_norm": [each.grad_norm for each in found],
        "weight": [each.weight for each in found],
        "num_tokens": [each.num_tokens for each in found],
        "metrics": [each.metrics for each in found],
    }
    file, ours = folder / f"{case.reference.name}.safetensors", weights(engine)
    if case.world == 0:
        save_file(ours, file)
    else:
        theirs = load_file(file)
        assert set(ours) == set(theirs)
        result["difference"] = max(
            (ours[name].float() - theirs[name]).abs().max().item() for name in theirs
        )
        model = engine.model  # type: ignore[attr-defined]
        state = engine.optimizer.state_dict()  # type: ignore[attr-defined]
        result |= {
            "model_types": sorted({str(each.dtype) for each in model.parameters()}),
            "buffer_types": sorted({str(each.dtype) for each in model.buffers()}),
            "state_types": sorted({str(each.dtype) for each in state.values()}),
        }
    return result


def weights(engine: Any) -> dict[str, "Tensor"]:
    """The whole model by Hugging Face's names, without padding."""
    if hasattr(engine, "global_name"):  # of Megatron
        rows, model = engine.rows, engine.architecture
        return {
            name: part.detach().clone().contiguous()
            for local, parameter in engine.model.named_parameters()
            for name, part in zip(
                rows[engine.global_name(local)].hf,
                rows[engine.global_name(local)].layout.split(parameter, model),
                strict=True,
            )
        }
    from alignctl.engines.deepspeed.state import _tensors
    from alignctl.models.transformers_lora import hf_parameters

    names, parameters = zip(*hf_parameters(engine.model).items(), strict=True)
    # A view of what is gathered for a moment only.
    copies = (each.clone() for each in _tensors(engine, parameters))
    return dict(zip(names, copies, strict=True))


def spoilt(case: DeepSpeedCase, folder: Path) -> Result:
    """A loss and a gradient that are not finite; then the step that would have come first."""
    import torch

    from alignctl.algorithms.cross_entropy import CrossEntropy
    from alignctl.algorithms.loss import LossTerms, Output
    from alignctl.engines.protocol import NonFiniteError

    class Spoilt(CrossEntropy):
        def __init__(self, *, loss: float, slope: float) -> None:
            self.loss, self.slope = loss, slope

        def __call__(self, output: Output, targets: torch.Tensor, batch: Any) -> LossTerms:
            terms = super().__call__(output, targets, batch)
            # The root of 0 is 0, but its slope is infinite.
            spoilt = terms.total + self.loss + self.slope * (0 * terms.total).sqrt()
            return LossTerms(spoilt, terms.weight, terms.metrics)

    engine = engine_of(case, folder)
    batches = batches_of(case, 0, engine)
    before, messages = weights(engine), []
    # The first has a gradient that is finite.
    for loss in (Spoilt(loss=float("inf"), slope=0.0), Spoilt(loss=0.0, slope=1.0)):
        try:
            engine.train_step(batches, loss, learning_rate=1e-3)
        except NonFiniteError as error:
            messages.append(error.message)
    after = weights(engine)
    result = engine.train_step(batches, CrossEntropy(), learning_rate=1e-3)
    finally_ = weights(engine)
    return {
        "messages": messages,
        "is_unchanged": all(torch.equal(before[name], after[name]) for name in before),
        "is_trained_then": any(not torch.equal(before[name], finally_[name]) for name in before),
        "loss": result.loss,
        "grad_norm": result.grad_norm,
    }


def resume(case: DeepSpeedCase, folder: Path) -> Result:
    """Five steps at once, and two and three in two engines: every bit of weights and numbers."""
    import torch
    import torch.distributed as dist

    from alignctl.checkpoints.find import find
    from alignctl.engines.checkpoints import Checkpoints
    from alignctl.engines.checkpoints import resume as resume_engine

    loss, rate = loss_of(case), OPTIMIZER.lr
    checkpoints = folder / case.name / "checkpoints"
    if dist.get_rank() == 0:
        checkpoints.mkdir(parents=True)
    dist.barrier()
    source = find(folder / case.model / "hf", vocab_divisor=documents.VOCAB_DIVISOR)
    engine = engine_of(case, folder)
    numbers = []
    for step in range(5):
        if step == 2:
            path = Checkpoints(checkpoints, source).save(engine, 2)
            torch.rand(3)
        done = engine.train_step(batches_of(case, step, engine), loss, learning_rate=rate)
        numbers.append([done.loss, done.grad_norm])
    whole, random = weights(engine), torch.rand(5)
    engine = engine_of(case, folder, is_loaded=False)
    first = resume_engine(engine, path)
    torch.rand(3)
    again = []
    for step in range(first, 5):
        done = engine.train_step(batches_of(case, step, engine), loss, learning_rate=rate)
        again.append([done.loss, done.grad_norm])
    parts = weights(engine)
    rank = dist.get_rank()
    return {
        "first": first,
        "numbers": numbers[2:],
        "again": again,
        f"is_equal_{rank}": all(torch.equal(whole[name], parts[name]) for name in whole),
        f"is_random_equal_{rank}": torch.equal(random, torch.rand(5)),
    }


def shared(case: DeepSpeedCase, folder: Path) -> Result:
    """The same numbers with prompts computed for each of their answers, and once."""
    from tests.parallel.shared import dpo_loss, measure, preferences, reward_loss

    engine = engine_of(case, folder)
    loss = dpo_loss() if case.loss == "dpo" else reward_loss()
    apart, together = (
        measure(engine, preferences(case.grouping, engine, share_prompts=share_prompts), loss)
        for share_prompts in (False, True)
    )
    return {"apart": apart, "together": together}


def overflow(case: DeepSpeedCase, folder: Path) -> Result:
    """Steps from a loss scale that is too large, at one go and with two stops between them."""
    import torch
    import torch.distributed as dist

    from alignctl.checkpoints.find import find
    from alignctl.engines.checkpoints import Checkpoints
    from alignctl.engines.checkpoints import resume as resume_engine

    def steps(first: int, last: int) -> list[list[Any]]:
        found = []
        for step in range(first, last):
            before = weights(engine)
            result = engine.train_step(
                batches_of(case, step, engine), loss_of(case), learning_rate=OPTIMIZER.lr
            )
            after = weights(engine)
            is_changed = any(not torch.equal(before[name], after[name]) for name in before)
            numbers = result.loss, result.grad_norm, engine.loss_scale, engine.skipped_steps
            found.append([*numbers, is_changed])
        return found

    checkpoints = folder / case.name / "checkpoints"
    if dist.get_rank() == 0:
        checkpoints.mkdir(parents=True)
    dist.barrier()
    source = find(folder / case.model / "hf", vocab_divisor=documents.VOCAB_DIVISOR)
    engine = engine_of(case, folder)
    at_one_go, whole, resumed = steps(0, 16), weights(engine), []
    for first, last in ((0, 3), (3, 11), (11, 16)):
        engine = engine_of(case, folder, is_loaded=not first)
        if first:
            assert resume_engine(engine, checkpoints / f"iter_{first:07d}") == first
        resumed += steps(first, last)
        Checkpoints(checkpoints, source).save(engine, last)
    parts, rank = weights(engine), dist.get_rank()
    return {
        f"steps_{rank}": at_one_go,
        f"resumed_{rank}": resumed,
        f"is_equal_{rank}": all(torch.equal(whole[name], parts[name]) for name in whole),
    }


def checkpoint(case: DeepSpeedCase, folder: Path) -> Result:
    """A step and a checkpoint; what the trained model gives for the evaluation documents."""
    import torch.distributed as dist

    from alignctl.checkpoints.find import find
    from alignctl.data.batch import TokenBatch
    from alignctl.engines.checkpoints import Checkpoints

    checkpoints = folder / case.name / "checkpoints"
    if dist.get_rank() == 0:
        checkpoints.mkdir(parents=True)
    dist.barrier()
    source = find(folder / case.model / "hf", vocab_divisor=documents.VOCAB_DIVISOR)
    engine = engine_of(case, folder)
    for step in (1, 2, 3):
        engine.train_step(batches_of(case, step, engine), loss_of(case), learning_rate=1e-3)
        offset = 0.5 if case.loss == "reward" and step == 3 else None
        Checkpoints(checkpoints, source, keep=2).save(engine, step, score_offset=offset)
    evaluation = documents.of_evaluation()
    mine = evaluation if dist.get_rank() == 0 else []
    batches = [TokenBatch.from_documents(mine)]
    return {"outputs": engine.document_outputs(batches, len(evaluation)).tolist()}


def document_outputs(case: DeepSpeedCase, folder: Path) -> Result:
    """Log-probabilities or scores of seven documents, which no layout deals evenly."""
    import numpy as np

    from alignctl.algorithms.cross_entropy import CrossEntropy

    engine = engine_of(case, folder, is_trained=False)
    batches = documents.micro_batches(
        documents.of_evaluation(),
        "2",
        dp_rank=engine.data_parallel_rank,
        dp_size=engine.data_parallel_size,
    )
    found = engine.document_outputs(batches, 9)
    loss = 0.0  # of prompts there are none here
    if case.loss == "sft":
        loss = engine.evaluate(batches, CrossEntropy()).loss
    return {"found": found[:7].tolist(), "is_nan": bool(np.isnan(found[7:]).all()), "loss": loss}


def stop(case: DeepSpeedCase, folder: Path) -> Result:
    """What every rank hears when the last one is asked to stop."""
    import torch.distributed as dist

    engine = engine_of(case, folder)
    rank, world = dist.get_rank(), dist.get_world_size()
    heard = [
        engine.train_step(
            batches_of(case, 0, engine),
            loss_of(case),
            learning_rate=1e-3,
            is_stop_requested=is_asked and rank == world - 1,
        ).is_stop_requested
        for is_asked in (False, True)
    ]
    return {f"heard_by_{rank}": heard}


KINDS: dict[str, Callable[[DeepSpeedCase, Path], Result]] = {
    function.__name__: function
    for function in (train, spoilt, resume, overflow, checkpoint, document_outputs, stop, shared)
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
