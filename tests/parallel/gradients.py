"""Gradients of every weight, beside what transformers' own backward pass makes of them."""

from pathlib import Path
from typing import Any

from tests.parallel import documents
from tests.parallel.cases import Case


def gradients(case: Case, folder: Path) -> dict[str, Any]:
    """How far each whole gradient is from transformers', relative to its largest element."""
    import numpy as np
    import torch
    import torch.distributed as dist

    from alignctl.algorithms.cross_entropy import CrossEntropy
    from tests.parallel.jobs import engine_of

    settings = documents.TRAIN_OPTIMIZER.model_copy(update={"clip_grad": None})
    engine = engine_of(case, folder, settings)
    share = {"dp_rank": engine.data_parallel_rank, "dp_size": engine.data_parallel_size}
    batches = documents.micro_batches(documents.of_step(0, count=4), case.grouping, **share)
    engine.train_step(batches, CrossEntropy(), learning_rate=0.0)
    mine = {engine.global_name(n): p.main_grad.clone() for n, p in engine.model.named_parameters()}
    rank = engine.groups.tp.rank()
    everybody: list[Any] = [None] * case.world
    dist.all_gather_object(everybody, (rank, mine))
    theirs = np.load(folder / case.model / "gradients.npz")
    worst, seen = {}, set()
    for name, row in engine.rows.items():
        shards = {other: grads[name] for other, grads in everybody if name in grads}
        # A tied embedding is on two stages, with the same gradient.
        whole = row.layout.unshard([shards[each] for each in range(case.parallel.tp)])
        for hf, part in zip(row.hf, row.layout.split(whole, engine.architecture), strict=True):
            expected = torch.from_numpy(theirs[hf])
            found = part[: len(expected)]
            worst[hf] = ((found - expected).abs().max() / expected.abs().max()).item()
            seen.add(hf)
    return {"worst": max(worst.values()), "where": max(worst, key=worst.__getitem__)} | {
        "missing": sorted({*theirs.files} - seen)
    }
