"""Where the processes of one node listen, by the kernel's own table: on loopback and nowhere else.

The machine has a name that belongs to an address which others could reach: by its name torchrun,
Gloo, NCCL and vLLM would listen there.
"""

import ipaddress
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests import commands, named_machine, tiny, tiny_on_policy

pytestmark = [pytest.mark.ci, pytest.mark.timeout(600)]


def listened(tmp_path: Path, *arguments: object) -> set[str]:
    """Runs a command, which has to work; returns all addresses at which somebody listened."""
    process = subprocess.Popen(
        [*named_machine.prefix(tmp_path / "hosts"), commands.ALIGNCTL, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    here = Path("/proc/self/ns/net").readlink()
    found: set[str] = set()
    while process.poll() is None:
        with suppress(OSError):  # it has ended since, and has no namespace any more
            if Path(f"/proc/{process.pid}/ns/net").readlink() != here:
                found |= named_machine.listening(process.pid)
        time.sleep(0.01)
    outcome = commands.finish(process)
    assert outcome.code == 0, outcome.text
    return found


@pytest.fixture(scope="module", autouse=True)
def namespaces(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Leaves the tests out where the kernel allows no namespaces."""
    words = named_machine.prefix(tmp_path_factory.mktemp("machine") / "hosts")
    done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine allows no network namespaces: {done.stderr}")


def test_who_listens_at_all_addresses_or_at_the_machines_own_is_seen(tmp_path: Path) -> None:
    """0.0.0.0 and :: are all addresses of IPv4 and of both."""
    program = (
        "import socket, sys\n"
        "held = [socket.create_server((name, 0)) for name in ('', 'server', 'localhost')]\n"
        "held.append(socket.create_server(('::', 0), family=socket.AF_INET6))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    words = [*named_machine.prefix(tmp_path / "hosts"), sys.executable, "-c", program]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = named_machine.listening(process.pid)
    assert found == {"0.0.0.0", named_machine.ADDRESS, "127.0.0.1", "::"}


def assert_loopback(addresses: set[str]) -> None:
    """Somebody was seen, and only where no other machine reaches him."""
    assert addresses
    assert [each for each in addresses if not ipaddress.ip_address(each).is_loopback] == []


def training(tmp_path: Path, stage: str, *knobs: str) -> list[object]:
    """A stage's command, for a run of a few steps on two ranks."""
    model = tiny.write_model(tmp_path / "hf")
    flags = ["--preset", tiny.write_preset(tmp_path / "tiny.yaml"), "--load", model]
    if stage == "pretrain":
        corpus = tiny.write_corpus(tmp_path / "corpus")
        return [stage, *flags, "--data", corpus, "--output", tmp_path / "run", *knobs]
    write = tiny.write_rows if stage == "sft" else tiny.write_pairs
    data = write(tmp_path / "data.jsonl")
    return [stage, *flags, "--data", data, "--output", tmp_path / "run", *knobs]


def test_sft_listens_on_loopback_only(tmp_path: Path) -> None:
    assert_loopback(listened(tmp_path, *training(tmp_path, "sft", "train.steps=3")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "knobs"),
    [
        ("sft", ("engine=deepspeed", "parallel.tp=1")),
        ("reward", ("parallel.tp=2",)),
        ("dpo", ("parallel.pp=2",)),
        ("pretrain", ()),
    ],
)
def test_training_listens_on_loopback_only(
    tmp_path: Path, stage: str, knobs: tuple[str, ...]
) -> None:
    steps = "train.tokens=512" if stage == "pretrain" else "train.steps=3"
    assert_loopback(listened(tmp_path, *training(tmp_path, stage, steps, *knobs)))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["rlhf", "online-dpo", "grpo"])
def test_learning_from_own_answers_listens_on_loopback_only(tmp_path: Path, stage: str) -> None:
    inputs = tiny_on_policy.write(tmp_path / "inputs")
    command = tiny_on_policy.command(stage, inputs, tmp_path / "run", "train.steps=1")
    assert_loopback(listened(tmp_path, *command, "rollout.tp=2"))


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 2])
def test_generation_listens_on_loopback_only(tmp_path: Path, tp: int) -> None:
    inputs = tiny_on_policy.write(tmp_path / "inputs")
    flags = ["--load", inputs / "hf", "--data", inputs / "prompts.jsonl"]
    knobs = ["max_new_tokens=4", f"tp={tp}"]
    assert_loopback(
        listened(tmp_path, "generate", *flags, "--output", tmp_path / "answers.jsonl", *knobs)
    )


@pytest.mark.slow
def test_evaluation_by_a_reward_model_listens_on_loopback_only(tmp_path: Path) -> None:
    inputs = tiny_on_policy.write(tmp_path / "inputs")
    pairs = tiny.write_pairs(tmp_path / "pairs.jsonl")
    words = [inputs / "reward", "--data", pairs, "--output", tmp_path / "out"]
    assert_loopback(listened(tmp_path, "eval", "preference", *words))


@pytest.mark.slow
def test_a_conversion_that_is_verified_listens_on_loopback_only(tmp_path: Path) -> None:
    """Both models are run, Megatron's in a process group of one."""
    model = tiny.write_model(tmp_path / "hf")
    words = ["--preset", tiny.write_preset(tmp_path / "tiny.yaml"), "--load", model]
    assert_loopback(listened(tmp_path, "convert-hf2mg", *words, "--save", tmp_path / "mg"))
