"""Direct preference optimisation: a policy that prefers better answers more than its reference.

    alignctl dpo --preset llama2-7b --load runs/llama2-7b-sft --data data/preferences

The reference is the policy as it was at the start. Its log-probabilities never change, so they are
computed once, before the first step, and kept in a cache that runs from the same weights on the
same rows share: no second model is held.

Departures from the tutorials' systems: the log-probability of a token is read where it is predicted
(upstream one position late); EOS is appended, not written over the last token; the boundary between
prompt and answer comes from the whole text's tokens; long prompts are cut and counted, not dropped
in silence.
"""

import sys
import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alignctl import console
from alignctl.config.run import DPOConfig
from alignctl.data import order, reference_cache
from alignctl.data.preference_store import PreferenceData
from alignctl.data.preferences import prepare
from alignctl.data.reference_cache import ReferenceCache
from alignctl.errors import RunError
from alignctl.launch import worker
from alignctl.launch.attempt import Attempt
from alignctl.launch.nodes import Nodes
from alignctl.launch.run_folder import RunFolder
from alignctl.stages import course, launcher, training

if TYPE_CHECKING:
    from alignctl.algorithms.dpo import DPO
    from alignctl.checkpoints.source import Source
    from alignctl.engines.protocol import Engine


def launch(config: DPOConfig, *, nodes: Nodes, dry_run: bool, resume: bool) -> int:
    """Checks and prepares everything, then runs the job: see `launcher.launch`."""

    def prepare_data(source: "Source", attempt: Attempt) -> None:
        from alignctl.checkpoints import origin
        from alignctl.checkpoints.identity import identity
        from alignctl.checkpoints.preflight import open_model

        folder = launcher.prepare_rows(prepare, config, source, attempt)
        summary = PreferenceData.open(folder).summary
        console.say(summary.describe())
        console.say(str(course.of_preferences(config, summary)))
        reference_cache.choose(
            attempt.folder.data,
            config.data.reference_cache or config.output.parent / ".cache" / "reference",
            # The prepared folder's name stands for rows, template, tokenizer and length.
            lambda: {
                "data": folder.name,
                "dtype": config.precision,
                **identity(open_model(origin.settled(config, attempt.folder))),
            },
        )

    return launcher.launch(config, prepare_data, nodes=nodes, dry_run=dry_run, resume=resume)


def run(folder: RunFolder) -> None:
    """One rank's work: the reference, then load or resume, train, validate, save."""
    from alignctl.checkpoints.preflight import open_model
    from alignctl.engines import checkpoints

    config = DPOConfig.model_validate_json(folder.config.read_text(encoding="utf-8"))
    config = training.initialize(config, folder)
    data = PreferenceData.open(launcher.prepared_data(folder))
    cache = reference_cache.chosen(folder.data)
    cached = cache.read(data.num_documents)
    checkpoint, source = training.newest_model(config, folder)
    engine = training.build_engine(config, head="lm")
    if checkpoint is None or cached is None:
        engine.load_weights(open_model(config))
    if cached is None:
        reference, note = _compute_reference(config, engine, data, cache)
    else:
        reference = cached.values
        note = f"reference: read from {cache.file}, which saves {cached.seconds:.1f} s"
    engine.create_optimizer()
    step = 0 if checkpoint is None else checkpoints.resume(engine, checkpoint)
    loss = loss_of(config, reference)
    training.train(training.Task(config, folder, engine, source, data, loss), step, note)


def loss_of(config: DPOConfig, reference: NDArray[np.float64]) -> "DPO":
    """What is minimised, with the reference's log-probability of each document `[D]`."""
    from alignctl.algorithms.dpo import DPO

    return DPO(
        reference,
        variant=config.loss.variant,
        beta=config.loss.beta,
        label_smoothing=config.loss.label_smoothing,
        nll=config.loss.nll,
    )


def _compute_reference(
    config: DPOConfig, engine: "Engine", data: PreferenceData, cache: ReferenceCache
) -> tuple[NDArray[np.float64], str]:
    """Summed log-probability of each document `[D]`, put into the cache; and what to say of it.

    Raises:
        RunError: The weights give one that is not finite, or the cache cannot be written.
    """
    import torch.distributed as dist

    started = time.perf_counter()
    splits = [split for split in (data.train, data.validation) if split is not None]
    batches = [
        batch
        for split in splits
        for batch in order.validation_batches(
            split,
            micro_batch_size=config.batch.micro_batch_size,
            dp_rank=engine.data_parallel_rank,
            dp_size=engine.data_parallel_size,
        )
    ]
    values = engine.document_outputs(batches, data.num_documents)
    if wrong := np.flatnonzero(~np.isfinite(values)).tolist():
        raise RunError(
            f"{data.where(wrong[0])}: the reference gives this row a log-probability of "
            f"{values[wrong[0]]}; so it does with {len(wrong)} answers of {len(values)}",
            f"the weights of {config.load} may not be finite; verify the model",
        )
    seconds = time.perf_counter() - started
    if dist.get_rank() == 0:
        cache.write(values, seconds)
    dist.barrier()
    return values, f"reference: computed in {seconds:.1f} s, kept in {cache.file}"


if __name__ == "__main__":
    worker.run(run, sys.argv[1])
