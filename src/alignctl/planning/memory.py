"""Memory of a GPU in closed form, as `--simulate` finds it by running the stage's own step.

Notation:
    - T: tokens of a micro batch; H, F, V: width, inner width, padded vocabulary
    - t: tensor-parallel ranks; s: t where sequence parallelism cuts activations, else 1
    - b: bytes of a number in the precision of the run
"""

from dataclasses import dataclass

from alignctl.config.kernels import Activation, Attention
from alignctl.config.precision import Precision, bytes_of_number
from alignctl.config.sections import Head, Lora, Model, Parallel

GIB = 2**30

RESERVED_GIB = 4.0
"""What is left on each GPU for CUDA's and NCCL's own memory, and for what the allocator loses
between blocks of different sizes."""

_CHUNK = 1 << 24
"""Bytes of logits in float32 at a time: `CHUNK_ELEMENTS` of `models.vocab_parallel`."""


@dataclass(frozen=True)
class Held:
    """What a model keeps on the device from step to step, in bytes.

    Attributes:
        weights: In the precision of the run.
        gradients: Accumulated in float32.
        optimizer: Master weights and two moments, or this rank's share of them.
    """

    weights: int
    gradients: int = 0
    optimizer: int = 0

    @property
    def total(self) -> int:
        """Sum of weights, gradients and optimizer."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Part:
    """A pipeline stage's part of a model.

    Attributes:
        model: The whole.
        parallel: How it is cut.
        stage: Which stage.
        head: What is on top.
        precision: Of the run.
        attention: What computes it; all but plain are one kernel, which copies nothing.
        activation: What computes it.
    """

    model: Model
    parallel: Parallel
    stage: int
    head: Head
    precision: Precision
    attention: Attention = "plain"
    activation: Activation = "plain"

    @property
    def is_first(self) -> bool:
        """True if it has the embedding."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """True if it has the head."""
        return self.stage == self.parallel.pp - 1

    @property
    def layers(self) -> int:
        """Layers of the part."""
        return self.model.num_layers // self.parallel.pp

    @property
    def keeps_copies(self) -> bool:
        """True if a layer keeps what attention copies: it is plain, and not computed again."""
        return self.attention == "plain" and self.parallel.recompute != "selective"

    @property
    def inner_widths(self) -> int:
        """Numbers that a token has in the feed-forward block, in inner widths of this rank.

        The first product, twice as wide with a gate, and what follows from it. Plain operators keep
        three numbers of a gate: itself activated, its other factor and the product; and a biased
        product with or without one keeps as much as the activation's function does.
        """
        if not self.model.traits.is_gated:
            return 2
        return 3 if self.activation == "fused" else 5

    @property
    def bytes_per_number(self) -> int:
        """Bytes of a number of weights and activations, b."""
        return bytes_of_number(self.precision)

    @property
    def sequence_cut(self) -> int:
        """Parts into which the sequence is cut, s."""
        return self.parallel.tp if self.parallel.sequence_parallel else 1

    @property
    def vocabulary(self) -> int:
        """Columns of this rank's logits, V / t."""
        return self.model.padded_vocab_size(self.parallel.tp) // self.parallel.tp

    def logits(self, learned: int) -> int:
        """Count the bytes of the logits that exist at a time, of so many positions that have any.

        They are computed in chunks only where there are more than one of these holds.
        """
        size = self.parallel.logits_chunk_size or learned
        return min(size, learned) * self.vocabulary * self.bytes_per_number

    def parameters(self) -> int:
        """Count the weights on one rank."""
        model, hidden = self.model, self.model.hidden_size
        count = self.layers * layer_parameters(model, self.parallel.tp)
        table = self.vocabulary * hidden
        is_policy = self.head == "lm"
        if self.is_first:
            count += table + (2 * hidden if model.traits.has_embedding_norm else 0)
        if self.is_last:
            count += _norm_parameters(model)
            if is_policy and not (model.tie_embeddings and self.is_first):
                count += table
            elif self.head == "linear":
                count += hidden
            elif self.head == "pooler":
                count += hidden * hidden + 2 * hidden + 1
        return count


def layer_parameters(model: Model, tp: int) -> int:
    """Count the weights of one layer on one of `tp` ranks."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    heads, groups = model.num_attention_heads // tp, model.num_query_groups // tp
    qkv, attention = (heads + 2 * groups) * model.head_width, heads * model.head_width
    traits = model.traits
    matrices = hidden * (qkv + attention + (3 if traits.is_gated else 2) * ffn // tp)
    biases = qkv if traits.has_biases or traits.has_qkv_bias else 0
    biases += hidden + ffn // tp + hidden if traits.has_biases else 0
    norms = 2 * _norm_parameters(model) + (2 * model.head_width if traits.has_qk_norm else 0)
    return matrices + biases + norms


def _norm_parameters(model: Model) -> int:
    return model.hidden_size * (1 if model.traits.normalization == "RMSNorm" else 2)


def held(part: Part, dp: int, *, is_trained: bool, lora: Lora | None = None) -> Held:
    """Count the bytes that a part keeps of a model that is cut into `dp` copies.

    Of each weight b bytes; of each that is trained also 4 of the gradient, and of the optimizer 8
    of moments and, unless weights are float32, 4 of a master copy, which the distributed optimizer
    divides by `dp`.
    """
    count = part.parameters()
    trained = 0 if not is_trained else count if lora is None else adapter_parameters(part, lora)
    count += trained if lora is not None else 0
    state = trained * (8 if part.precision == "fp32" else 12)
    if part.parallel.distributed_optimizer:
        state //= dp
    return Held(count * part.bytes_per_number, 4 * trained, state)


def adapter_parameters(part: Part, lora: Lora) -> int:
    """Count weights of the adapters on one rank, and of the head that is trained with them."""
    model, tp = part.model, part.parallel.tp
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    heads, kv = model.attention_width, model.head_width * model.num_query_groups
    # Rows of A are as wide as the input, columns of B as long as the output; one of them is cut.
    shapes = {
        "q_proj": hidden + heads // tp,
        "k_proj": hidden + kv // tp,
        "v_proj": hidden + kv // tp,
        "query_key_value": hidden + 3 * hidden // tp,
        "o_proj": heads // tp + hidden,
        "dense": hidden // tp + hidden,
        "gate_proj": hidden + ffn // tp,
        "up_proj": hidden + ffn // tp,
        "dense_h_to_4h": hidden + ffn // tp,
        "down_proj": ffn // tp + hidden,
        "dense_4h_to_h": ffn // tp + hidden,
    }
    per_layer = sum(shapes[name] for name in lora.modules(model.family))
    of_head = hidden if part.is_last and part.head == "linear" else 0
    return part.layers * lora.rank * per_layer + of_head


# ---- activations ----


@dataclass(frozen=True)
class Tokens:
    """A micro batch.

    Attributes:
        total: T.
        longest: Tokens of its longest document, which ALiBi's bias is a square of.
        learned: Positions that logits are computed for.
        continued: Tokens of the documents that begin with what they share with others, all of which
            they attend to.
    """

    total: int
    longest: int
    learned: int
    continued: int = 0


def kept_of_shared(part: Part, tokens: Tokens) -> int:
    """Count bytes that a layer keeps of shared beginnings: keys and values for each document.

    None where attention is one kernel, or computed again.
    """
    if not part.keeps_copies:
        return 0
    width = part.model.attention_width // part.parallel.tp
    return tokens.continued * 2 * width * part.bytes_per_number


def kept_by_layer(part: Part, tokens: int) -> int:
    """Count the bytes that a layer keeps of a micro batch for its backward pass.

    Outputs of both norms and both sums of the residual stream (4 T H / s); the outputs of the
    projection to q, k and v; of attention, twice where it is plain; and of the feed-forward block's
    first matrix and all that is made of it. Llama also keeps rotated queries and keys, for plain
    attention both keys and values repeated for every query head, and four tables of cosines and
    sines; norms of queries and keys their inputs.
    """
    model, tp = part.model, part.parallel.tp
    hidden, ffn = model.hidden_size, model.ffn_hidden_size // tp
    width = model.attention_width // tp
    kv = model.head_width * model.num_query_groups // tp
    is_repeated = model.num_query_groups < model.num_attention_heads
    is_selective = part.parallel.recompute == "selective"
    numbers = 4 * hidden // part.sequence_cut + (width + 2 * kv)
    numbers += 2 * width if part.keeps_copies else width
    numbers += part.inner_widths * ffn
    if model.traits.is_rotary:
        numbers += width + 4 * model.head_width
        numbers += 2 * width if part.keeps_copies and is_repeated else kv
    if model.traits.has_qk_norm:
        numbers += width + kv
    normalisers = 0 if is_selective else 4 * model.num_attention_heads // tp
    return tokens * (numbers * part.bytes_per_number + normalisers)


def kept_by_dropout(part: Part, tokens: int, lora: Lora | None) -> int:
    """Count bytes that a layer's adapters keep more where they drop elements of their inputs.

    Each of them its own input without those, and a byte for each element of it; not the input
    itself, which those of one matrix share.
    """
    if lora is None or not lora.dropout:
        return 0
    model, tp = part.model, part.parallel.tp
    cut = {
        "o_proj": model.attention_width // tp,
        "dense": model.hidden_size // tp,
        "down_proj": model.ffn_hidden_size // tp,
        "dense_4h_to_h": model.ffn_hidden_size // tp,
    }
    whole = model.hidden_size // part.sequence_cut
    of_matrix = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    names = lora.modules(model.family)
    shared = {of_matrix.get(name, name) for name in names}
    own, inputs = (sum(cut.get(name, whole) for name in each) for each in (names, shared))
    return tokens * (own * (part.bytes_per_number + 1) - inputs * part.bytes_per_number)


def training_activations(
    part: Part,
    tokens: Tokens,
    in_flight: int,
    *,
    trains_head: bool = True,
    lora: Lora | None = None,
) -> int:
    """Count the bytes beyond what is held, at the peak of a training step.

    Args:
        part: The stage's part of the model.
        tokens: Each micro batch.
        in_flight: Micro batches that are forward and not yet backward: in 1F1B pp - stage.
        trains_head: Whether the output layer has a gradient; beside adapters it has none.
        lora: The adapters, if there are any.
    """
    model, b = part.model, part.bytes_per_number
    hidden, ffn = model.hidden_size, model.ffn_hidden_size // part.parallel.tp
    stream = tokens.total * hidden * b
    layer = kept_by_layer(part, tokens.total) + kept_by_dropout(part, tokens.total, lora)
    layer += kept_of_shared(part, tokens)
    # Under full recomputation a layer keeps its input; one of them at a time is there as a whole.
    is_full = part.parallel.recompute == "full"
    kept = stream // part.sequence_cut if is_full else layer
    total = in_flight * (part.layers * kept + stream // part.sequence_cut)
    gathered = stream if part.sequence_cut > 1 else 0
    gradients = 2 if model.traits.is_gated else 1
    backward = stream + tokens.total * gradients * ffn * b
    backward += layer if is_full else 0
    head = _head_peak(part, tokens, trains_head) if part.is_last else 0
    return total + gathered + _bias(part, tokens) + max(backward, head)


def _head_peak(part: Part, tokens: Tokens, is_trained: bool) -> int:
    """Count bytes of the rows that logits are made of, and of the more of two.

    Logits, their gradient and a part of both in float32; or their gradient and what follows from
    it, that of the rows and that of the output layer. In chunks, that of the rows is there from the
    first one on.
    """
    b, hidden = part.bytes_per_number, part.model.hidden_size
    if part.head != "lm":
        return 0
    rows, logits = tokens.learned * hidden * b, part.logits(tokens.learned)
    is_whole = logits == tokens.learned * part.vocabulary * b
    table = part.vocabulary * hidden * b if is_trained else 0
    of_logits = 2 * logits + 2 * min(_CHUNK, 2 * logits) + (0 if is_whole else rows)
    return rows + max(of_logits, logits + rows + table)


def _bias(part: Part, tokens: Tokens) -> int:
    """Count bytes of what plain attention adds to scores, of a power of two of positions.

    It is there once for all layers: ALiBi's of each head; without it one for all heads, and only
    where documents share something.
    """
    is_alibi = part.model.traits.positions == "alibi"
    if part.attention != "plain" or (not is_alibi and not tokens.continued):
        return 0
    side = 1 << (tokens.longest - 1).bit_length()
    heads = part.model.num_attention_heads // part.parallel.tp if is_alibi else 1
    return heads * side * side * part.bytes_per_number


def forward_activations(part: Part, tokens: Tokens) -> int:
    """Count the bytes beyond what is held, at the peak of a pass without gradients."""
    model, b, tp = part.model, part.bytes_per_number, part.parallel.tp
    stream = tokens.total * model.hidden_size * b
    gathered = stream if part.sequence_cut > 1 else 0
    ffn = tokens.total * model.ffn_hidden_size // tp * b
    work = stream + min(part.inner_widths, 4) * ffn
    head = 0
    if part.is_last and part.head == "lm":
        logits = part.logits(tokens.learned)
        head = tokens.learned * model.hidden_size * b + logits + 2 * min(_CHUNK, 2 * logits)
    return 2 * stream // part.sequence_cut + gathered + _bias(part, tokens) + max(work, head)


def push_work(part: Part) -> int:
    """Count bytes beyond what is held, while weights go to the sampler one tensor at a time.

    The largest tensor as a whole; where it comes from, the shards it is made of as well.
    """
    model, tp, pp = part.model, part.parallel.tp, part.parallel.pp
    table = part.vocabulary * tp * model.hidden_size
    matrix = model.ffn_hidden_size * model.hidden_size * (2 if model.traits.is_gated else 1)
    gathered = 2 if tp > 1 else 0
    has_table = part.is_first or (part.is_last and not model.tie_embeddings)
    numbers = max(table * (gathered if has_table else 0), matrix * gathered)
    if pp > 1:
        numbers = max(numbers, table, matrix)
    return numbers * part.bytes_per_number
