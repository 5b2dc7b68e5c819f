"""The conversions between formats and roles, and `alignctl verify`, as commands."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignctl.checkpoints import auxiliary_files, padding
from alignctl.checkpoints.pickles.torch_writer import Writer
from alignctl.checkpoints.tensors.dtypes import Bits
from alignctl.models import hf_rotary
from tests import commands, tiny
from tests.stages.conftest import Alignctl, refused, snapshot

pytestmark = pytest.mark.ci


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model as transformers writes it."""
    from transformers import AutoConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("reward") / "hf"
    tiny.write_model(folder)
    config = AutoConfig.from_pretrained(folder, num_labels=1)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_run_goes_to_the_legacy_format_and_from_there_to_hugging_face(
    alignctl: Alignctl, finished: Path, tmp_path: Path
) -> None:
    """The layout that was written is found again, and nothing is lost on the way."""
    flags = ["--format", "legacy", "--tp", "2", "--pp", "2"]
    there = alignctl("convert-mg2mg", "--load", finished, "--save", tmp_path / "old", *flags)
    assert there.out == f"{tmp_path / 'old'}\n"
    assert "(Megatron legacy, TP 2, PP 2)" in there.err
    assert (tmp_path / "old/release/mp_rank_01_001/model_optim_rng.pt").is_file()
    again = alignctl("convert-mg2mg", "--load", tmp_path / "old", "--save", tmp_path / "new")
    assert "from: " in again.err
    assert "Megatron legacy, TP 2, PP 2, version 3" in again.err
    for name, source in (("a", finished), ("b", tmp_path / "new")):
        assert alignctl("convert-mg2hf", "--load", source, "--save", tmp_path / name).code == 0
    first, second = (tmp_path / name / "model.safetensors" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_every_conversion_is_verified_and_says_by_how_much(
    alignctl: Alignctl, tmp_path: Path
) -> None:
    said = alignctl("convert-hf2mg", "--load", "hf", "--save", tmp_path / "mg").err
    assert "logits of 32 tokens x 261 rows differ by at most" in said
    assert "2 layers compared" in said
    fast = alignctl("convert-hf2mg", "--load", "hf", "--save", tmp_path / "f", "--verify", "fast")
    assert "2 layers compared" in fast.err
    none = alignctl("convert-hf2mg", "--load", "hf", "--save", tmp_path / "n", "--verify", "none")
    assert "compared" not in none.err


def test_what_is_written_wrong_is_found_and_removed(
    alignctl: Alignctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that changes one value of one tensor."""
    write = Writer.write

    def write_wrong(writer: Writer, bits: Bits) -> None:
        if bits.shape[-2:] == (32, 64):  # of the second layer's feed-forward block, at last
            bits = bits.copy()
            bits[..., 3, 5] ^= 1 << 12
        write(writer, bits)

    monkeypatch.setattr(Writer, "write", write_wrong)
    outcome = alignctl("convert-hf2mg", "--load", "hf", "--save", tmp_path / "mg")
    assert outcome.code == 1
    assert "the written model differs from its source: 2 of 15 tensors differ" in outcome.err
    assert "mlp.linear_fc2.weight[3, 5]" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_reward_model_goes_there_and_back_and_is_called_one(
    alignctl: Alignctl, reward: Path, tmp_path: Path
) -> None:
    for format in ("mcore", "legacy"):
        mg, back = tmp_path / format, tmp_path / f"{format}-back"
        flags = ["--format", format, "--tp", "2", "--role", "reward"]
        there = alignctl("convert-hf2mg", "--load", reward, "--save", mg, *flags)
        assert there.code == 0, there.text
        assert "llama2 reward model" in there.err
        assert "scores of 32 tokens differ by at most" in there.err
        assert alignctl("convert-mg2hf", "--load", mg, "--save", back).code == 0
        for name in ("config.json", "model.safetensors"):
            assert (back / name).read_bytes() == (reward / name).read_bytes()


def test_a_role_that_the_weights_do_not_have_is_refused(
    alignctl: Alignctl, reward: Path, tmp_path: Path
) -> None:
    target = tmp_path / "mg"
    said = refused(
        alignctl("convert-hf2mg", "--load", reward, "--save", target, "--role", "policy")
    )
    assert "--role policy was asked for, but this is a reward model" in said
    said = refused(alignctl("convert-hf2mg", "--load", "hf", "--save", target, "--role", "reward"))
    assert "--role reward was asked for, but this is a policy model" in said
    assert not target.exists()


def test_a_reward_model_is_no_start_for_fine_tuning(
    alignctl: Alignctl, reward: Path, workspace: Path, tmp_path: Path
) -> None:
    before = snapshot(workspace)
    flags = ["--preset", "tiny.yaml", "--load", reward, "--data", "train.jsonl"]
    said = refused(alignctl("sft", *flags, "--output", tmp_path / "run"))
    assert "this is a reward model, and alignctl sft trains a policy" in said
    assert snapshot(workspace) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["300", "2kb", "1GB"])
def test_a_hugging_face_folder_is_cut_into_files_of_the_size_that_is_asked_for(
    alignctl: Alignctl, finished: Path, workspace: Path, tmp_path: Path, size: str
) -> None:
    flags = ["--max-shard-size", size]
    assert (
        alignctl("convert-mg2hf", "--load", finished, "--save", tmp_path / "hf", *flags).code == 0
    )
    files = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert (len(files) == 1) == (size == "1GB")
    assert (tmp_path / "hf/model.safetensors.index.json").exists() == (size != "1GB")
    whole = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert whole.keys() == load_file(workspace / "hf/model.safetensors").keys()


def test_a_size_that_is_none_is_refused(alignctl: Alignctl, finished: Path) -> None:
    flags = ["--load", finished, "--save", "new", "--max-shard-size", "big"]
    assert "'big' is no size: write 5GB, 500MB or 2GiB" in refused(
        alignctl("convert-mg2hf", *flags)
    )


def test_verify_tells_whether_two_models_are_the_same_whatever_their_formats(
    alignctl: Alignctl, finished: Path, tmp_path: Path
) -> None:
    flags = ["--format", "legacy", "--tp", "2"]
    assert alignctl("convert-hf2mg", "--load", "hf", "--save", tmp_path / "mg", *flags).code == 0
    same = alignctl("verify", "hf", tmp_path / "mg")
    assert (same.code, same.out) == (0, "all 15 tensors are identical\n")
    other = alignctl("verify", "hf", finished)
    assert other.code == 1
    assert other.out.startswith("15 of 15 tensors differ; the largest difference of each, A != B:")
    assert "more" in other.out.splitlines()[-1]


def test_verify_shows_the_place_of_a_single_difference(
    alignctl: Alignctl, workspace: Path, tmp_path: Path
) -> None:
    """Up to the bit: a zero with another sign is another weight."""
    (tmp_path / "hf").mkdir()
    weights = load_file(workspace / "hf/model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][7, 3] = 0.0
    config = (workspace / "hf/config.json").read_bytes()
    for name, value in (("plus", 0.0), ("minus", -0.0)):
        weights["model.layers.1.mlp.down_proj.weight"][7, 3] = value
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_bytes(config)
    outcome = alignctl("verify", tmp_path / "plus", tmp_path / "minus")
    assert outcome.code == 1
    assert outcome.out.splitlines()[1] == (
        "  decoder.layers.1.mlp.linear_fc2.weight[7, 3]: 0 != -0 (difference 0; "
        "1 of 2048 elements differ)"
    )


def test_verify_refuses_models_of_different_shapes(alignctl: Alignctl) -> None:
    said = refused(alignctl("verify", "hf", "bloom"))
    assert "A and B are different models" in said
    assert "family: llama2 != bloom" in said


@pytest.fixture(scope="module")
def pai(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Bloom as PAI-Megatron-Patch's converter leaves it.

    Its JSON files (an index of Hugging Face's weights among them) and the tracker lie beside
    `release`, and the last stage has a copy of the tied embedding.
    """
    folder = tmp_path_factory.mktemp("pai") / "mg"
    flags = ["--format", "legacy", "--tp", "2", "--pp", "2", "--verify", "none"]
    made = commands.alignctl(
        "convert-hf2mg", "--load", workspace / "bloom", "--save", folder, *flags
    )
    assert made.code == 0, made.text
    for file in (folder / "release/hf").iterdir():
        file.rename(folder / file.name)
    (folder / "release/hf").rmdir()
    (folder / "release/alignctl.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "b.bin"}}')
    for rank in ("00", "01"):
        first, last = (
            folder / f"release/mp_rank_{rank}_00{stage}/model_optim_rng.pt" for stage in (0, 1)
        )
        tree = torch.load(last, weights_only=False)
        embedding = torch.load(first, weights_only=False)["model"]["language_model"]["embedding"]
        tree["model"]["word_embeddings_for_head"] = {
            "weight": embedding["word_embeddings"]["weight"]
        }
        torch.save(tree, last)
    return folder


@pytest.mark.parametrize("verify", ["full", "none"])
def test_a_folder_of_pais_converter_becomes_a_model_that_every_stage_reads(
    alignctl: Alignctl, pai: Path, workspace: Path, tmp_path: Path, verify: str
) -> None:
    """Nothing of the other format comes along, so the result is read as what it is."""
    flags = ["--save", tmp_path / "hf", "--verify", verify]
    outcome = alignctl("convert-mg2hf", "--load", pai, *flags)
    assert outcome.code == 0, outcome.text
    assert {file.name for file in (tmp_path / "hf").iterdir()} == {
        "alignctl.json",
        *(file.name for file in (workspace / "bloom").iterdir()),
    }
    assert alignctl("verify", tmp_path / "hf", workspace / "bloom").code == 0


def test_what_cannot_be_read_again_is_not_left_behind(
    alignctl: Alignctl, pai: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that makes another kind of folder of the result, whatever put it there."""
    monkeypatch.setattr(
        auxiliary_files, "is_auxiliary", lambda name: name.endswith((".json", ".txt"))
    )
    flags = ["--save", tmp_path / "hf", "--verify", "none"]
    outcome = alignctl("convert-mg2hf", "--load", pai, *flags)
    assert outcome.code == 1
    assert "what was written cannot be read again: " in outcome.err
    assert "names release, which is not there" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_two_sets_of_weights_are_read_as_transformers_reads_them_and_it_is_said(
    alignctl: Alignctl, workspace: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(workspace / "hf", tmp_path / "in"))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    outcome = alignctl("convert-hf2mg", "--load", folder, "--save", tmp_path / "mg")
    assert outcome.code == 0, outcome.text
    words = "float32, from model.safetensors; not read: model.safetensors.index.json"
    assert outcome.err.splitlines()[0].endswith(words)


# ---- what is verified ----


def configure(folder: Path, name: str = "config.json", **changes: object) -> None:
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(config | changes))


def test_a_mistake_in_reading_a_config_is_found_by_transformers_own_load(
    alignctl: Alignctl, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if `rope_scaling` were overlooked: its factor halves all positions."""
    folder = Path(shutil.copytree(workspace / "hf", tmp_path / "in"))
    configure(folder, rope_scaling={"type": "linear", "factor": 2.0})
    flags = ["--load", folder, "--save", tmp_path / "mg"]
    assert "rope_scaling = {'type': 'linear'" in refused(alignctl("convert-hf2mg", *flags))
    monkeypatch.setattr(hf_rotary, "read", lambda *_: (10000.0, None))
    for layers in ("full", "fast"):
        outcome = alignctl("convert-hf2mg", *flags, "--verify", layers)
        assert outcome.code == 1
        assert "computes something else than its source" in outcome.err
        assert "the first difference is at layer 0" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def rename(folder: Path, change: Callable[[str], str]) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({change(name): each for name, each in weights.items()}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hf", as_bin),
        ("hf", lambda folder: rename(folder, lambda name: f"module._orig_mod.{name}")),
        ("hf", lambda folder: rename(folder, lambda name: name.replace("mlp.", "_orig_mod.mlp."))),
        ("bloom", lambda folder: rename(folder, lambda name: name.removeprefix("transformer."))),
        ("hf", lambda folder: configure(folder, dtype="float16")),
    ],
)
def test_what_transformers_reads_by_itself_is_the_same(
    alignctl: Alignctl,
    workspace: Path,
    tmp_path: Path,
    name: str,
    change: Callable[[Path], object],
) -> None:
    folder = Path(shutil.copytree(workspace / name, tmp_path / "in"))
    change(folder)
    outcome = alignctl("convert-hf2mg", "--load", folder, "--save", tmp_path / "mg")
    assert outcome.code == 0, outcome.text
    assert "logits of 32 tokens x 261 rows differ by at most" in outcome.err


def test_an_exported_reward_model_scores_padded_texts_as_it_was_trained_to(
    alignctl: Alignctl, reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded with the token that ends a text, transformers would score the token before it."""
    folder, mg = Path(shutil.copytree(reward, tmp_path / "in")), tmp_path / "mg"
    configure(folder, pad_token_id=2)
    configure(folder, "tokenizer_config.json", pad_token="</s>")
    assert alignctl("convert-hf2mg", "--load", folder, "--save", mg).code == 0
    with monkeypatch.context() as context:
        context.setattr(padding, "settle", lambda *_: None)
        outcome = alignctl("convert-mg2hf", "--load", mg, "--save", tmp_path / "hf")
        assert outcome.code == 1
        assert "the first difference is at texts in a batch with padding" in outcome.err
    outcome = alignctl("convert-mg2hf", "--load", mg, "--save", tmp_path / "hf")
    assert outcome.code == 0, outcome.text
    assert "; those of padded texts by " in outcome.err
    assert "note: pad_token_id is 3, in the tokenizer too: with 2 transformers would" in outcome.err
    assert json.loads((tmp_path / "hf/config.json").read_text())["pad_token_id"] == 3


@pytest.mark.parametrize(
    ("pad", "said"),
    [
        (2, "note: pad_token_id 2 also ends texts, of which transformers scores the token before;"),
        (-1, "note: pad_token_id -1 is no token, so that transformers scores padding;"),
        (None, "note: there is no pad_token_id, so that transformers scores one text at a time;"),
        (3, None),
    ],
)
def test_a_foreign_reward_model_that_transformers_scores_otherwise_is_told_of(
    alignctl: Alignctl, reward: Path, tmp_path: Path, pad: int | None, said: str | None
) -> None:
    folder = Path(shutil.copytree(reward, tmp_path / "in"))
    configure(folder, pad_token_id=pad)
    flags = ("--save", tmp_path / "mg", "--verify", "none")
    outcome = alignctl("convert-hf2mg", "--load", folder, *flags)
    assert outcome.code == 0, outcome.text
    ours = "alignctl scores the last token of each text, and convert-mg2hf writes a pad_token_id"
    if said is None:
        assert "note: " not in outcome.err
    else:
        assert f"{said} {ours}" in outcome.err
        assert outcome.err.count("note: ") == 1


def test_a_written_folder_that_transformers_cannot_load_is_not_left_behind(
    alignctl: Alignctl, reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the settings of its tokenizer were written wrong."""
    assert alignctl("convert-hf2mg", "--load", reward, "--save", tmp_path / "mg").code == 0
    monkeypatch.setattr(
        padding, "settle", lambda folder, _: configure(folder, "tokenizer.json", model=None)
    )
    outcome = alignctl("convert-mg2hf", "--load", tmp_path / "mg", "--save", tmp_path / "hf")
    assert outcome.code == 1
    assert "what was written is not what was read: " in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["mg"]
