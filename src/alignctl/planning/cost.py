"""How long a training step lasts, by a roofline.

    step = (m + (pp - 1) / v) (compute + memory + tensor-parallel traffic + pipeline traffic)
           + gradients and weights between copies + optimizer

m are micro batches of a copy and v virtual stages (1 here). Every term is work over a rate: the
device's, times the share of it that such work is known to reach. What is not hidden behind other
work adds up. docs/scaling.md has the formulas, and compares with published runs.
"""

from dataclasses import dataclass, replace

from alignctl.config.sections import Model
from alignctl.planning.devices import Device
from alignctl.planning.memory import layer_parameters

REACHED = {"matmul bf16": 0.62, "matmul fp8": 0.48, "attention": 0.45, "memory": 0.75, "link": 0.70}
"""Shares of the device's rates that large operators reach."""

GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Job:
    """One optimizer step.

    Attributes:
        model: The architecture.
        tp: Tensor-parallel ranks.
        pp: Pipeline stages.
        dp: Copies of the model.
        micro_batch_tokens: Tokens of a micro batch.
        document_tokens: Tokens that attend to each other.
        micro_batches: Of a copy in the step.
        recompute: "none", "selective" or "full".
        sequence_parallel: Whether activations are cut between tensor-parallel blocks.
        precision: Of matrix products: "bf16" or "fp8".
        virtual_stages: Parts of each pipeline stage (ours have one).
        is_overlapping: Whether traffic is hidden behind compute: half of that inside and between
            stages, nine tenths of that between copies (of ours only the latter, see below).
        is_fused: Whether all elementwise operators are fused (of ours only activations are).
        fuses_activation: Whether those of activations are.
        is_chunked: Whether the backward pass computes logits again.
        hides_gradients: Whether the sum of gradients over copies is behind compute, as above.
        hides_weights: Whether new weights are gathered so.
    """

    model: Model
    tp: int
    pp: int
    dp: int
    micro_batch_tokens: int
    document_tokens: int
    micro_batches: int
    recompute: str = "none"
    sequence_parallel: bool = True
    precision: str = "bf16"
    virtual_stages: int = 1
    is_overlapping: bool = False
    is_fused: bool = False
    fuses_activation: bool = False
    is_chunked: bool = False
    hides_gradients: bool = False
    hides_weights: bool = False

    @property
    def gpus(self) -> int:
        """GPUs of the job."""
        return self.tp * self.pp * self.dp

    @property
    def tokens(self) -> int:
        """Tokens of a step, over all copies."""
        return self.micro_batch_tokens * self.micro_batches * self.dp


@dataclass(frozen=True)
class Cost:
    """Seconds of a step, and where they go.

    Attributes:
        compute: Matrix products and attention, over all micro batches.
        memory: Elementwise operators.
        tensor_parallel: Traffic inside layers.
        pipeline: Traffic between stages.
        bubble: Waiting for the pipeline to fill and to drain.
        data_parallel: Gradients and weights between copies.
        optimizer: Its step.
        tokens_per_second: Of one GPU.
        mfu: Model FLOP/s over the device's peak in bf16.
    """

    compute: float
    memory: float
    tensor_parallel: float
    pipeline: float
    bubble: float
    data_parallel: float
    optimizer: float
    tokens_per_second: float = 0.0
    mfu: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return (
            self.compute
            + self.memory
            + self.tensor_parallel
            + self.pipeline
            + self.bubble
            + self.data_parallel
            + self.optimizer
        )


def flops_per_token(model: Model, document_tokens: int) -> tuple[float, float]:
    """Count floating-point operations of a forward pass: matrix products, and causal attention."""
    weights = model.num_layers * layer_parameters(model, 1)
    products = 2 * (weights + model.padded_vocab_size(1) * model.hidden_size)
    # Scores and weighted values: 2 x 2 L W of every query, W wide over all heads; half is computed.
    attention = 2 * model.num_layers * document_tokens * model.attention_width
    return products, attention


def count_flops(
    model: Model,
    tokens: float,
    attended: float,
    *,
    has_logits: bool,
    is_whole: bool,
    is_learned: bool = True,
) -> float:
    """Count floating-point operations that a model needs: what is recomputed is not.

    Args:
        model: The architecture.
        tokens: Tokens that were computed.
        attended: Tokens that each attends to at most, on average: the length of its document.
        has_logits: Whether it has an output layer, which a model that scores has not.
        is_whole: Whether all weights learn; the gradients of adapters are next to nothing.
        is_learned: Whether there is a backward pass.
    """
    products, attention = flops_per_token(model, 1)
    attention *= attended
    if not has_logits:
        products -= 2 * model.padded_vocab_size(1) * model.hidden_size
    if not is_learned:
        return tokens * (products + attention)
    # A forward pass; backward as much for the inputs, and of products again for the weights.
    return tokens * ((3 if is_whole else 2) * products + 3 * attention)


def estimate(job: Job, device: Device) -> Cost:
    """Estimate the seconds of an optimizer step."""
    per_micro_batch = _micro_batch(job, device)
    compute, memory, inside, between = (job.micro_batches * each for each in per_micro_batch)
    share = (job.pp - 1) / job.virtual_stages / job.micro_batches
    bubble = share * (compute + memory + inside + between)
    copies, optimizer = _once(job, device)
    products, attention = flops_per_token(job.model, job.document_tokens)
    cost = Cost(compute, memory, inside, between, bubble, copies, optimizer)
    rate = job.tokens / cost.seconds / job.gpus
    mfu = 3 * (products + attention) * rate / (device.tflops["bf16"] * 1e12)
    return replace(cost, tokens_per_second=rate, mfu=mfu)


def _micro_batch(job: Job, device: Device) -> tuple[float, float, float, float]:
    """Estimate the seconds of a micro batch on one stage, forward and backward, without waiting."""
    model, tokens = job.model, job.micro_batch_tokens
    products, attention = flops_per_token(model, job.document_tokens)
    passes = 4 if job.recompute == "full" else 3
    again = attention / 3 if job.recompute == "selective" else 0.0
    logits = 2 * model.padded_vocab_size(1) * model.hidden_size if job.is_chunked else 0
    ranks = job.tp * job.pp
    matmul = device.tflops[job.precision] * 1e12 * REACHED[f"matmul {job.precision}"]
    attend = device.tflops["bf16"] * 1e12 * REACHED["attention"]
    compute = passes * tokens * (products / matmul + (attention + again) / attend) / ranks
    compute += tokens * logits / matmul / ranks

    layers = model.num_layers / job.pp
    cut = job.tp if job.sequence_parallel else 1
    ffn = model.ffn_hidden_size / job.tp * (2 if model.traits.is_gated else 1)
    # Bytes written or read by what is no matrix product: norms, residual sums, the activation.
    stream = 16 * model.hidden_size / cut * (1 if job.is_fused else 3)
    activation = 6 * ffn * (1 if job.is_fused or job.fuses_activation else 3)
    touched = 2 * tokens * (stream + activation)
    memory = layers * touched * passes / 3 / (device.hbm_gbs * 1e9 * REACHED["memory"])

    message = 2 * tokens * model.hidden_size
    link = (device.link_gbs if job.tp <= GPUS_PER_NODE else device.network_gbs) * 1e9
    # Forward and backward, an all-gather and a reduce-scatter around both blocks; sequence
    # parallelism gathers the inputs once more.
    rounds = (8 + (2 if job.sequence_parallel else 0)) * passes / 3
    inside = layers * rounds * message * (job.tp - 1) / job.tp / (link * REACHED["link"])
    inside *= 0.5 if job.is_overlapping else 1
    between = 0.0
    if job.pp > 1:
        network = _between_stages(job, device)
        between = 2 * message / cut * job.virtual_stages / (network * REACHED["link"])
        between *= 0.5 if job.is_overlapping else 1
    return compute, memory, inside, between


def _between_stages(job: Job, device: Device) -> float:
    """Return the bytes per second between two stages."""
    is_inside = job.tp * job.pp <= GPUS_PER_NODE
    return (device.link_gbs if is_inside else device.network_gbs) * 1e9


def _once(job: Job, device: Device) -> tuple[float, float]:
    """Estimate the seconds of what a step does once: traffic between copies, and the optimizer."""
    model = job.model
    count = model.num_layers // job.pp * layer_parameters(model, job.tp)
    count += model.padded_vocab_size(job.tp) // job.tp * model.hidden_size
    traffic = 0.0
    if job.dp > 1:
        link = (device.link_gbs if job.gpus <= GPUS_PER_NODE else device.network_gbs) * 1e9
        # Gradients in fp32 are scattered, weights in bf16 gathered.
        numbers = sum(
            size * (0.1 if job.is_overlapping or is_hidden else 1)
            for size, is_hidden in ((4, job.hides_gradients), (2, job.hides_weights))
        )
        traffic = numbers * count * (job.dp - 1) / job.dp / (link * REACHED["link"])
    # Reads gradient, master weight and moments, writes the last three and the weight.
    optimizer = count / job.dp * (4 + 12 + 12 + 2) / (device.hbm_gbs * 1e9 * REACHED["memory"])
    return traffic, optimizer
