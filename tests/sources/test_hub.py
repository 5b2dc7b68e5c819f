"""Data sets by name, by the real libraries, from a hub on this machine."""

import io
import json
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from alignctl.config.hub import parse, store
from alignctl.config.presets.load import resolve
from alignctl.config.run import SFTConfig
from alignctl.data.rows.files import find_files, read_rows
from alignctl.errors import AlignctlError, RunError, UserError
from alignctl.sources.hub import fetch, fetch_inputs
from alignctl.stages.shared.stage import load_stage
from tests.sources.hub_server import Hub, Repo, serving

pytestmark = pytest.mark.ci

CARD = b"""---
license: mit
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: socratic
  data_files:
  - {split: train, path: socratic/train-*}
---
"""
TRAIN = [{"question": f"{number} + 1?", "answer": f"#### {number + 1}"} for number in range(20)]
TEST = [{"question": "1 + 1?", "answer": "#### 2"}]
FIRST, SECOND = "1" * 40, "2" * 40


def parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def lines(rows: list[Any]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def gsm8k(commit: str = FIRST, rows: list[dict[str, Any]] = TRAIN) -> Repo:
    files = {
        "README.md": CARD,
        "main/train-00000-of-00002.parquet": parquet(rows[:10]),
        "main/train-00001-of-00002.parquet": parquet(rows[10:]),
        "main/test-00000-of-00001.parquet": parquet(TEST),
        "socratic/train-00000-of-00001.parquet": parquet(rows[::-1]),
    }
    return Repo(files, commit, info={"cardData": {"license": "mit"}})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, the only one that the libraries know; the working folder is a new one."""
    import datasets
    import huggingface_hub.constants as constants

    repos = {
        "openai/gsm8k": gsm8k(),
        "some/lines": Repo({"train.jsonl": lines(TRAIN), "dev.jsonl": lines(TEST)}),
        "some/program": Repo({"program.py": b"raise SystemExit('run')\n", "README.md": b""}),
        "some/gated": Repo({"train.jsonl": lines(TRAIN)}, is_gated=True),
        "some/list": Repo({"train.jsonl": lines([[1], 2])}),
        "some/torn": Repo({"train.jsonl": b'{"a": 1}\n{"a": \n'}),
        "some/nothing": Repo({"train.jsonl": b""}),
        "some/notes": Repo({"README.md": b"Later."}),
        "some/bytes": Repo({"train.parquet": parquet([{"text": "a", "picture": b"\xff\xd8"}])}),
        "some/dates": Repo({"train.parquet": parquet([{"text": "a", "day": date(2026, 3, 1)}])}),
        "some/sides": Repo(
            {"data/train_a-00000-of-00001.parquet": parquet(TRAIN[:3])}
            | {"data/train_b-00000-of-00001.parquet": parquet(TRAIN)}
            | {"README.md": CARD.partition(b"configs")[0] + SIDES}
        ),
    }
    with serving(repos) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = f"{served.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", served.url)
        for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
            monkeypatch.setenv(name, "1")  # which are set for good otherwise
        monkeypatch.setenv("HF_UPDATE_DOWNLOAD_COUNTS", "0")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.chdir(tmp_path)
        yield served


SIDES = b"""configs:
- config_name: default
  data_files:
  - {split: train_a, path: data/train_a-*}
  - {split: train_b, path: data/train_b-*}
---
"""


def get(name: str) -> Path:
    known = parse(name)
    assert known is not None
    return fetch(known, Path("here"))


def rows_in(folder: Path, *, held_out: bool = False) -> list[dict[str, object]]:
    role: Any = "validation" if held_out else "train"
    return [row.record for row in read_rows(find_files(folder, role))]


def refused(name: str, kind: type[AlignctlError] = UserError) -> AlignctlError:
    """The one message about a data set, of which nothing is left behind."""
    with pytest.raises(kind) as caught:
        get(name)
    assert "hf_secret" not in f"{caught.value.message}{caught.value.hint}"
    assert not [path for path in Path().glob("here/*/*") if path.is_dir()]
    return caught.value


def test_a_configuration_is_fetched_at_its_commit_and_found_again(hub: Hub) -> None:
    folder = get("openai/gsm8k:main")
    assert folder == Path(f"here/openai/gsm8k:main@{FIRST}")
    assert rows_in(folder) == TRAIN
    assert rows_in(folder, held_out=True) == TEST
    about = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert about["rows"] == {"train": 20, "test": 1}
    assert about["license"] == "mit"
    assert "Bearer hf_secret" in hub.tokens
    hub.asked.clear()
    before = (folder / "train.jsonl.zst").stat().st_mtime_ns
    assert get("openai/gsm8k:main") == folder
    assert hub.asked == ["GET /api/datasets/openai/gsm8k"]
    assert (folder / "train.jsonl.zst").stat().st_mtime_ns == before
    assert get(f"openai/gsm8k:main@{FIRST}") == folder
    assert len(hub.asked) == 1


def test_lines_need_no_card(hub: Hub) -> None:
    folder = get("some/lines")
    assert rows_in(folder) == TRAIN
    assert rows_in(folder, held_out=True) == TEST


def test_offline_it_is_found_as_it_was_asked_for(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos["openai/gsm8k"].refs = ("v1",)
    first = get("openai/gsm8k:main")
    hub.repos["openai/gsm8k"] = gsm8k(SECOND)
    second = get("openai/gsm8k:main")
    assert second != first
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert get("openai/gsm8k:main") == second
    assert "taken as it was fetched before: HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert get("openai/gsm8k:main@1111111") == first
    for name in ("openai/gsm8k:main@v1", "openai/gsm8k", "openai/gsm8k:socratic"):
        with pytest.raises(UserError, match="nor was it fetched into here before") as caught:
            get(name)
        assert caught.value.hint is not None
        assert "hf download --repo-type dataset openai/gsm8k" in caught.value.hint
    assert hub.asked == []


def test_without_a_server_the_message_is_that_of_a_path_too(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = refused("dta/sft")
    assert said.message.startswith("dta/sft: no such file or folder here, nor was it fetched into")
    assert "Connection refused" in said.message


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("openai/gsm8k", "several of them; its configurations are main, socratic", ":main"),
        ("openai/gsm8k:man", "no configuration 'man'; its configurations are main, soc", ":main"),
        ("openai/gsm8k:main:dev", "no split 'dev'; its splits are train, test", ""),
        ("openai/gsm8k:main@v9", "openai/gsm8k has no revision v9", "branch, tag or commit"),
        ("openai/gms8k", "hub has no data set openai/gms8k that you may read", "HF_TOKEN"),
        ("some/gated", "some/gated is gated", "huggingface.co/datasets/some/gated"),
        ("some/program", "a program of its authors, program.py,", "@refs/convert/parquet"),
        ("some/sides", "no split of it is called train; its splits are train_a", "sides::train_a"),
        ("some/torn", "`datasets` cannot read it", "hf download"),
        ("some/list", "`datasets` cannot read it", "hf download"),
        ("some/notes", "`datasets` cannot read it", "hf download"),
        ("some/nothing", "", ""),
        ("some/bytes", "row 1 of train: column picture holds a value of type bytes", "text"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_one_message(
    hub: Hub, name: str, message: str, hint: str
) -> None:
    said = refused(name)
    assert said.message.startswith(f"{name}: ")
    assert message in said.message
    assert hint in (said.hint or "")
    assert "\n" not in said.message


def test_a_file_that_the_hub_keeps_back_ends_in_one_message(hub: Hub) -> None:
    hub.repos["some/lines"].info["note"] = "?Signature=abc"
    hub.forbidden.add("train.jsonl")
    said = refused("some/lines", RunError)
    assert said.message.startswith("some/lines: the Hugging Face hub stopped answering: ")


def test_dates_become_text(hub: Hub) -> None:
    assert rows_in(get("some/dates")) == [{"text": "a", "day": "2026-03-01"}]


def test_a_split_is_fetched_alone(hub: Hub) -> None:
    folder = get("some/sides::train_b")
    assert rows_in(folder) == TRAIN
    assert find_files(folder, "validation") == []


def configured(**data: Any) -> SFTConfig:
    flags = {f"data.{key}": value for key, value in data.items()}
    return resolve(SFTConfig, "tiny-llama", {"output": "runs/x", **flags})


def fetched(config: SFTConfig) -> SFTConfig:
    return fetch_inputs(config, load_stage("sft").inputs)


def test_a_run_reads_folders_in_the_place_of_names_and_keeps_them(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    given = configured(train="openai/gsm8k:main", validation="some/lines")
    found = fetched(given)
    folder = Path(f"runs/.cache/hub/openai/gsm8k:main@{FIRST}")
    assert folder.parent.parent == store(Path("runs/x"))
    assert found.data.train == folder
    assert found.data.validation == Path(f"runs/.cache/hub/some/lines@{FIRST}")
    assert found.output == given.output
    said = capsys.readouterr().err
    assert (
        f"--data openai/gsm8k:main: 20 rows of train, 1 rows of test at revision 1111111, in "
        f"{folder}\n"
    ) in said
    # The hub goes on; a run that has been started does not.
    Path("runs/x").mkdir()
    Path("runs/x/config.json").write_text(found.model_dump_json(), encoding="utf-8")
    hub.repos["openai/gsm8k"] = gsm8k(SECOND, TRAIN[::-1])
    hub.asked.clear()
    assert fetched(given).data == found.data
    assert hub.asked == []
    other = configured(train="openai/gsm8k:main")
    assert fetched(other.model_copy(update={"output": Path("runs/y")})).data.train == Path(
        f"runs/.cache/hub/openai/gsm8k:main@{SECOND}"
    )


def test_the_sources_of_a_blend_may_be_names_but_not_two_of_one(hub: Hub) -> None:
    def blended(text: str) -> SFTConfig:
        blend = f"data.blend={{{text}}}"
        return fetched(resolve(SFTConfig, "tiny-llama", {"output": "runs/x"}, [blend]))

    Path("rows.jsonl").touch()
    found = blended("some/lines: 3, rows.jsonl: 1")
    folder = Path(f"runs/.cache/hub/some/lines@{FIRST}")
    assert found.data.weights == {folder: 3.0, Path("rows.jsonl"): 1.0}
    with pytest.raises(UserError, match=r"data\.blend: two of .* are the same data set"):
        blended("some/lines: 3, some/lines@main: 1")


def test_folders_that_datasets_has_written_are_read(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved to disk, one split and several; its cache; the cache of the hub's own library."""
    import datasets
    from huggingface_hub import snapshot_download

    cache = tmp_path / "datasets"
    loaded = datasets.load_dataset("openai/gsm8k", "main", cache_dir=str(cache))
    loaded.map(lambda row: {"question": row["question"].upper()})  # which leaves files there too
    loaded.save_to_disk(tmp_path / "all")
    loaded["train"].save_to_disk(tmp_path / "one", num_shards=3)
    snapshot_download("openai/gsm8k", repo_type="dataset", allow_patterns="main/*")
    kept = tmp_path / "cache" / "datasets--openai--gsm8k"
    [processed] = cache.glob("openai___gsm8k/main/0.0.0/*/")
    assert re.fullmatch("[0-9a-f]+", processed.name)
    for folder in (tmp_path / "all", processed, cache / "openai___gsm8k", kept):
        assert rows_in(folder) == TRAIN
        assert rows_in(folder, held_out=True) == TEST
    assert rows_in(tmp_path / "one") == TRAIN
    assert all(file.is_symlink() for file in find_files(kept, "train"))
