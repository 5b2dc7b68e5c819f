from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alignctl.config.presets import inheritance
from alignctl.config.presets import library as presets
from alignctl.config.presets.document import Document, KeyPath, Origin
from alignctl.config.presets.load import STAGES, load_preset, resolve, resolve_all
from alignctl.config.presets.render import render_preset
from alignctl.config.pretrain import PretrainConfig
from alignctl.config.run import SFTConfig
from alignctl.errors import UserError

OUTPUT = {"output": Path("runs/x")}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named as a user in their folder sees them."""
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> str:
    file = Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return name


def refused(preset: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve(SFTConfig, preset, OUTPUT, overrides)
    assert caught.value.exit_code == 2
    return caught.value.message


def sft(preset: str, *overrides: str) -> SFTConfig:
    return resolve(SFTConfig, preset, OUTPUT, overrides)


def test_a_preset_that_extends_another_differs_in_what_it_says() -> None:
    mine = write("mine.yaml", "extends: llama2-7b\nsft:\n  optimizer:\n    lr: 1.0e-3\n")
    ours = sft("llama2-7b").model_dump()
    ours["optimizer"]["lr"], ours["preset"] = 1e-3, mine
    assert sft(mine).model_dump() == ours
    others = resolve_all(mine, [])
    others.pop("sft")
    for stage, config in others.items():
        before = resolve(STAGES[stage], "llama2-7b", {"output": Path("runs")})
        assert config == before.model_copy(update={"preset": mine})


def test_a_file_with_nothing_but_extends_is_the_preset() -> None:
    mine = write("mine.yaml", "extends: bloom-7b1\n")
    assert load_preset(mine) == load_preset("bloom-7b")


def test_the_preset_of_the_docs_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "presets.md").read_text()
    [text] = [block for block in page.split("```") if block.startswith("yaml\n")]
    preset = load_preset(write("team.yaml", text.removeprefix("yaml\n")))
    assert preset.dpo is not None
    assert (preset.dpo.data.max_response, preset.dpo.parallel.tp) == (None, 2)


def test_paths_are_relative_to_the_file_that_extends() -> None:
    write("team/base.yaml", "extends: tiny-llama\nsft: {train: {seed: 7}}\n")
    write("team/more/middle.yaml", "extends: ../base.yaml\n")
    top = write("top.yaml", "extends: team/more/middle.yaml\n")
    assert sft(top).train.seed == 7
    assert sft(str(Path(top).absolute())).train.seed == 7


def test_of_several_the_last_wins_and_each_counts_once() -> None:
    """The second says nothing of the seed: that of their common base does not come back."""
    write("base.yaml", "extends: tiny-llama\nsft: {train: {seed: 1, steps: 50}}\n")
    write("first.yaml", "extends: base.yaml\nsft: {train: {seed: 2, steps: 60}}\n")
    write("second.yaml", "extends: base.yaml\nsft: {train: {steps: 70}}\n")
    train = sft(write("top.yaml", "extends: [first.yaml, second.yaml]\n")).train
    assert (train.seed, train.steps) == (2, 70)


def test_null_turns_off_what_was_inherited_and_a_section_turns_it_on_again() -> None:
    write("base.yaml", "extends: tiny-llama\nsft: {lora: {rank: 4, alpha: 8.0}}\nrlhf: null\n")
    assert load_preset("base.yaml").rlhf is None
    off = write("off.yaml", "extends: base.yaml\nsft: {lora: null, optimizer: {clip_grad: null}}\n")
    assert (sft(off).lora, sft(off).optimizer.clip_grad) == (None, None)
    on = write("on.yaml", "extends: off.yaml\nsft: {lora: {rank: 2}}\n")
    lora = sft(on).lora
    assert lora is not None
    assert (lora.rank, lora.alpha) == (2, 32.0), "not the alpha that was off in between"
    gone = write("gone.yaml", "extends: tiny-llama\nsft: null\n")
    assert "gone.yaml has no section 'sft'" in refused(gone)
    with pytest.raises(UserError, match=r"gone\.yaml has no section 'sft'"):
        render_preset(gone, [], stage="sft")
    broken = write("broken.yaml", "extends: tiny-llama\nsft:\n  batch: null\n")
    assert refused(broken) == "broken.yaml:3: batch must be a section of keys; found null"


def test_lists_are_replaced() -> None:
    write("base.yaml", "extends: tiny-llama\nsft: {lora: {targets: [q_proj, k_proj]}}\n")
    lora = sft(write("top.yaml", "extends: base.yaml\nsft: {lora: {targets: [mlp]}}\n")).lora
    assert lora is not None
    assert lora.targets == ("mlp",)


def test_a_table_of_paths_is_replaced() -> None:
    write("base.yaml", "extends: tiny-llama\npretrain: {data: {blend: {a: 1.0, b: 2.0}}}\n")
    top = write("top.yaml", "extends: base.yaml\npretrain: {data: {blend: {c: 1.0}}}\n")
    assert resolve(PretrainConfig, top, OUTPUT).data.blend == {Path("c"): 1.0}


def test_of_the_knobs_of_a_warm_up_one_takes_the_place_of_the_inherited() -> None:
    mine = write("mine.yaml", "extends: tiny-llama\nsft: {optimizer: {warmup_steps: 5}}\n")
    optimizer = sft(mine).optimizer
    assert (optimizer.warmup_steps, optimizer.warmup_fraction) == (5, None)


LAYOUT = """\
extends: llama2-7b
layout:
  parallel: {tp: 2}
  launch: {nproc_per_node: 4}
  rollout: {tp: 2}
dpo:
  parallel: {tp: 4}
"""


def test_a_layout_is_told_to_every_stage_but_those_that_say_otherwise() -> None:
    """Also to those that the inherited file had said more of: the nearer file wins."""
    mine = write("mine.yaml", LAYOUT)
    for stage, config in resolve_all(mine, []).items():
        expected = 4 if stage == "dpo" else 2
        assert (config.parallel.tp, config.launch.nproc_per_node) == (expected, 4), stage
        assert config.parallel.sequence_parallel, "of which nothing was said"
    convert = load_preset(mine).convert
    assert (convert.tp, convert.pp) == (2, 1)


def test_a_layout_is_told_to_stages_that_only_the_extending_file_has() -> None:
    stage = presets.find("recipes/tiny").read_text().partition("\nsft:\n")[2].partition("\n\n")[0]
    write("base.yaml", "layout: {precision: fp32, launch: {nproc_per_node: 2}}\n")
    model = "extends: tiny-llama\npretrain: null\nsft: null\n"
    write("model.yaml", model)
    mine = write("mine.yaml", f"extends: [model.yaml, base.yaml]\nsft:\n{stage}\n")
    assert sft(mine).launch.nproc_per_node == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "layout:\n  paralel: {tp: 2}\n",
            "2: unknown key 'layout.paralel'; did you mean 'layout.par",
        ),
        (
            "layout:\n  parallel:\n    tpp: 2\n",
            "3: unknown key 'layout.parallel.tpp'; did you mean",
        ),
        ("layout:\n  launch: {nnodes: two}\n", "2: layout.launch.nnodes must be an integer; found"),
        ("layout: 4\n", "1: layout must be a section of keys; found 4"),
        ("layout: null\n", "1: layout must be a section of keys; found null"),
        ("extend: llama2-7b\n", "1: unknown key 'extend'; did you mean 'extends'?"),
        (
            "extends: 7\n",
            "1: extends must be the name of a preset or the path of a file, or a list",
        ),
        ("extends: [a, 7]\n", "1: extends must be the name of a preset or the path of a file"),
        ("extends: null\n", "of them; found null"),
        (
            "extends: lama2-7b\n",
            "1: extends: there is no preset 'lama2-7b' (did you mean llama2-7b?)",
        ),
        ("extends: recipes/blom\n", "(did you mean recipes/bloom?)"),
        ("extends: no.yaml\n", "1: extends no.yaml: there is no file no.yaml"),
        (
            "extends: mine.yaml\n",
            "1: extends mine.yaml goes round in a circle: mine.yaml -> mine.yaml",
        ),
    ],
)
def test_what_ties_files_together_is_refused_once_with_its_line(text: str, problem: str) -> None:
    message = refused(write("mine.yaml", text))
    assert message.startswith("mine.yaml:")
    assert problem in message
    assert "\n" not in message


def test_a_circle_names_the_file_that_closes_it() -> None:
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "\nextends: [tiny-llama, ./a.yaml]\n")
    assert refused("a.yaml") == (
        "b.yaml:2: extends ./a.yaml goes round in a circle: a.yaml -> b.yaml -> a.yaml"
    )


def test_eight_files_may_extend_each_other_and_no_more() -> None:
    for number in range(6):
        write(
            f"{number}.yaml",
            f"extends: {number + 1}.yaml\n" if number < 5 else "extends: tiny-llama\n",
        )
    assert sft("0.yaml").train.steps == 200
    write("top.yaml", "extends: 0.yaml\n")
    message = refused("top.yaml")
    assert message.startswith(f"{presets.find('tiny-llama')}:")
    assert "more than 8 files extend each other: top.yaml -> 0.yaml -> 1.yaml" in message


def test_each_mistake_is_named_with_the_file_that_makes_it() -> None:
    write("base.yaml", "extends: tiny-llama\n\nsft:\n  optimizer:\n    beta1: 2.0\n    epss: 1\n")
    top = write("top.yaml", "extends: base.yaml\nsft:\n  batch: {seq_length: long}\n")
    assert refused(top).splitlines() == [
        "3 problems:",
        "  top.yaml:3: batch.seq_length must be an integer; found 'long'",
        "  base.yaml:5: optimizer.beta1 must be less than 1; found 2.0",
        "  base.yaml:6: unknown key 'optimizer.epss'; did you mean 'optimizer.eps'?",
    ]


def test_of_keys_that_disagree_the_nearest_file_is_blamed_before_the_recipe() -> None:
    top = write("top.yaml", "extends: llama2-7b\nsft:\n  batch:\n    seq_length: 8192\n")
    assert refused(top) == (
        "top.yaml:4: batch.seq_length 8192 exceeds model.max_position_embeddings 4096"
    )
    top = write("top.yaml", "extends: llama2-7b\nmodel:\n  max_position_embeddings: 1024\n")
    message = refused(top)
    assert message.startswith("top.yaml:3: batch.seq_length 2048 exceeds")
    assert refused(top, "batch.seq_length=4096").startswith("override 'batch.seq_length=4096': ")


def test_what_is_missing_names_the_section_that_lacks_it() -> None:
    mine = write("mine.yaml", "extends: recipes/llama2\n")
    with pytest.raises(UserError, match=r"llama2\.yaml:5: key 'model\.num_layers' is missing"):
        load_preset(mine)


def test_shown_is_the_whole_with_the_file_and_line_of_each_value() -> None:
    mine = write("mine.yaml", LAYOUT)
    lines = render_preset(mine, ["optimizer.lr=1e-3"], stage="dpo").splitlines()
    ours = {
        name: presets.find(name).read_text().splitlines()
        for name in ("llama2-7b", "recipes/llama2")
    }
    layers = ours["llama2-7b"].index("  num_layers: 32") + 1
    vocabulary = ours["recipes/llama2"].index("  vocab_size: 32000") + 1
    for line in [
        f"  num_layers: 32 # llama2-7b.yaml:{layers}",
        f"  vocab_size: 32000 # recipes/llama2.yaml:{vocabulary}",
        "    tp: 4 # mine.yaml:7",
        "    nproc_per_node: 4 # mine.yaml:4",
        "    lr: 0.001 # override 'optimizer.lr=1e-3'",
        "    eps: 1.0e-08 # default",
    ]:
        assert line in lines, line
    assert "sft:" not in lines
    text = "\n".join(lines)
    flat = resolve(STAGES["dpo"], write("flat.yaml", text), OUTPUT)
    expected = resolve(STAGES["dpo"], mine, OUTPUT, ["optimizer.lr=1e-3"])
    assert flat == expected.model_copy(update={"preset": "flat.yaml"})


@pytest.mark.parametrize("name", ["llama2-70b", "bloom-176b", "tiny-bloom"])
def test_what_is_shown_of_ours_is_a_preset_that_means_the_same(name: str) -> None:
    flat = write("flat.yaml", render_preset(name, []))
    assert load_preset(flat).model_dump() == load_preset(name).model_dump()
    assert "extends" not in yaml.safe_load(Path(flat).read_text())


def test_a_table_that_was_typed_is_shown_with_its_override() -> None:
    blend = "data.blend={a.jsonl: 1.0, 'b #1.jsonl': 2.0}"
    mine = write("mine.yaml", render_preset("tiny-llama", [blend], stage="pretrain"))
    assert Path(mine).read_text().count("# override") == 2
    config = resolve(PretrainConfig, mine, OUTPUT)
    assert config.data.blend == {Path("a.jsonl"): 1.0, Path("b #1.jsonl"): 2.0}


def test_text_that_looks_like_a_number_is_shown_as_text() -> None:
    text = render_preset("tiny-llama", ["data.train='1e5'"])
    assert sft(write("mine.yaml", text)).data.train == Path("1e5")


def test_a_copy_keeps_the_comments_and_what_it_extends_and_overwrites_nothing() -> None:
    target = Path("mine.yaml")
    inheritance.copy("bloom-7b1", target)
    assert target.read_bytes() == (presets.folder() / "bloom-7b.yaml").read_bytes()
    assert load_preset("mine.yaml") == load_preset("bloom-7b")
    with pytest.raises(UserError, match="exists already"):
        inheritance.copy("llama2-7b", target)
    with pytest.raises(UserError, match="No such file"):
        inheritance.copy("llama2-7b", Path("nowhere") / "mine.yaml")


def test_a_copy_that_would_not_find_what_it_extends_is_refused() -> None:
    write("team/base.yaml", "extends: tiny-llama\n")
    write("team/top.yaml", "extends: base.yaml\n")
    inheritance.copy("team/top.yaml", Path("team/copy.yaml"))
    assert load_preset("team/copy.yaml") == load_preset("tiny-llama")
    with pytest.raises(
        UserError, match=r"team/top\.yaml:1: base\.yaml, which .* not be found from"
    ):
        inheritance.copy("team/top.yaml", Path("copy.yaml"))
    assert not Path("copy.yaml").exists()


TREES = st.recursive(
    st.none()
    | st.integers(0, 3)
    | st.lists(st.fixed_dictionaries({"a": st.integers()}), max_size=2),
    lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=8,
)


def paths(value: Any, at: KeyPath = ()) -> Iterator[KeyPath]:
    """The way to each key, as the reader of files notes them."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value or []):
        if isinstance(value, dict):
            yield (*at, key)
        if isinstance(each, dict | list):
            yield from paths(each, (*at, key))


def document(tree: Any, name: str) -> Document:
    tree = tree if isinstance(tree, dict) else {"a": tree}
    return Document(tree, {at: Origin(name) for at in paths(tree)})


@given(below=TREES, above=TREES)
def test_every_key_of_a_merged_tree_has_the_origin_of_the_file_that_set_it(
    below: Any, above: Any
) -> None:
    low, high = document(below, "low"), document(above, "high")
    merged = inheritance.merge(low, high)
    assert set(merged.origins) == set(paths(merged.tree))
    for at, origin in merged.origins.items():
        assert origin.text == ("high" if at in high.origins else "low")
