"""What is printed for schedulers, read by bash, shellcheck and the libraries of Kubernetes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubeflow.training import ApiClient
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from alignctl import cli
from alignctl.errors import UserError
from alignctl.launch.scheduled import (
    Kubernetes,
    Slurm,
    Stage,
    pytorch_job,
    sbatch_script,
    train_job,
)

SHELLCHECK = str(Path(sys.executable).with_name("shellcheck"))
STAGE = Stage(
    words=("sft", "--preset", "llama2-70b", "--data", "data/my rows", "lora.targets=[q_proj, v]"),
    title="alignctl sft of llama2-70b on 4 nodes of 8 GPUs",
    name="llama2-70b-sft",
    nnodes=4,
    nproc=8,
)
SLURM = Slurm(program="/env/bin/alignctl", folder=Path("/home/me/work"), gpus_per_node=8)
KUBERNETES = Kubernetes(image="registry/alignctl:1", claims=("data:/data",), gpus_per_node=8)


def directives(script: str) -> dict[str, str]:
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH --")]
    pairs = [line.removeprefix("#SBATCH --").partition("=") for line in lines]
    return {name: value for name, _, value in pairs}


def started(script: str) -> list[str]:
    """The words that a shell gives to srun."""
    shown = script.replace("exec srun", "printf '%s\\0'")
    environ = {"SLURM_JOB_ID": "41", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", shown], capture_output=True, check=True, env=environ)
    return done.stdout.decode().split("\0")[:-1]


def test_a_script_asks_for_one_task_on_each_node() -> None:
    script = sbatch_script(STAGE, replace(SLURM, partition="gpu", time="12:00:00", account="ml"))
    assert script.startswith("#!/bin/bash\n")
    wanted = {"nodes": "4", "ntasks-per-node": "1", "gpus-per-node": "8", "partition": "gpu"}
    assert directives(script).items() >= {**wanted, "chdir": "/home/me/work"}.items()
    assert started(script)[-len(STAGE.words) - 1 :] == ["/env/bin/alignctl", *STAGE.words]


def test_what_is_not_said_is_left_to_slurm() -> None:
    found = directives(sbatch_script(STAGE, replace(SLURM, gpus_per_node=0)))
    assert not {"gpus-per-node", "partition", "time", "account", "cpus-per-task"} & set(found)


def test_further_options_stand_as_sbatch_reads_them() -> None:
    options = ("qos=high", "exclusive", "--comment=two words")
    found = directives(sbatch_script(STAGE, replace(SLURM, options=options)))
    assert (found["qos"], found["exclusive"], found["comment"]) == ("high", "", '"two words"')


@pytest.mark.parametrize("option", ["qos=high\nrm -rf /", "", "=x", 'comment="', "a b"])
def test_an_option_that_would_break_the_script_is_refused(option: str) -> None:
    with pytest.raises(UserError, match="is not an option of sbatch"):
        sbatch_script(STAGE, replace(SLURM, options=(option,)))


def test_shellcheck_has_nothing_to_say(tmp_path: Path) -> None:
    setup = tmp_path / "set up.sh"
    setup.write_text("module load cuda\n")
    script = tmp_path / "job.sh"
    script.write_text(sbatch_script(STAGE, replace(SLURM, setup=setup, cpus_per_task=12)))
    # SC1091: the file to source is not part of what is looked at.
    done = subprocess.run(
        [SHELLCHECK, "--severity=style", "--exclude=SC1091", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


WORDS = st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=6)


@settings(max_examples=25)
@given(WORDS)
def test_any_word_reaches_the_stage_as_it_was_given(words: list[str]) -> None:
    script = sbatch_script(replace(STAGE, words=("sft", *words)), SLURM)
    assert started(script)[-len(words) - 1 :] == ["sft", *words]


# ---- Kubernetes ----


def manifest(stage: Stage = STAGE, job: Kubernetes = KUBERNETES) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(pytorch_job(stage, job))
    return loaded


FULL = Kubernetes(
    image="registry/alignctl:1",
    namespace="ml",
    claims=("data:/data", "models:/models"),
    gpus_per_node=8,
    cpus="96",
    memory="900Gi",
    service_account="trainer",
    restarts=3,
)


@pytest.mark.parametrize("job", [KUBERNETES, FULL, Kubernetes(image="x")], ids=str)
@pytest.mark.parametrize("nnodes", [1, 2, 32])
def test_the_operators_own_classes_know_every_key(job: Kubernetes, nnodes: int) -> None:
    """What they do not know they drop, so that the way there and back would not give it again."""
    content = manifest(replace(STAGE, nnodes=nnodes), job)
    client = ApiClient()
    response = SimpleNamespace(data=json.dumps(content))
    parsed = client.deserialize(response, "KubeflowOrgV1PyTorchJob")
    assert client.sanitize_for_serialization(parsed) == content


@pytest.mark.parametrize("job", [KUBERNETES, FULL, Kubernetes(image="x")], ids=str)
def test_pods_are_valid_by_kubernetes_own_schema(job: Kubernetes) -> None:
    for replica in manifest(job=job)["spec"]["pytorchReplicaSpecs"].values():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **replica["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_a_key_that_kubernetes_does_not_know_would_be_found() -> None:
    """So the two tests above can fail."""
    content = manifest()
    content["spec"]["nprocsPerNode"] = "8"
    client = ApiClient()
    parsed = client.deserialize(
        SimpleNamespace(data=json.dumps(content)), "KubeflowOrgV1PyTorchJob"
    )
    assert client.sanitize_for_serialization(parsed) != content
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containrs": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def trained(stage: Stage = STAGE, job: Kubernetes = KUBERNETES) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(train_job(stage, job))
    return loaded


def patched_pod(content: dict[str, Any]) -> dict[str, Any]:
    """The pod that a TrainJob changes its runtime's to."""
    (patch,) = content["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert job["name"] == "node"
    pod: dict[str, Any] = job["template"]["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("job", [KUBERNETES, FULL, Kubernetes(image="x")], ids=str)
def test_the_trainers_own_classes_know_every_key_of_a_train_job(job: Kubernetes) -> None:
    """They drop what they do not know, as those of the operator before."""
    content = trained(job=job)
    parsed = TrainerV1alpha1TrainJob.from_dict(content)
    assert parsed.to_dict() == content
    content["spec"]["trainer"]["numProcs"] = 8
    assert TrainerV1alpha1TrainJob.from_dict(content).to_dict() != content


@pytest.mark.parametrize("job", [KUBERNETES, FULL, Kubernetes(image="x")], ids=str)
def test_what_a_train_job_changes_of_pods_is_valid_by_kubernetes_own_schema(
    job: Kubernetes,
) -> None:
    content = trained(job=job)
    pod, trainer = patched_pod(content), content["spec"]["trainer"]
    (container,) = pod["containers"]
    container |= {"image": trainer["image"], "command": trainer["command"]}
    container |= {"resources": trainer.get("resourcesPerNode", {})}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_both_kinds_of_jobs_say_the_same() -> None:
    old, new = manifest(job=FULL), trained(job=FULL)
    pod = old["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    changed, trainer = patched_pod(new), new["spec"]["trainer"]
    (container,), (node,) = pod["containers"], changed["containers"]
    assert new["metadata"] == old["metadata"]
    assert trainer["numNodes"] == STAGE.nnodes
    assert trainer["command"] == container["command"]
    assert trainer["resourcesPerNode"] == container["resources"]
    assert (node["name"], node["volumeMounts"]) == ("node", container["volumeMounts"])
    for key in ("volumes", "serviceAccountName", "terminationGracePeriodSeconds"):
        assert changed[key] == pod[key]
    assert new["spec"]["runtimeRef"] == {"name": "torch-distributed"}


def test_one_pod_leads_and_the_others_follow() -> None:
    specs = manifest()["spec"]["pytorchReplicaSpecs"]
    assert {name: spec["replicas"] for name, spec in specs.items()} == {"Master": 1, "Worker": 3}
    assert specs["Master"]["template"] == specs["Worker"]["template"]
    container = specs["Master"]["template"]["spec"]["containers"][0]
    assert container["name"] == "pytorch"
    assert container["command"] == ["alignctl", *STAGE.words]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert "Worker" not in manifest(replace(STAGE, nnodes=1))["spec"]["pytorchReplicaSpecs"]


def test_kubernetes_puts_no_variable_into_a_word() -> None:
    content = manifest(replace(STAGE, words=("sft", "--data", "/data/$(HOME)")))
    command = content["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
    assert command["command"][-1] == "/data/$$(HOME)"


@pytest.mark.parametrize("volume", ["data", "data:", "data:relative", ":/data", "Data:/data"])
def test_a_volume_is_a_claim_and_a_path(volume: str) -> None:
    with pytest.raises(UserError, match=r"should be CLAIM:/path"):
        manifest(job=replace(KUBERNETES, claims=(volume,)))


@pytest.mark.parametrize("name", ["Sft", "7b", "a_b", "a" * 51, ""])
def test_a_name_that_kubernetes_would_refuse_is_refused(name: str) -> None:
    for write in (pytorch_job, train_job):
        with pytest.raises(UserError, match="cannot be the name of a Kubernetes object"):
            write(replace(STAGE, name=name), KUBERNETES)


def test_what_a_stage_needs_has_to_be_named_but_not_to_be_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data may be named otherwise than by --data; on-policy stages need a reward model as well."""

    def asked(*words: str) -> tuple[object, str]:
        job = ["alignctl", "launch", "kubernetes", "--image", "alignctl:1", *words]
        monkeypatch.setattr(sys, "argv", job)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, capsys.readouterr().err

    stage = ("--preset", "llama2-7b", "--load", "/data/mg", "--output", "/data/run")
    blend = "data.blend={/data/a: 1.0, /data/b: 2.0}"
    assert asked("pretrain", *stage, blend)[0] in (0, None)
    code, said = asked("rlhf", *stage, "--data", "/data/prompts")
    assert (code, "--reward-load is missing" in said) == (2, True), said
    code, said = asked("sft", *stage, "--data", "/data/rows", "--simulate")
    assert (code, "leave out" in said) == (2, True), said
