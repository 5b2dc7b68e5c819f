import json
from pathlib import Path

import pytest

from alignctl.errors import UserError
from alignctl.reporting import model_card
from tests.reporting import run_folders


def write_run(folder: Path, stage: str, load: Path, **config: object) -> Path:
    """A finished run of three steps."""
    rows = [
        run_folders.start(3),
        run_folders.validation(0, loss=6.5),
        *(run_folders.train(step, loss=6.0 / step, grad_norm=1.0) for step in (1, 2, 3)),
        run_folders.validation(3, loss=2.123456),
    ]
    run_folders.write(folder, rows, stage=stage, load=str(load), **config)
    (folder / "command.txt").write_text("alignctl\n")
    return run_folders.finish(folder, steps=3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of DPO on a run of SFT, whose rows have a license."""
    data = tmp_path / "data/hh"
    data.mkdir(parents=True)
    (data / "manifest.json").write_text('{"license": "mit"}')
    sft = write_run(
        tmp_path / "runs/sft", "sft", Path("models/base"), data={"train": str(data / "sft")}
    )
    return write_run(
        tmp_path / "runs/dpo",
        "dpo",
        sft / "checkpoints/iter_0000003",
        data={"train": "secret/place/of/pairs.jsonl"},
        score={"api_key": "abc"},
    )


def card(run: Path, base: str | None = None, *results: Path, is_adapter: bool = False) -> str:
    return model_card.render(run, base=base, results=results, is_adapter=is_adapter)


def test_a_card_names_the_sources_of_a_blend_with_their_weights(run: Path, tmp_path: Path) -> None:
    blend = {str(tmp_path / "data/hh/sft"): 3.0, "of/others.jsonl": 1.0}
    blended = write_run(
        tmp_path / "runs/blend", "sft", Path("models/base"), data={"train": None, "blend": blend}
    )
    text = card(blended)
    assert "- data: hh/sft (3.0), of/others.jsonl (1.0)\n" in text
    assert "- license of the data, by their card: mit\n" in text


def test_a_card_tells_the_way_from_the_base_with_data_curves_and_settings(run: Path) -> None:
    text = card(run)
    assert text.splitlines()[:6] == [
        "---",
        "base_model: models/base",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "license: unknown # fill in, as the base model and the data allow",
        "tags: [alignctl, sft, dpo]",
    ]
    assert "models/base, trained by `alignctl sft`, then `alignctl dpo`" in text
    assert text.index("## sft: sft") < text.index("## dpo: dpo") < text.index("## Evaluation")
    assert "- data: hh/sft\n" in text
    assert "- license of the data, by their card: mit" in text
    assert "- data: of/pairs.jsonl\n" in text
    assert "| step, held out | loss |\n|---|---|\n| 0 | 6.5 |\n| 3 | 2.123 |\n" in text
    assert "| `optimizer.lr` | 0.001 |" in text
    assert "abc" not in text
    assert str(run.parent) not in text


def test_a_checkpoint_has_the_card_of_its_run(run: Path) -> None:
    assert card(run / "checkpoints/iter_0000003") == card(run)
    assert model_card.find_run(run.parent / "nothing") is None


def test_a_checkpoint_behind_an_at_has_it_too_and_is_followed_to_its_run(run: Path) -> None:
    """Also one that is there no more: a card tells of the run."""
    assert card(run.with_name("dpo@best")) == card(run.with_name("dpo@iter_3")) == card(run)
    later = write_run(run.with_name("later"), "dpo", run.with_name("dpo@best"))
    assert "tags: [alignctl, sft, dpo]" in card(later)


def test_adapters_name_their_base_as_they_are_told(run: Path) -> None:
    lines = card(run, "org/model", is_adapter=True).splitlines()
    assert lines[1:3] == ["base_model: org/model", "library_name: peft"]


def test_evaluations_of_the_run_are_shown_and_no_others(run: Path, tmp_path: Path) -> None:
    measured = {"accuracy": {"value": 0.5, "interval": [0.4, 0.6]}, "problems": 10}
    mine = run_folders.write_result(tmp_path / "mine", "math", dpo=measured)
    other = run_folders.write_result(tmp_path / "other", "math", stranger=measured)
    text = card(run, None, mine, other, tmp_path)
    assert text.count("Math: ") == 1
    assert "50.0 [40.0, 60.0]" in text
    assert "`alignctl eval` measures" in card(run, None, other)


def test_a_long_curve_is_thinned_and_keeps_its_ends(tmp_path: Path) -> None:
    rows = [run_folders.train(step, loss=float(step)) for step in range(1, 101)]
    folder = run_folders.write(tmp_path / "run", rows, load="x")
    (folder / "command.txt").touch()
    steps = [
        int(line.split("|")[1])
        for line in card(folder).splitlines()
        if line.startswith("| ") and line.split("|")[1].strip().isdecimal()
    ]
    assert (len(steps), steps[0], steps[-1]) == (8, 1, 100)


def test_a_manifest_that_is_none_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "data/hh/manifest.json").write_text(json.dumps("text"))
    with pytest.raises(UserError, match=r"manifest\.json: no manifest of alignctl prepare"):
        card(run)


def test_only_a_card_of_ours_is_written_anew(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    assert not model_card.is_ours(file)
    file.write_text("# Somebody's model\n")
    assert not model_card.is_ours(file)
    file.write_text(card(run))
    assert model_card.is_ours(file)
