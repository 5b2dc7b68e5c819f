import shlex
import sys

import pytest

from alignctl.launch.job import Job, worker_environment


def test_a_single_node_meets_on_loopback_at_any_free_port() -> None:
    job = Job("alignctl.stages.sft", ("runs/a b",), nproc=2, master_port=0)
    assert job.command() == [
        *(sys.executable, "-m", "alignctl.engines.torchrun", "--nproc-per-node", "2"),
        *("--nnodes", "1", "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port", "0"),
        *("-m", "alignctl.stages.sft", "runs/a b"),
    ]


def test_a_given_port_and_several_nodes_are_spelled_out() -> None:
    job = Job("m", ("f",), nproc=8, nnodes=4, master_addr="gpu0", master_port=1234)
    rendezvous = "--nnodes 4 --node-rank 3 --master-addr gpu0 --master-port 1234"
    assert rendezvous in " ".join(job.on_node(3).command())
    single = Job("m", ("f",), nproc=8, master_port=1234)
    assert "--node-rank 0 --master-addr 127.0.0.1 --master-port 1234" in single.render()


@pytest.mark.parametrize("path", ["runs/x", "a b", "it's", "$HOME", "a;b", ""])
def test_a_shell_reads_the_rendered_command_as_it_is_run(path: str) -> None:
    job = Job("m", (path,), nproc=1, master_port=0, env=(("A", "1 2"), ("B", "x")))
    words = shlex.split(job.render())
    assert words == ["A=1 2", "B=x", *job.command()]


def test_an_unknown_address_is_left_for_the_shell_to_fill_in() -> None:
    job = Job("m", ("f",), nproc=8, nnodes=2, master_addr="$MASTER_ADDR")
    assert '--master-addr "$MASTER_ADDR" --master-port' in job.render()


def test_ranks_share_the_cores_and_what_the_user_set_stays() -> None:
    assert dict(worker_environment(2, {}, nnodes=2)) == {
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    assert "OMP_NUM_THREADS" not in dict(worker_environment(1, {}))
    assert "OMP_NUM_THREADS" not in dict(worker_environment(2, {"OMP_NUM_THREADS": "4"}))


def test_ranks_of_one_node_listen_on_loopback_unless_the_user_chose_an_interface() -> None:
    interfaces = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    found = dict(worker_environment(2, {"GLOO_SOCKET_IFNAME": "eth0"}))
    assert [found.get(name) for name in interfaces] == [None, "lo"]
