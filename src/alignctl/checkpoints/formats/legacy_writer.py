"""Writes Megatron-LM's legacy checkpoints: the names, shapes and arguments of its own saver.

release/mp_rank_00/model_optim_rng.pt ...    one file a rank, written tensor by tensor
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignctl.checkpoints.formats import legacy_names
from alignctl.checkpoints.formats.rank_files import FILE_NAMES, folder_name
from alignctl.checkpoints.manifest import Recorder
from alignctl.checkpoints.pickles.torch_writer import Writer
from alignctl.checkpoints.tensors.dtypes import BFLOAT16, FLOAT16, Bits
from alignctl.checkpoints.tensors.lazy import Spec
from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.models.families import FAMILIES
from alignctl.models.family import Legacy
from alignctl.models.weight_map import Weight

VERSION = 3.0
"""Of the checkpoint format."""

_EMBEDDING = "embedding.word_embeddings.weight"


@dataclass(frozen=True)
class Cut:
    """A model and the ranks it is cut for.

    Attributes:
        model: The architecture.
        rows: Its weight map.
        tp: Tensor-parallel ranks.
        pp: Pipeline stages, of equally many layers.
    """

    model: Model
    rows: Mapping[str, Weight]
    tp: int
    pp: int

    def names(self) -> list[str]:
        """List the full tensors in the order of writing; a tied embedding can come twice."""
        return [name for stage in range(self.pp) for name in self.list_stage(stage)]

    def list_stage(self, stage: int) -> list[str]:
        """List the tensors that the ranks of a pipeline stage hold."""
        first, last = stage == 0, stage == self.pp - 1
        names = []
        for name, row in self.rows.items():
            if row.place == "layer":
                is_here = _layer(name) // self.layers_per_stage == stage
            else:
                is_here = first if row.place == "embedding" else last
            if is_here:
                names.append(name)
        return [*names, _EMBEDDING] if last and self.has_copy else names

    @property
    def legacy(self) -> Legacy:
        """Megatron-LM's names for the family.

        Raises:
            UserError: It has no such models.
        """
        advice = "leave out --format legacy: Megatron-Core's format holds every model"
        if self.model.rope_scaling:
            raise UserError(
                "Megatron-LM has no scaled rotary positions in checkpoints by rank", advice
            )
        if (found := FAMILIES[self.model.family].legacy) is None:
            raise UserError(
                f"Megatron-LM has no {self.model.traits.title} models in checkpoints by rank",
                advice,
            )
        return found

    @property
    def layers_per_stage(self) -> int:
        """Layers of each pipeline stage."""
        return self.model.num_layers // self.pp

    @property
    def has_copy(self) -> bool:
        """True if the last stage holds a tied embedding once more, for the output of a policy."""
        is_policy = not any(name.startswith(("score.", "pooler_head.")) for name in self.rows)
        return self.model.tie_embeddings and is_policy and self.pp > 1


def write(
    folder: Path,
    cut: Cut,
    specs: Mapping[str, Spec],
    tensors: Iterator[Bits],
    *,
    recorder: Recorder,
) -> None:
    """Write every rank's file; one full tensor is in memory at a time.

    Args:
        folder: An empty folder.
        cut: The ranks.
        specs: Full tensors (vocabulary padding included) by our Megatron names.
        tensors: The tensors themselves, in the order of `cut.names()`.
        recorder: Opens every file.
    """
    for stage in range(cut.pp):
        files = [_file(folder, rank, stage, cut.pp) for rank in range(cut.tp)]
        tree = _tree(cut, specs, stage)
        with ExitStack() as stack:
            writers = [
                stack.enter_context(
                    Writer(stack.enter_context(recorder.open(file)), tree, archive=file.stem)
                )
                for file in files
            ]
            for name in cut.list_stage(stage):
                full = next(tensors)
                for rank, writer in enumerate(writers):
                    writer.write(cut.rows[name].layout.shard(full, rank, cut.tp))


def _file(folder: Path, tp_rank: int, stage: int, pp: int) -> Path:
    file = folder / folder_name(tp_rank, stage, pp) / FILE_NAMES[0]
    file.parent.mkdir()
    return file


def _tree(cut: Cut, specs: Mapping[str, Spec], stage: int) -> dict[str, Any]:
    """Describe the content of a rank's file; the same on all tensor-parallel ranks."""
    content: dict[str, Any] = {}
    is_embedding_due = stage == 0
    for name in cut.list_stage(stage):
        spec = specs[name]
        shard = Spec(cut.rows[name].layout.shard_shape(spec.shape, cut.tp), spec.dtype)
        path = legacy_names.place(_local(name, stage * cut.layers_per_stage), cut.legacy)
        if name == _EMBEDDING and not is_embedding_due:
            path = tuple(legacy_names.FOR_HEAD.split("."))
        _put(content, path, shard)
        is_linear = path[-1].endswith(("dense.weight", "4h.weight", "to_h.weight", "value.weight"))
        if cut.legacy.has_extra_states and (is_linear or name == "output_layer.weight"):
            # Megatron-LM has an entry for the state of 8-bit floats after each linear.
            _put(content, (*path[:-1], path[-1].replace("weight", "_extra_state")), None)
    return {
        "args": arguments(cut, specs[_EMBEDDING]),
        "checkpoint_version": VERSION,
        "iteration": 0,
        "num_floating_point_operations_so_far": 0,
        "model": content,
    }


def _layer(name: str) -> int:
    return int(name.removeprefix("decoder.layers.").partition(".")[0])


def _local(name: str, first_layer: int) -> str:
    """Count the layer in a name from the first one of the stage."""
    if not name.startswith("decoder.layers."):
        return name
    rest = name.removeprefix("decoder.layers.").partition(".")[2]
    return f"decoder.layers.{_layer(name) - first_layer}.{rest}"


def _put(tree: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    *parents, last = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def arguments(cut: Cut, embedding: Spec) -> Namespace:
    """Build the namespace that Megatron-LM reads the architecture from (`--use-checkpoint-args`).

    Args:
        cut: The ranks.
        embedding: The table of the whole model, padding included.
    """
    model, dtype = cut.model, embedding.dtype
    traits = model.traits
    return Namespace(
        num_layers=model.num_layers,
        encoder_num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        kv_channels=model.head_width,
        group_query_attention=model.num_query_groups != model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        seq_length=model.max_position_embeddings,
        encoder_seq_length=model.max_position_embeddings,
        max_position_embeddings=model.max_position_embeddings,
        position_embedding_type="rope" if traits.is_rotary else "alibi",
        add_position_embedding=traits.is_rotary,
        use_rotary_position_embeddings=traits.is_rotary,
        rotary_base=model.rotary_base,
        rotary_percent=1.0,
        rotary_interleaved=False,
        rotary_seq_len_interpolation_factor=None,
        normalization=traits.normalization,
        norm_epsilon=model.norm_epsilon,
        layernorm_epsilon=model.norm_epsilon,
        apply_layernorm_1p=False,
        embed_layernorm=traits.has_embedding_norm,
        swiglu=traits.is_gated,
        add_bias_linear=traits.has_biases,
        add_qkv_bias=traits.has_qkv_bias,
        qk_layernorm=traits.has_qk_norm,
        apply_query_key_layer_scaling=False,
        untie_embeddings_and_output_weights=not model.tie_embeddings,
        attention_dropout=model.attention_dropout,
        hidden_dropout=model.hidden_dropout,
        num_experts=None,
        tokenizer_type=cut.legacy.tokenizer_type,
        orig_vocab_size=model.vocab_size,
        padded_vocab_size=embedding.shape[0],
        make_vocab_size_divisible_by=model.vocab_divisor,
        tensor_model_parallel_size=cut.tp,
        pipeline_model_parallel_size=cut.pp,
        virtual_pipeline_model_parallel_size=None,
        data_parallel_size=1,
        world_size=cut.tp * cut.pp,
        params_dtype=dtype,
        bf16=dtype == BFLOAT16,
        fp16=dtype == FLOAT16,
        iteration=0,
        consumed_train_samples=0,
        consumed_valid_samples=0,
    )
