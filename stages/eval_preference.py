"""How often a reward model prefers what models say to what a baseline says.

    alignctl eval preference runs/dpo runs/rlhf --baseline runs/sft --reward-load runs/reward \
      --data prompts.jsonl --output runs/wins

All models answer the same prompts, then the reward model scores every answer after its prompt, as
the reward model's own tokenizer and template write it; with EOS, unless the answer was cut at its
length. Such answers are counted: a reward model has learned to score at EOS. Equal scores count
half. Intervals come from resampled prompts. A reward model is not a person: a policy that was
trained with the same one wins by that alone.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignctl import console
from alignctl.config.generation import WinOptions
from alignctl.data.prompts import render_prompts
from alignctl.data.rows.files import read_rows
from alignctl.data.rows.prompt_schemas import Question
from alignctl.data.rows.schemas import Rendered
from alignctl.data.text.masks import cut_prompt, encode, encode_prompts
from alignctl.data.text.templates import Renderer
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError
from alignctl.evaluation import prompts, results
from alignctl.evaluation.answering import answer
from alignctl.evaluation.generation import Generator
from alignctl.evaluation.prompts import PromptFile
from alignctl.evaluation.scoring import RewardScorer
from alignctl.evaluation.statistics import bootstrap
from alignctl.reporting.page.evaluations import BASELINE
from alignctl.reporting.page.tables import percent
from alignctl.reporting.progress.rows import RowsProgress
from alignctl.stages.shared.own_rewards import check_functions, score_answers


def run(options: WinOptions, *, as_json: bool) -> None:
    """Ask all models, score their answers, and print the table.

    Raises:
        UserError: An input is wrong; nothing was started.
        RunError: vLLM failed, a score is not finite, or the disk is full. Answers are kept.
    """
    check_functions(options.functions)
    file = prompts.read(options.data, options.limit)
    has_answers = options.baseline.is_file()
    asked = [*options.models, *([] if has_answers else [options.baseline])]
    names = results.names_of(options.models)
    if BASELINE in names:
        raise UserError(f"a model is called {BASELINE}, as its answers would be: rename its folder")
    names += [] if has_answers else [BASELINE]
    generators = [Generator(model, options, tokenizer=options.tokenizer) for model in asked]
    reward = RewardScorer(
        options.reward_load, precision=options.precision, batch=options.score_batch
    )
    answers = {name: options.output / f"{name}.jsonl" for name in names}
    if has_answers:
        answers[BASELINE] = options.baseline
        _read(options.baseline, file)
    results.make_folder(options.output)
    for name, generator in zip(names, generators, strict=True):
        answer(generator, file, answers[name])
    said = {name: _read(path, file) for name, path in answers.items()}
    scores, num_cut = _scores(said, file, reward, options)
    measured = {name: _measure(scores[name], scores[BASELINE]) for name in answers}
    if options.functions:
        _add_own(measured, said, file, options)
    for name, generator in zip(names, generators, strict=True):
        measured[name]["max_new_tokens"] = generator.settings.max_new_tokens
    text = results.write(
        options.output,
        {
            "eval": "preference",
            "data": str(options.data),
            "data_sha256": file.digest,
            "reward_model": reward.source.description,
            "cut": num_cut,
            "settings": options.model_dump(mode="json"),
            "models": measured,
        },
    )
    console.emit(text if as_json else _table(measured))


def _read(path: Path, file: PromptFile) -> list[dict[str, Any]]:
    """Read a file of answers: rows, each with one answer to the prompt of its place.

    Raises:
        UserError: They are not as many as the prompts, or have no answer.
    """
    rows = list(read_rows([path]))
    if len(rows) != len(file.rows):
        raise UserError(
            f"{path}: {len(rows):,} answers, but {len(file.rows):,} prompts are asked",
            "answers must be to the same prompts, in their order: alignctl generate writes such",
        )
    for row, asked in zip(rows, file.rows, strict=True):
        if not isinstance(row.record.get("response"), str):
            raise UserError(
                f"{row.where}: no `response` of text in this row",
                "a baseline has one answer to each prompt",
            )
        if any(row.record.get(key, value) != value for key, value in _question(asked.record)):
            raise UserError(f"{row.where}: this answers another prompt than {asked.where} asks")
    return [dict(row.record) for row in rows]


def _question(record: dict[str, object]) -> list[tuple[str, object]]:
    """Select the keys of a row of prompts that its answer must agree with."""
    keys = ("query", "prompt", "messages", "question")
    return [(key, json.loads(json.dumps(record[key]))) for key in keys if key in record]


def _scores(
    said: dict[str, list[dict[str, Any]]],
    file: PromptFile,
    reward: RewardScorer,
    options: WinOptions,
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Score every answer, by model; count the texts that were cut at their start."""
    documents = [
        tokens
        for rows in said.values()
        for tokens in answer_documents(file.questions, rows, options.template, reward.tokenizer)
    ]
    endless = sum(row.get("finish") == "length" for rows in said.values() for row in rows)
    if endless:
        console.say(
            f"{endless:,} of {len(documents):,} answers were cut at max_new_tokens: their scores "
            "mean little, as a reward model has learned to score at EOS"
        )
    num_cut = sum(len(tokens) > reward.max_length for tokens in documents)
    cut = [cut_prompt(each, reward.max_length, reward.tokenizer.bos_id) for each in documents]
    console.say(f"reward model: {reward.source.description}")
    if num_cut:
        console.say(
            f"{num_cut:,} of {len(cut):,} texts lost their start: longer than "
            f"{reward.max_length:,} tokens"
        )
    prompts = [*range(len(file.questions))] * len(said)
    with reward:
        found = reward.scores(cut, prompts, RowsProgress("scoring"))
    return dict(zip(said, np.split(found, len(said)), strict=True)), num_cut


def answer_documents(
    questions: list[Question], rows: list[dict[str, Any]], template: str, tokenizer: Tokenizer
) -> list[NDArray[np.int32]]:
    """Make the tokens that the reward model reads, as it would be trained on these answers.

    A blank answer, from which no row of training is made, is its prompt's tokens, and EOS.
    """
    render = Renderer(template, tokenizer)
    prompts = encode_prompts(render_prompts(questions, render), tokenizer)
    texts = _answered(questions, rows, render)
    end = np.asarray([tokenizer.eos_id], np.int32)
    return [
        document.tokens
        if len(document.tokens)
        else np.concatenate([prompt, end[: row.get("finish") != "length"]])
        for document, prompt, row in zip(encode(texts, tokenizer), prompts, rows, strict=True)
    ]


def _answered(
    questions: list[Question], rows: list[dict[str, Any]], render: Renderer
) -> list[Rendered]:
    """Write questions and their answers as text; nothing where an answer is blank."""
    texts = [Rendered("", (), append_eos=False)] * len(rows)
    places = [place for place, row in enumerate(rows) if row["response"].strip()]
    said = [questions[place].answered(rows[place]["response"]) for place in places]
    for place, written in zip(places, render.start(said, whole=True)(), strict=True):
        response, is_cut = rows[place]["response"], rows[place].get("finish") == "length"
        texts[place] = _without_end(written[-1], response) if is_cut else written[-1]
    return texts


def _without_end(text: Rendered, response: str) -> Rendered:
    """Remove from a cut answer's text the end that a template writes behind it, such as EOS."""
    said = response.strip()
    start = text.spans[-1][0]
    place = text.text.rfind(said, start)
    end = place + len(said) if place >= 0 else len(text.text)
    return Rendered(text.text[:end], (*text.spans[:-1], (start, end)), append_eos=False)


def _measure(own: NDArray[np.float64], baseline: NDArray[np.float64]) -> dict[str, Any]:
    """Compute the numbers of one model, as JSON values; shares are of 1, intervals of 95 %."""
    wins = (np.sign(own - baseline) + 1) / 2
    return {
        "prompts": len(own),
        "win_rate": {"value": float(wins.mean()), "interval": list(bootstrap(wins.tolist()))},
        "ties": int((own == baseline).sum()),
        "mean_score": float(own.mean()),
        "mean_difference": float((own - baseline).mean()),
    }


def _add_own(
    measured: dict[str, dict[str, Any]],
    said: dict[str, list[dict[str, Any]]],
    file: PromptFile,
    options: WinOptions,
) -> None:
    """Add how often rewards of one's own prefer a model's answers, where they score both."""
    found = {
        name: score_answers(
            options.functions, options.workers, file, [[row["response"]] for row in rows]
        )
        for name, rows in said.items()
    }
    for name, told in measured.items():
        for label, scores in found[name].items():
            own, baseline = scores[:, 0], found[BASELINE][label][:, 0]
            is_known = ~np.isnan(own) & ~np.isnan(baseline)
            if is_known.any():
                wins = (np.sign(own - baseline)[is_known] + 1) / 2
                interval = list(bootstrap(wins.tolist()))
                told[f"wins_by_{label}"] = {"value": float(wins.mean()), "interval": interval}
            told[f"reward_{label}"] = float(np.nanmean(own))
            told[f"reward_{label}_failed"] = int(np.isnan(own).sum())


def _table(measured: dict[str, dict[str, Any]]) -> str:
    rows: dict[str, list[str]] = {"prompts": [], "win rate %": [], "ties": [], "mean score": []}
    for name, each in measured.items():
        is_baseline = name == BASELINE
        rate = percent(each["win_rate"]["value"], each["win_rate"]["interval"])
        rows["prompts"].append(f"{each['prompts']:,}")
        rows["win rate %"].append("-" if is_baseline else rate)
        rows["ties"].append("-" if is_baseline else f"{each['ties']:,}")
        rows["mean score"].append(f"{each['mean_score']:.3f}")
    for key in dict.fromkeys(key for each in measured.values() for key in each):
        if key.startswith("wins_by_"):
            rows[f"{key.replace('_', ' ', 2)} %"] = [
                percent(each[key]["value"], each[key]["interval"])
                if key in each and name != BASELINE
                else "-"
                for name, each in measured.items()
            ]
        elif key.startswith("reward_"):
            rows[key.replace("_", " ", 1)] = [f"{each[key]:,.4g}" for each in measured.values()]
    return results.table("", list(measured), rows)
