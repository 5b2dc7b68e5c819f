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


@pytest.mark.parametrize("time", ["90", "90:30", "12:00:00", "2-12", "2-12:30", "2-12:30:00"])
def test_every_form_of_a_time_of_slurms_is_taken(run: Run, time: str) -> None:
    code, out, err = run(f"launch slurm --time {time} sft {INPUTS}")
    assert code == 0, err
    assert f"#SBATCH --time={time}\n" in out


@pytest.mark.parametrize("flags", ["--memory 900Gi --cpus 64", "--memory 1.5T --cpus 500m"])
def test_every_form_of_a_quantity_is_taken(run: Run, flags: str) -> None:
    code, out, err = run(f"launch kubernetes --image i {flags} sft {INPUTS}")
    assert code == 0, err
    _, memory, _, cpus = flags.split()
    container = yaml.safe_load(out)["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    limits = container["containers"][0]["resources"]["limits"]
    assert {"memory": memory, "cpu": cpus}.items() <= limits.items()


def test_paths_of_the_cluster_are_not_looked_for_here(run: Run) -> None:
    stage = "sft --preset llama2-70b --load /cluster/mg --data /cluster/rows"
    code, out, err = run(f"launch slurm --no-check --setup /cluster/modules.sh {stage}")
    assert code == 0, err
    assert ". /cluster/modules.sh\n" in out
    assert "--load /cluster/mg" in out
    code, _, err = run("launch slurm --no-check sft --preset llama2-70b --load /cluster/mg")
    assert (code, "--data is missing" in err) == (2, True)


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
        (f"slurm --time 99:99 sft {INPUTS}", "--time '99:99' is not a time of Slurm's"),
        (f"slurm --time 1-24:00 sft {INPUTS}", "--time '1-24:00' is not a time"),
        (f"slurm --time soon sft {INPUTS}", "--time 'soon' is not a time"),
        (f"kubernetes --image i --memory lots sft {INPUTS}", "--memory 'lots' is not a quantity"),
        (f"kubernetes --image i --memory 900m sft {INPUTS}", "--memory 900m: no pod"),
        (f"kubernetes --image i --memory 900 sft {INPUTS}", "--memory 900: no pod"),
        (f"kubernetes --image i --cpus many sft {INPUTS}", "--cpus 'many' is not a quantity"),
        (f"kubernetes --image i --cpus 0 sft {INPUTS}", "--cpus 0: no pod"),
        (f"kubernetes --image i --namespace A_b sft {INPUTS}", "--namespace 'A_b' cannot be"),
    ],
)
def test_what_is_wrong_is_said_before_a_job_waits_in_a_queue(
    run: Run, line: str, message: str
) -> None:
    code, out, err = run(f"launch {line}")
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
