import re
from collections.abc import Mapping

import pytest

from alignctl.errors import UserError
from alignctl.launch.nodes import NodeFlags, Nodes, first_host, nnodes_in, nodes_from

TUTORIAL = {"WORLD_SIZE": "4", "RANK": "2", "MASTER_ADDR": "dlc-master-0", "MASTER_PORT": "23456"}
SLURM = {"SLURM_NNODES": "4", "SLURM_NODEID": "3", "SLURM_JOB_NODELIST": "gpu[07-09,12],login"}


def test_nothing_said_is_one_node_with_any_free_port() -> None:
    assert nodes_from(NodeFlags(), {}) == Nodes(1, 0, "127.0.0.1", 0)


def test_the_tutorials_variables_mean_nodes() -> None:
    assert nodes_from(NodeFlags(), TUTORIAL) == Nodes(4, 2, "dlc-master-0", 23456)
    assert nnodes_in(TUTORIAL) == 4


def test_the_tutorials_single_node_start_is_understood() -> None:
    environ = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "12000"}
    assert nodes_from(NodeFlags(), environ) == Nodes(1, 0, "127.0.0.1", 12000)


def test_slurms_variables_are_understood() -> None:
    assert nodes_from(NodeFlags(), SLURM) == Nodes(4, 3, "gpu07", 29500)


def test_the_tutorials_variables_win_over_slurms() -> None:
    assert nodes_from(NodeFlags(), SLURM | TUTORIAL) == Nodes(4, 2, "dlc-master-0", 23456)


def test_flags_win_over_all_variables() -> None:
    flags = NodeFlags(nnodes=2, node_rank=1, master_addr="10.0.0.5", master_port=9)
    assert nodes_from(flags, SLURM | TUTORIAL) == Nodes(2, 1, "10.0.0.5", 9)


# By kubeflow/training-operator's setPodEnv: with `nprocPerNode: 8`, WORLD_SIZE counts processes.
OPERATOR = {
    "WORLD_SIZE": "32",
    "RANK": "2",
    "MASTER_ADDR": "job-master-0",
    "MASTER_PORT": "23456",
    "PET_NPROC_PER_NODE": "8",
    "PET_NNODES": "4",
    "PET_NODE_RANK": "2",
}
# By kubeflow/trainer's torch plugin: nothing else.
TRAINER = {
    "PET_NNODES": "4",
    "PET_NPROC_PER_NODE": "auto",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400",
}


def test_kubeflows_operator_says_nodes_beside_a_world_size_of_processes() -> None:
    assert nodes_from(NodeFlags(), OPERATOR) == Nodes(4, 2, "job-master-0", 23456)
    assert nnodes_in(OPERATOR) == 4
    single = OPERATOR | {"WORLD_SIZE": "8", "RANK": "0", "PET_NNODES": "1", "PET_NODE_RANK": "0"}
    assert nodes_from(NodeFlags(), single) == Nodes(1, 0, "127.0.0.1", 23456)


def test_an_operator_that_says_processes_of_a_node_alone_is_understood() -> None:
    """32 processes, 8 on each of 4 nodes; RANK is the pod's. A word says nothing of WORLD_SIZE."""
    said = {
        name: OPERATOR[name] for name in OPERATOR if name not in ("PET_NNODES", "PET_NODE_RANK")
    }
    assert nodes_from(NodeFlags(), said) == Nodes(4, 2, "job-master-0", 23456)
    assert nnodes_in(said | {"PET_NPROC_PER_NODE": "auto"}) == 32


def test_kubeflows_trainer_is_understood() -> None:
    assert nodes_from(NodeFlags(), TRAINER) == Nodes(4, 1, "job-node-0-0.job", 29400)
    assert nodes_from(NodeFlags(), TUTORIAL | TRAINER) == Nodes(4, 1, "job-node-0-0.job", 29400)


def test_an_elastic_job_has_to_have_one_size() -> None:
    assert nnodes_in(TRAINER | {"PET_NNODES": "3:3"}) == 3
    with pytest.raises(UserError, match="PET_NNODES='2:4' should be an integer from 1 on"):
        nodes_from(NodeFlags(), TRAINER | {"PET_NNODES": "2:4"})


def test_more_than_slurm_has_given_are_processes() -> None:
    """Scripts for `srun --ntasks-per-node=8 python` export them; fewer may be a part of the job."""
    exported = {"WORLD_SIZE": "32", "RANK": "24", "MASTER_ADDR": "gpu07", "MASTER_PORT": "1234"}
    assert nodes_from(NodeFlags(), SLURM | exported) == Nodes(4, 3, "gpu07", 1234)
    assert nnodes_in(SLURM | {"WORLD_SIZE": "2"}) == 2


@pytest.mark.parametrize("marker", ["LOCAL_RANK", "TORCHELASTIC_RUN_ID"])
def test_inside_of_a_rank_world_size_means_ranks_and_is_not_read(marker: str) -> None:
    assert nodes_from(NodeFlags(), TUTORIAL | {marker: "0"}) == Nodes(1, 0, "127.0.0.1", 0)
    assert nnodes_in(TUTORIAL | {marker: "0"}) is None


@pytest.mark.parametrize(
    "address",
    [
        "localhost",
        "LOCALHOST",
        "localhost.localdomain",
        "127.0.0.1",
        "127.1.2.3",
        "::1",
        "[::1]",
        "0.0.0.0",
    ],
)
def test_several_nodes_with_a_local_address_are_refused(address: str) -> None:
    flags = NodeFlags(nnodes=2, node_rank=0, master_addr=address)
    with pytest.raises(UserError, match=r"--master-addr .* is this machine itself") as caught:
        nodes_from(flags, {})
    assert "as the other nodes reach it" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        (NodeFlags(nnodes=2, node_rank=0), {}, "2 nodes, but the address of node 0 was not said"),
        (NodeFlags(nnodes=2, master_addr="a"), {}, "2 nodes, but which of them this is"),
        (NodeFlags(nnodes=2, node_rank=2, master_addr="a"), {}, "--node-rank 2 is out of range"),
        (NodeFlags(nnodes=2, node_rank=-1, master_addr="a"), {}, "--node-rank -1 is out of range"),
        (NodeFlags(), TUTORIAL | {"RANK": "4"}, "RANK 4 is out of range: 4 nodes have 0-3"),
        (NodeFlags(node_rank=1), {}, "--node-rank 1 needs more than one node"),
        (NodeFlags(nnodes=0), {}, "--nnodes 0 should be at least 1"),
        (NodeFlags(), {"WORLD_SIZE": "two"}, "WORLD_SIZE='two' should be an integer from 1 on"),
        (NodeFlags(), {"WORLD_SIZE": "0"}, "WORLD_SIZE='0' should be an integer from 1 on"),
        (
            NodeFlags(),
            TUTORIAL | {"MASTER_PORT": "http"},
            "MASTER_PORT='http' should be an integer",
        ),
        (NodeFlags(), TUTORIAL | {"MASTER_PORT": "70000"}, "MASTER_PORT 70000 is out of range"),
        (NodeFlags(master_port=0), {}, "--master-port 0 is out of range"),
        (NodeFlags(), SLURM | {"SLURM_JOB_NODELIST": "]["}, "cannot find the first host"),
    ],
)
def test_what_is_missing_or_out_of_range_is_named(
    flags: NodeFlags, environ: Mapping[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        nodes_from(flags, environ)


def test_the_configuration_and_the_environment_must_agree() -> None:
    with pytest.raises(UserError, match=r"WORLD_SIZE says 4 nodes, but launch\.nnodes is 2"):
        nodes_from(NodeFlags(), TUTORIAL, configured=2)
    processes = r"WORLD_SIZE=4 is 2 nodes \(launch\.nnodes\) x 2 processes"
    with pytest.raises(UserError, match=processes) as caught:
        nodes_from(NodeFlags(), TUTORIAL, configured=2, nproc=2)
    assert caught.value.hint == "give --nnodes 2"
    assert nodes_from(NodeFlags(), TUTORIAL, configured=4).nnodes == 4


def test_a_dry_run_needs_neither_rank_nor_address() -> None:
    nodes = nodes_from(NodeFlags(nnodes=4), {}, configured=4, is_dry_run=True)
    assert nodes == Nodes(4, 0, "$MASTER_ADDR", 29500)


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[03-07,9],login1", "gpu03"),
        ("gpu[9,11-12]", "gpu9"),
        ("rack[1-2]node[04-05]", "rack1node04"),
        ("a-b.example.org,c", "a-b.example.org"),
        ("n[1]-ib", "n1-ib"),
    ],
)
def test_the_first_host_of_a_slurm_node_list(node_list: str, host: str) -> None:
    assert first_host(node_list) == host
