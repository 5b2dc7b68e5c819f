"""A Hugging Face folder as transformers itself loads and runs it, on the CPU.

Nothing of ours reads the folder: transformers takes config and weights as they lie there, and its
own forward pass runs. The weights stay in their files, which are mapped; each is float32 only while
its module runs, so what is held is one matrix, whatever the size of the model.

Notation used for tensor shapes:
    - B: documents; T: tokens of the probe; R: vocabulary rows of the probe; H: hidden size
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter
from torch.nn.functional import linear
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging

from alignctl.checkpoints.formats.wrapped_names import PATTERNS
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.config.sections import Head
from alignctl.engines.streamed.forward import Probe, Scratch
from alignctl.errors import UserError
from alignctl.models.score_head import score_head

_CLASSES: Mapping[Head, Any] = {
    "lm": AutoModelForCausalLM,
    "linear": AutoModelForSequenceClassification,
    "pooler": AutoModel,  # it has no class with that head
}
_RENAMED = dict.fromkeys((*PATTERNS, r"^rwtran[a-z]*\."), "") | {r"^v_head\.": "score."}
"""What alignctl takes off names or calls otherwise, as transformers can be told it."""


class FolderForward:
    """One forward pass of a folder's model, and what went from layer to layer in it."""

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, LazyTensor],
        head: Head,
        probe: Probe,
        scratch: Scratch,
        *,
        dtype: torch.dtype,
        numbers: Sequence[int],
        random: Tensor | None,
        is_padded: bool,
    ) -> None:
        """Load the model and run it; under `no_grad`.

        Args:
            folder: The folder.
            tensors: Its full tensors by their Megatron names. Their types tell as which types the
                weights are stored; a head that transformers does not have is made of them.
            head: What is on top.
            probe: What is run.
            scratch: Where matrices are turned into float32.
            dtype: To which weights are rounded before.
            numbers: Layers that run.
            random: What each of them and the final norm get instead of what comes before `[T, H]`;
                None for a whole pass.
            is_padded: Whether the probe's documents are run as a batch with padding on the right,
                as whoever scores texts would.

        Raises:
            UserError: Transformers cannot load the folder, or finds other weights in it.
        """
        self._dtype, self._scratch = dtype, scratch
        self._hidden: dict[int, Tensor] = {}
        types = {tensor.dtype for tensor in tensors.values()}
        stored = types.pop().torch if len(types) == 1 else torch.float32
        module = _load(folder, head, stored, num_labels=None if is_padded else 1)
        base = module.base_model
        layers = base.get_submodule("layers" if hasattr(base, "layers") else "h")
        _keep(base, layers, numbers)
        self._watch(base, layers, numbers, random)
        self._stream(module, base, probe)
        documents = _pad_documents(folder, probe, module.config) if is_padded else _alone(probe)
        scored: list[Tensor] = []
        if head == "linear":
            module.score.register_forward_hook(lambda _, __, found: scored.append(found))
        found = module(**documents, use_cache=False)
        if head == "lm":
            self._output: Tensor = found.logits.squeeze(0)
        elif head == "linear":
            self._output = scored[0][0]
        else:
            top = score_head(head, base.config.hidden_size)
            for name, _ in list(top.named_parameters()):
                part = tensors[f"pooler_head.{name}"].make().to(dtype).float()
                owner, _, attribute = name.rpartition(".")
                setattr(top.get_submodule(owner), attribute, Parameter(part, requires_grad=False))
            self._output = top(found.last_hidden_state).squeeze(0)
        self.pooled: Tensor | None = found.logits.squeeze(1) if is_padded else None

    def embed(self) -> Tensor:
        """Return what enters the first layer `[T, H]`."""
        return self._hidden[-1]

    def layer(self, number: int, _: Tensor) -> Tensor:
        """Return what left a layer, counted from 0: `[T, H]`."""
        return self._hidden[number]

    def output(self, _: Tensor) -> Tensor:
        """Return logits `[T, R]` or scores `[T, 1]`."""
        return self._output

    def _watch(self, base: Any, layers: Any, numbers: Sequence[int], random: Tensor | None) -> None:
        """Keep what leaves the embedding and each layer, and give them other inputs if wanted."""

        def enter(number: int, hidden: Tensor) -> Tensor:
            if number == 0:
                self._hidden[-1] = hidden[0]
            return hidden if random is None else random.expand_as(hidden)

        def leave(number: int, output: Tensor | tuple[Tensor, ...]) -> None:
            self._hidden[number] = (output if isinstance(output, Tensor) else output[0])[0]

        for place, number in enumerate(numbers):
            layers[place].register_forward_pre_hook(
                lambda _, args, place=place: (enter(place, args[0]), *args[1:])
            )
            layers[place].register_forward_hook(
                lambda _, __, output, number=number: leave(number, output)
            )
        if random is not None:
            norm = base.get_submodule("norm" if hasattr(base, "norm") else "ln_f")
            norm.register_forward_pre_hook(lambda _, args: (random.expand_as(args[0]),))

    def _stream(self, module: Any, base: Any, probe: Probe) -> None:
        """Make weights float32 while they are used, and take some rows of tables."""
        embedding, top = base.get_input_embeddings(), module.get_output_embeddings()
        table = embedding.weight.data
        embedding.forward = lambda tokens: table[tokens].to(self._dtype).float()
        if top is not None:
            rows = top.weight.data[probe.rows]
            top.forward = lambda hidden: linear(hidden, rows.to(self._dtype).float())
        for part in module.modules():
            own = dict(part.named_parameters(recurse=False))
            if own and part is not embedding and part is not top:
                part.register_forward_pre_hook(lambda at, _, own=own: self._fill(at, own))
                part.register_forward_hook(lambda at, *_, own=own: _set(at, own))

    def _fill(self, module: Module, own: Mapping[str, Parameter]) -> None:
        matrices = [name for name, each in own.items() if each.ndim == 2]
        rounded = {name: each.data.to(self._dtype) for name, each in own.items()}
        floats = self._scratch.convert_to_float([rounded[name] for name in matrices])
        made = {name: each.float() for name, each in rounded.items() if name not in matrices}
        made |= dict(zip(matrices, floats, strict=True))
        _set(module, {name: Parameter(each, requires_grad=False) for name, each in made.items()})


def _set(module: Module, parameters: Mapping[str, Parameter]) -> None:
    for name, parameter in parameters.items():
        setattr(module, name, parameter)


def _keep(base: Any, layers: Any, numbers: Sequence[int]) -> None:
    """Keep only the layers of some numbers in a model."""
    kept = ModuleList([layers[number] for number in numbers])
    if len(kept) < len(layers):
        base.set_submodule("layers" if hasattr(base, "layers") else "h", kept)


def _load(folder: Path, head: Head, dtype: torch.dtype, *, num_labels: int | None) -> Any:
    """Load transformers' model of a folder, its weights mapped, in evaluation mode."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    labels = {"num_labels": num_labels} if head == "linear" and num_labels else {}
    try:
        module, found = _CLASSES[head].from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            key_mapping=_RENAMED,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **labels,
        )
    except Exception as error:  # whatever its code says of a folder is said of the folder
        raise UserError(
            f"{folder}: transformers cannot load it: {str(error)[:300] or repr(error)}"
        ) from error
    for kind in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, found[kind])):
            raise UserError(
                f"{folder}: transformers does not find {names[0]}, which alignctl has read: "
                f"{len(names)} {kind.replace('_', ' ')}",
                "the names in the folder are not those that transformers gives them",
            )
    return module.eval()


def _alone(probe: Probe) -> dict[str, Tensor]:
    return {"input_ids": probe.token_ids[None]}


def _pad_documents(folder: Path, probe: Probe, config: Any) -> dict[str, Tensor]:
    """Lay out the probe's documents as a batch `[B, T]`, the longest one first.

    They are padded by the folder's tokenizer, or without one with the config's token.
    """
    rows = [probe.token_ids[:end].tolist() for end in probe.ends]
    if (folder / "tokenizer.json").is_file():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            batch = tokenizer.pad(
                {"input_ids": rows}, padding=True, padding_side="right", return_tensors="pt"
            )
        except Exception as error:  # as above
            raise UserError(
                f"{folder}: transformers' tokenizer of it does not pad: {str(error)[:300]!r}"
            ) from error
        return {name: batch[name] for name in ("input_ids", "attention_mask")}
    longest = len(rows[0])
    return {
        "input_ids": torch.tensor([r + [config.pad_token_id] * (longest - len(r)) for r in rows]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows]),
    }
