"""`alignctl launch`: the stage behind it is read by its own command."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from alignctl import cli

Run = Callable[[str], tuple[int, str, str]]
INPUTS = "--preset llama2-70b --load mg --data rows"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command in a folder that has the two inputs; returns its code, data and words."""
    monkeypatch.chdir(tmp_path)
    for variable in ("WORLD_SIZE", "RANK", "SLURM_NNODES", "SLURM_NODEID"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("mg", "rows"):
        (tmp_path / name).mkdir()

    def call(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["alignctl", *line.split()])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "grpo"])
@pytest.mark.parametrize("dashes", ["", "-- "])
def test_a_stage_becomes_a_script_of_its_presets_size(run: Run, stage: str, dashes: str) -> None:
    code, out, err = run(f"launch slurm --partition gpu {dashes}{stage} {INPUTS}")
    assert code == 0, err
    assert f"#SBATCH --job-name=llama2-70b-{stage}\n#SBATCH --nodes=4\n" in out
    assert "#SBATCH --gpus-per-node=8\n" in out
    assert f"/alignctl {stage} \\\n  --preset llama2-70b \\\n  --load mg \\\n" in out


def test_a_stage_becomes_a_manifest_whose_paths_are_the_pods(run: Run) -> None:
    line = "launch kubernetes --image i --volume c:/d sft --preset llama2-70b --load /d/mg "
    code, out, err = run(line + "--data /d/rows --nnodes 8 --max-restarts 3 batch.seq_length=1024")
    assert code == 0, err
    spec = yaml.safe_load(out)["spec"]
    assert spec["runPolicy"]["backoffLimit"] == 3
    assert spec["pytorchReplicaSpecs"]["Worker"]["replicas"] == 7


def test_a_stage_becomes_a_train_job_of_the_runtime_that_was_named(run: Run) -> None:
    flags = "--image i --volume c:/d --kind TrainJob --runtime gpus"
    code, out, err = run(
        f"launch kubernetes {flags} sft --preset llama2-70b --load /d/mg --data /d/rows"
    )
    assert code == 0, err
    found = yaml.safe_load(out)
    assert (found["kind"], found["spec"]["runtimeRef"]) == ("TrainJob", {"name": "gpus"})
    assert found["spec"]["trainer"]["numNodes"] == 4


def test_the_environment_of_another_job_has_no_say(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NNODES", "2")
    _, out, _ = run(f"launch slurm sft {INPUTS}")
    assert "#SBATCH --nodes=4\n" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("slurm convert-hf2mg --load mg", "'convert-hf2mg' is not a stage that runs on nodes"),
        ("slurm sft --preset llama2-70b --load mg --data nowhere", "--data nowhere does not exist"),
        ("slurm sft --preset llama2-70b --load mg", "--data is missing"),
        ("kubernetes --image i sft --preset llama2-70b --load mg", "--data is missing"),
        (f"slurm sft {INPUTS} optimzer.lr=1", "did you mean 'optimizer.lr'?"),
        (f"slurm sft {INPUTS} --nnodes 3", "24 processes"),
        (f"slurm sft {INPUTS} --node-rank 1", "nodes find out by themselves"),
        (f"slurm sft {INPUTS} --partition gpu", "No such option: --partition"),
        (f"slurm --setup nowhere.sh sft {INPUTS}", "--setup nowhere.sh is not a file"),
        (f"slurm --option a\\b=x sft {INPUTS}", "is not an option of sbatch"),
        (f"kubernetes sft {INPUTS}", "Missing option '--image'"),
        (f"kubernetes --image i --volume data sft {INPUTS}", "should be CLAIM:/path"),
        (f"kubernetes --image i --kind Job sft {INPUTS}", "'Job' is not one of"),
        (f"kubernetes --image i --runtime r sft {INPUTS}", "has no meaning for a PyTorchJob"),
        (f"kubernetes --image i --name A sft {INPUTS}", "cannot be the name of a Kubernetes"),
        ("slurm", "Missing argument 'STAGE ...'"),
    ],
)
def test_what_is_wrong_is_said_before_a_job_waits_in_a_queue(
    run: Run, line: str, message: str
) -> None:
    code, out, err = run(f"launch {line}")
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
