"""The DeepSpeed engine beside Megatron's: the same course at every layout, the same weights."""

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignctl.checkpoints import conversion, manifest
from alignctl.checkpoints.find import find
from tests.parallel import deepspeed_jobs, documents
from tests.parallel.deepspeed_cases import (
    BF16,
    CHECKPOINT,
    FAMILIES,
    FAST,
    FP16,
    LORA,
    LORA_BF16,
    LORA_CHECKPOINT,
    LORA_RESUME,
    OUTPUTS,
    OVERFLOW,
    PREFERENCES,
    RESUME,
    SFT,
    SHARED,
    SPOILT,
    STOP,
    DeepSpeedCase,
)
from tests.parallel.deepspeed_jobs import Result
from tests.parallel.shared import assert_equal

pytestmark = pytest.mark.ci

Results = Callable[[DeepSpeedCase], Result]


def each_of(cases: Iterable[DeepSpeedCase]) -> pytest.MarkDecorator:
    """The cases as parameters of a test; those that are not among FAST are slow ones."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=case.name, marks=() if case in FAST else pytest.mark.slow)
            for case in cases
        ],
    )


@pytest.fixture(scope="session")
def found(models: Path) -> Results:
    """What a case computed; its world's job runs at the first request, after Megatron's."""

    @cache
    def of_world(world: int, *, is_fast: bool) -> dict[str, Result]:
        if world:
            of_world(0, is_fast=False)
        return deepspeed_jobs.run(models, world=world, is_fast=is_fast)

    return lambda case: of_world(case.world, is_fast=case in FAST)[case.name]


@each_of([*SFT, *FAMILIES, *PREFERENCES, *LORA])
def test_the_course_and_the_weights_are_megatrons(case: DeepSpeedCase, found: Results) -> None:
    """Three AdamW steps in fp32; every term of DPO's and of the reward model's loss."""
    ours, theirs = found(case), found(case.reference)
    assert ours["weight"] == theirs["weight"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
    assert ours["difference"] < 1e-5
    for mine, expected in zip(ours["metrics"], theirs["metrics"], strict=True):
        assert mine == pytest.approx(expected, rel=1e-4, abs=1e-5)


@each_of(case for case in SFT if case.recompute != "none")
def test_recomputing_changes_no_bit(case: DeepSpeedCase, found: Results) -> None:
    plain = found(case.model_copy(update={"recompute": "none"}))
    assert {key: found(case)[key] for key in ("loss", "grad_norm", "difference")} == {
        key: plain[key] for key in ("loss", "grad_norm", "difference")
    }


@each_of([*BF16, *LORA_BF16])
def test_bf16_stays_near_fp32_and_has_fp32_masters(case: DeepSpeedCase, found: Results) -> None:
    """Rounding errors of 2^-9, over 4 layers and many tokens; weights are rounded to bf16 too."""
    ours, theirs = found(case), found(case.reference)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-2)
    assert ours["loss"] != pytest.approx(theirs["loss"], rel=1e-6)
    assert ours["model_types"] == ["torch.bfloat16"]
    assert ours["state_types"] == ["torch.float32"]
    assert ours["buffer_types"] in ([], ["torch.float32"])  # frequencies of rotary positions


@each_of(FP16)
def test_fp16_stays_near_fp32_and_has_fp32_masters(case: DeepSpeedCase, found: Results) -> None:
    """Rounding errors of 2^-12: an eighth of those of bf16. The loss scale is of float64."""
    ours, theirs = found(case), found(case.reference)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    assert ours["loss"] != pytest.approx(theirs["loss"], rel=1e-6)
    assert ours["model_types"] == ["torch.float16"]
    assert ours["state_types"] == ["torch.float32", "torch.float64"]


@each_of(OVERFLOW)
def test_gradients_that_overflow_are_left_out_as_by_megatron(
    case: DeepSpeedCase, found: Results
) -> None:
    """From 2^20, hysteresis 2: as many steps without effect, and the same scales, until it fits.

    Two stops between them, the first before any step was taken, change no bit.
    """
    ours, theirs = found(case), found(case.reference)["steps_0"]
    for rank in range(case.world):
        assert ours[f"steps_{rank}"] == ours[f"resumed_{rank}"] == ours["steps_0"]
        assert ours[f"is_equal_{rank}"] is True
    is_skipped = [norm is None for _, norm, *_ in theirs]
    assert is_skipped.index(False) == (8 if case.lora else 9)  # whose gradients are smaller
    for (loss, norm, *rest), (expected, expected_norm, *expected_rest) in zip(
        ours["steps_0"], theirs, strict=True
    ):
        assert loss == pytest.approx(expected, rel=2e-3)
        assert rest == expected_rest
        assert (norm is None) == (expected_norm is None)
        assert norm is None or norm == pytest.approx(expected_norm, rel=1e-2)
    is_taken = [norm is not None for _, norm, *_ in ours["steps_0"]]
    assert is_taken == [is_changed for *_, is_changed in ours["steps_0"]]


@each_of(SPOILT)
def test_a_step_that_is_not_finite_changes_nothing(case: DeepSpeedCase, found: Results) -> None:
    """The next step is the first of an untouched run; nothing of the two gradients is left."""
    ours, theirs = found(case), found(case.reference)
    of_loss, of_gradient = ours["messages"]
    assert of_loss == "the loss is inf"
    assert of_gradient.startswith("the gradient norm is not finite at a loss of 6.5")
    assert ours["is_unchanged"] is True
    assert ours["is_trained_then"] is True
    tolerance = 1e-5 if case.precision == "fp32" else 2e-3
    assert ours["loss"] == pytest.approx(theirs["loss"][0], rel=tolerance)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"][0], rel=tolerance)


@each_of([*RESUME, *LORA_RESUME])
def test_two_steps_and_three_more_are_five_bit_for_bit(case: DeepSpeedCase, found: Results) -> None:
    """Losses, norms, weights and random numbers, between two engines of one process."""
    ours = found(case)
    assert ours["first"] == 2
    assert ours["again"] == ours["numbers"]
    for rank in range(case.world):
        assert ours[f"is_equal_{rank}"] is True
        assert ours[f"is_random_equal_{rank}"] is True


@each_of(OUTPUTS)
def test_outputs_of_documents_are_megatrons(case: DeepSpeedCase, found: Results) -> None:
    """Of a model without an optimizer: what a reference policy or a reward model is."""
    ours = found(case)
    theirs = found(case.reference.model_copy(update={"kind": case.kind}))
    assert ours["found"] == pytest.approx(theirs["found"], rel=1e-5, abs=1e-5)
    assert ours["is_nan"] is theirs["is_nan"] is True
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@each_of(SHARED)
def test_a_prompt_computed_once_changes_no_number(case: DeepSpeedCase, found: Results) -> None:
    assert_equal(found(case)["apart"], found(case)["together"])


def test_every_rank_hears_that_one_was_asked_to_stop(found: Results) -> None:
    assert [found(STOP)[f"heard_by_{rank}"] for rank in range(2)] == [[False, True]] * 2


@each_of(CHECKPOINT)
def test_a_checkpoint_is_a_folder_of_transformers(
    case: DeepSpeedCase, models: Path, found: Results
) -> None:
    """No key is missing or left over, and it computes what the trained model computed."""
    outputs = found(case)["outputs"]
    folder = models / case.name / "checkpoints" / "iter_0000003"
    is_policy = case.loss == "sft"
    kind: Any = AutoModelForCausalLM if is_policy else AutoModelForSequenceClassification
    model, told = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    computed = (_logprobs if is_policy else _scores)(model.eval())
    np.testing.assert_allclose(outputs, computed, rtol=1e-5, atol=1e-5)


@each_of(CHECKPOINT[::3])
def test_a_checkpoint_is_found_by_the_paths_of_its_run(
    case: DeepSpeedCase, models: Path, found: Results
) -> None:
    """The folder of checkpoints points to the newest of the two that were kept."""
    found(case)
    run = models / case.name
    newest = run / "checkpoints" / "iter_0000003"
    assert sorted(path.name for path in (run / "checkpoints").glob("iter_*")) == [
        "iter_0000002",
        "iter_0000003",
    ]
    for path in (run, run / "checkpoints", newest):
        source = find(path, vocab_divisor=documents.VOCAB_DIVISOR)
        assert (source.kind, source.path, source.auxiliary) == ("hf", newest, newest)
        assert source.role == ("policy" if case.loss == "sft" else "reward")
        assert source.manifest is not None
        assert source.manifest.iteration == 3
        assert source.manifest.score_offset == (None if case.loss == "sft" else 0.5)
    manifest.verify_checksums(newest, manifest.read(newest))
    assert json.loads((newest / "config.json").read_text())["dtype"] == "float32"


@each_of(LORA_CHECKPOINT)
def test_a_checkpoint_of_adapters_is_a_folder_of_peft(
    case: DeepSpeedCase, models: Path, found: Results, tmp_path: Path
) -> None:
    """PEFT on the base, and the merged model, compute what the trained model computed."""
    outputs = found(case)["outputs"]
    folder = models / case.name / "checkpoints" / "iter_0000003"
    names = {path.name for path in folder.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "alignctl.json"} | {
        "deepspeed",
        "hf",
    }
    source = find(models / case.name, vocab_divisor=documents.VOCAB_DIVISOR)
    assert (source.kind, source.path, source.auxiliary) == ("hf", folder, folder / "hf")
    assert source.adapted is not None
    assert source.adapted.base.path == models / case.model / "hf"
    is_policy = case.loss == "sft"
    kind: Any = AutoModelForCausalLM if is_policy else AutoModelForSequenceClassification
    settings = {} if is_policy else {"num_labels": 1}
    base = kind.from_pretrained(models / case.model / "hf", dtype=torch.float32, **settings)
    compute = _logprobs if is_policy else _scores
    assert np.abs(np.asarray(outputs) - compute(base.eval())).max() > 0.01
    adapted = PeftModel.from_pretrained(base, folder)
    np.testing.assert_allclose(outputs, compute(adapted.eval()), rtol=1e-5, atol=1e-5)
    conversion.convert(source, tmp_path, conversion.Target("hf"))
    merged = kind.from_pretrained(tmp_path, dtype=torch.float32)
    np.testing.assert_allclose(outputs, compute(merged.eval()), rtol=1e-5, atol=1e-5)


def _logprobs(model: Any) -> NDArray[np.float64]:
    """Summed log-probability of the learned tokens of each evaluation document."""
    found = []
    for document in documents.of_evaluation():
        tokens = torch.from_numpy(document.tokens.astype(np.int64))
        with torch.no_grad():
            logprobs = model(tokens[None, :-1]).logits[0].log_softmax(-1)
        learned = torch.from_numpy(document.supervised[1:])
        found.append(logprobs.gather(1, tokens[1:, None])[learned].sum().item())
    return np.asarray(found)


def _scores(model: Any) -> NDArray[np.float64]:
    """Score of each evaluation document: transformers takes the last token without padding."""
    found = []
    for document in documents.of_evaluation():
        tokens = torch.from_numpy(document.tokens[None, :-1].astype(np.int64))
        with torch.no_grad():
            found.append(model(tokens).logits.item())
    return np.asarray(found)
