"""`plan`'s step times beside published ones.

    python benchmarks/step_time.py

Published runs use what ours do not: virtual stages, overlapped traffic, fused operators, products
in fp8. The roofline has terms for these, so that its rates can be compared at all.
"""

from dataclasses import dataclass

from alignctl.config.presets.load import load_preset
from alignctl.config.sections import Model
from alignctl.planning.cost import Job, estimate
from alignctl.planning.devices import device

MT_NLG = "arXiv 2201.11990, section 2.4, as cli99/llm-analysis quotes it"
NEMO = "NVIDIA/NeMo, docs/source/performance/performance_summary.md, 24.07"


@dataclass(frozen=True)
class Run:
    """A published run.

    Attributes:
        name: Of the model.
        gpu: Its device.
        job: Its step.
        seconds: What was measured.
        source: Where.
    """

    name: str
    gpu: str
    job: Job
    seconds: float
    source: str


def megatron_turing(dp: int, seconds: float) -> Run:
    """Describe MT-NLG 530B on A100: TP 8, PP 35, batches of 1,920 x 2,048 tokens, recomputed."""
    model = Model(
        family="bloom",  # the layers of a GPT have its sizes
        num_layers=105,
        hidden_size=20480,
        num_attention_heads=128,
        num_query_groups=128,
        ffn_hidden_size=81920,
        vocab_size=50272,
        max_position_embeddings=2048,
        tie_embeddings=True,
    )
    job = Job(
        model,
        8,
        35,
        dp,
        micro_batch_tokens=2048,
        document_tokens=2048,
        micro_batches=1920 // dp,
        recompute="full",
        sequence_parallel=False,
        is_fused=True,
    )
    return Run("MT-NLG 530B", "a100-80g", job, seconds, MT_NLG)


def nemo(
    preset: str,
    gpus: int,
    layout: tuple[int, int, int],
    batch: int,
    rate: float,
    *,
    document_tokens: int = 4096,
) -> Run:
    """Describe a run of NeMo on H100 in fp8, of 4,096 tokens.

    Args:
        preset: The model.
        gpus: How many.
        layout: TP, PP and virtual stages.
        batch: Sequences of a step.
        rate: Tokens per second and GPU, as published.
        document_tokens: Tokens of a document in a packed sequence.
    """
    dp = gpus // layout[0] // layout[1]
    job = Job(
        load_preset(preset).model,
        layout[0],
        layout[1],
        dp,
        micro_batch_tokens=4096,
        document_tokens=document_tokens,
        micro_batches=batch // dp,
        precision="fp8",
        virtual_stages=layout[2],
        is_overlapping=True,
        is_fused=True,
    )
    kind = "pretraining" if document_tokens == 4096 else "SFT"
    return Run(f"{preset} {kind}", "h100", job, job.tokens / gpus / rate, NEMO)


RUNS = [
    megatron_turing(8, 60.1),
    megatron_turing(10, 50.2),
    megatron_turing(12, 44.4),
    nemo("llama2-7b", 8, (1, 1, 1), 128, 16847),
    nemo("llama2-13b", 16, (1, 4, 10), 128, 8646),
    nemo("llama2-70b", 64, (4, 4, 20), 128, 1707),
    # SQuAD's rows packed to 4,096 tokens: about 200 tokens attend to each other.
    nemo("llama2-7b", 8, (1, 1, 1), 32, 17120, document_tokens=200),
    nemo("llama2-13b", 8, (1, 4, 10), 32, 9741, document_tokens=200),
    nemo("llama2-70b", 16, (4, 4, 20), 32, 1833, document_tokens=200),
]


def table() -> str:
    """Format the comparison in Markdown."""
    lines = [
        "| run | GPUs | TP, PP, DP | published s/step | computed | error | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in RUNS:
        job, cost = run.job, estimate(run.job, device(run.gpu))
        error = cost.seconds / run.seconds - 1
        lines.append(
            f"| {run.name} | {job.gpus} {run.gpu} | {job.tp}, {job.pp}, {job.dp} | "
            f"{run.seconds:.2f} | {cost.seconds:.2f} | {error:+.0%} | {run.source} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
