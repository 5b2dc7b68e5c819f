"""Align a policy with preferences, without a reward model.

    alignctl dpo --preset llama2-7b --load runs/llama2-7b-sft --data data/preferences

Direct preference optimisation: the policy comes to prefer better answers more than its reference
does. The reference is the policy as it was at the start. Its log-probabilities never change, so
they are computed once, before the first step, and kept in a cache that runs from the same weights
on the same rows share: no second model is held.

Departures from the tutorials' systems: the log-probability of a token is read where it is predicted
(upstream one position late); EOS is appended, not written over the last token; the boundary between
prompt and answer comes from the whole text's tokens; long prompts are cut and counted, not dropped
in silence.
"""

import time
from typing import TYPE_CHECKING

from alignctl.config.run import DPOConfig
from alignctl.errors import RunError
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.inputs import TUNED, rows
from alignctl.stages.shared.prepared import prepared_data
from alignctl.stages.shared.stage import Stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from alignctl.algorithms.dpo import DPO
    from alignctl.checkpoints.source import Source
    from alignctl.data.preference_store import PreferenceData
    from alignctl.data.reference_cache import ReferenceCache
    from alignctl.engines.protocol import Engine
    from alignctl.launch.attempt import Attempt


def choose_reference_cache(config: DPOConfig, _: "Source", attempt: "Attempt") -> None:
    """Name the cache of the reference's log-probabilities for the ranks."""
    from alignctl.checkpoints import origin
    from alignctl.checkpoints.identity import identity
    from alignctl.checkpoints.preflight import open_model
    from alignctl.data import reference_cache

    reference_cache.choose(
        attempt.folder.data,
        config.data.reference_cache or config.output.parent / ".cache" / "reference",
        # The prepared folder's name stands for rows, template, tokenizer and length.
        lambda: {
            "data": prepared_data(attempt.folder).name,
            "dtype": config.precision,
            # These round differently; the name is that of before where prompts are not shared.
            **({"share_prompts": True} if config.batch.share_prompts else {}),
            **identity(open_model(origin.settled(config, attempt.folder))),
        },
    )


def work(config: DPOConfig, folder: RunFolder) -> None:
    """Do one rank's work: the reference, then load or resume, train, validate, save."""
    from alignctl.checkpoints.preflight import open_model
    from alignctl.data import reference_cache
    from alignctl.engines import checkpoints
    from alignctl.stages.shared import training

    config = training.initialize(config, folder)
    data = training.open_preferences(prepared_data(folder), config)
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
    loss = make_loss(config, reference)
    training.train(training.Task(config, folder, engine, source, data, loss), step, note)


def make_loss(config: DPOConfig, reference: "NDArray[np.float64] | None" = None) -> "DPO":
    """Make what is minimised.

    Args:
        config: The run.
        reference: The reference's log-probability of each document `[D]`; None: 0 for a document.
    """
    import numpy as np

    from alignctl.algorithms.dpo import DPO

    return DPO(
        np.zeros(1) if reference is None else reference,
        variant=config.loss.variant,
        beta=config.loss.beta,
        label_smoothing=config.loss.label_smoothing,
        nll=config.loss.nll,
    )


def _compute_reference(
    config: DPOConfig, engine: "Engine", data: "PreferenceData", cache: "ReferenceCache"
) -> "tuple[NDArray[np.float64], str]":
    """Compute the log-probability of each document `[D]`, for the cache; and what to say of it.

    Raises:
        RunError: The weights give one that is not finite, or the cache cannot be written.
    """
    import numpy as np
    import torch.distributed as dist

    from alignctl.data import order

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


STAGE = Stage(
    name="dpo",
    config=DPOConfig,
    help="""Align a policy with preferences, without a reward model.

    The reference is the model it starts from.
    """,
    examples=(
        "alignctl dpo --preset llama2-7b --load runs/llama2-7b-sft --data data/pairs loss.beta=0.1",
        "alignctl dpo --preset llama2-70b --load runs/sft --data data/pairs \\",
        "  --nnodes 4 --node-rank 0 --master-addr node0 --dry-run",
        "alignctl dpo --preset llama2-70b --simulate",
    ),
    inputs=rows(TUNED, "alignment"),
    rows="preferences",
    work=work,
    after_rows=choose_reference_cache,
    loss=make_loss,
)

if __name__ == "__main__":
    STAGE.run_rank()
