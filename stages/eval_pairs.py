"""How often reward models put the better of two answers first: their accuracy on preferences.

    alignctl eval preference runs/reward-a runs/reward-b --data pairs/test.jsonl --output runs/acc

Rows are read and cut as `alignctl reward` does. Of a folder the held-out file counts, where there
is one. As in training, every two answers of different score are a pair, prompts weigh the same, and
equal scores count half. Intervals come from resampled prompts.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignctl import console
from alignctl.config.data import Preferences
from alignctl.config.generation import PairOptions
from alignctl.data import order
from alignctl.data.preference_store import PreferenceData, PreferenceSplit
from alignctl.data.preferences import prepare
from alignctl.evaluation import results
from alignctl.evaluation.scoring import RewardScorer
from alignctl.evaluation.statistics import bootstrap
from alignctl.reporting.page.tables import percent
from alignctl.reporting.progress.rows import RowsProgress


def run(options: PairOptions, *, as_json: bool) -> None:
    """Score all answers with every model, and print the table.

    Raises:
        UserError: An input is wrong; nothing was scored.
        RunError: A score is not finite, or the disk is full.
    """
    names = results.names_of(options.models)
    models = [
        RewardScorer(
            load,
            tokenizer=options.tokenizer,
            precision=options.precision,
            max_length=options.max_length,
            batch=options.score_batch,
        )
        for load in options.models
    ]
    results.make_folder(options.output)
    settings = Preferences(
        train=options.data, truncation=options.truncation, template=options.template
    )
    prepared = [
        prepare(settings, model.max_length, model.tokenizer, options.output / "data")
        for model in models
    ]
    measured = {}
    for name, model, folder in zip(names, models, prepared, strict=True):
        data = PreferenceData.open(folder, share_prompts=True)
        split = data.validation or data.train
        console.say(f"model: {model.source.description}")
        console.say(data.summary.describe())
        batches = order.validation_batches(
            split, micro_batch_size=options.score_batch, dp_rank=0, dp_size=1
        )
        with model:
            progress = RowsProgress("scoring")
            scores = model.of_batches(batches, data.num_documents, progress)
        measured[name] = {"model": model.source.description, **measure(split, scores)}
    text = results.write(
        options.output,
        {
            "eval": "pairs",
            "data": str(options.data),
            "settings": options.model_dump(mode="json"),
            "models": measured,
        },
    )
    console.emit(text if as_json else _table(measured))


def measure(split: PreferenceSplit, scores: NDArray[np.float64]) -> dict[str, Any]:
    """Compute the numbers of one model, as JSON values; shares are of 1, intervals of 95 %.

    Args:
        split: The preferences.
        scores: Of each document `[D]`.
    """
    right, margins, num_pairs, num_ties = [], [], 0, 0
    for start, end in pairwise(split.bounds.tolist()):
        members = split.members[start:end]
        better, worse = np.nonzero(split.scores[members][:, None] > split.scores[members][None, :])
        if not len(better):
            continue
        differences = scores[members[better]] - scores[members[worse]]
        right.append(float(((np.sign(differences) + 1) / 2).mean()))
        margins.append(float(differences.mean()))
        num_pairs += len(differences)
        num_ties += int((differences == 0).sum())
    return {
        "prompts": len(right),
        "pairs": num_pairs,
        "accuracy": {"value": float(np.mean(right)), "interval": list(bootstrap(right))},
        "ties": num_ties,
        "mean_margin": float(np.mean(margins)),
        "mean_score": float(scores[split.members].mean()),
    }


def _table(measured: dict[str, dict[str, Any]]) -> str:
    models = measured.values()
    rows = {
        "prompts": [f"{each['prompts']:,}" for each in models],
        "pairs": [f"{each['pairs']:,}" for each in models],
        "accuracy %": [
            percent(each["accuracy"]["value"], each["accuracy"]["interval"]) for each in models
        ],
        "equal scores": [f"{each['ties']:,}" for each in models],
        "mean margin": [f"{each['mean_margin']:.3f}" for each in models],
        "mean score": [f"{each['mean_score']:.3f}" for each in models],
    }
    return results.table("", list(measured), rows)
