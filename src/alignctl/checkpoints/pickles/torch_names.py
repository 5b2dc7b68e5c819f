"""What the names in PyTorch's files stand for here."""

import argparse
import types
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignctl.checkpoints.pickles.restricted_pickle import Inert, sizes
from alignctl.checkpoints.tensors.dtypes import DTYPES, DType

_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "ComplexFloat": "complex64",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
"""Types, by the first part of the classes of their storages: `torch.FloatStorage`."""

STORAGE_OF = {dtype: f"{name}Storage" for name, dtype in _STORAGES.items()}
"""The class of a storage, by the name of its type."""


@dataclass(frozen=True)
class Storage:
    """The memory that tensors share.

    Attributes:
        dtype: Of its elements.
        key: Its name in the archive.
        numel: Its elements.
        device: Where it was when it was written, as `cuda:3`.
    """

    dtype: DType
    key: str
    numel: int
    device: str = ""


@dataclass(frozen=True)
class Described:
    """A tensor, before its place is known.

    Attributes:
        storage: Where its elements are.
        offset: The first of them.
        shape: Its shape.
        stride: Elements between neighbours, by dimension.
        dtype: Its type.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: DType


def storage(identity: Any) -> Storage:
    """Return the storage that a persistent id of PyTorch's means.

    Raises:
        ValueError: It means something else.
    """
    kind, dtype, key, device, numel = identity
    if kind != "storage" or not isinstance(dtype, DType) or not isinstance(key, str):
        raise ValueError(f"{kind!r} is no storage")
    (size,) = sizes((numel,))
    return Storage(dtype, key, size, device if isinstance(device, str) else "")


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: object) -> Described:
    return _tensor_of_type(storage, offset, shape, stride, None, None, storage.dtype)


def _tensor_of_type(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Described:
    if not isinstance(storage, Storage) or not isinstance(dtype, DType):
        raise TypeError("a tensor without a storage or type")
    (first,) = sizes((offset,))
    found = Described(storage, first, sizes(shape), sizes(stride), dtype)
    if len(found.shape) != len(found.stride):
        raise ValueError(f"a tensor of shape {found.shape} with strides {found.stride}")
    return found


def _parameter(data: Any, *_: object) -> Any:
    return data


def _subclass(function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    return function(*arguments)


TENSORS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "collections.Counter": Counter,
    "builtins.set": set,
    "builtins.bytearray": Inert,  # the real one would take any number of bytes
    "builtins.complex": Inert,
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": types.SimpleNamespace,
    "torch.Size": tuple,
    "torch.device": Inert,
    "torch.Tensor": Inert,
    "torch.nn.parameter.Parameter": Inert,
    "torch.serialization._get_layout": Inert,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.storage.UntypedStorage": DTYPES["uint8"],
    **{f"torch.{name}Storage": DTYPES[dtype] for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
}
"""The names that a file of `torch.save` needs for tensors and the containers around them."""

KEPT = (argparse.Namespace, types.SimpleNamespace)
"""Plain containers, which are kept as they are."""


class Dropped:
    """Stands for an object of which nothing is kept, whatever it holds."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


DROPPED = ("_io.BytesIO",)
"""What Transformer Engine before 2.0 keeps in `_extra_state`: a pickle of its own, as bytes."""

_PROGRAMS = ("megatron.", "megatron_patch.", "transformer_engine.", "deepspeed.", "chatlearn.")
"""Whatever these programs call their enums and settings, by version, it is read as `Inert`."""

HARMLESS = (
    # The state of random generators.
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.dtypes.UInt32DType",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Int64DType",
    "_codecs.encode",
    # In the args of Megatron-LM.
    "megatron.core.enums.ModelType",
    "megatron.core.enums.Fp8Recipe",
    "megatron.core.enums.Fp4Recipe",
    "megatron.core.rerun_state_machine.RerunDiagnostic",
    "megatron.core.rerun_state_machine.RerunMode",
    "megatron.core.rerun_state_machine.RerunState",
    "megatron.core.transformer.enums.AttnBackend",
    "megatron.core.transformer.enums.AttnMaskType",
    "megatron.core.transformer.enums.AttnType",
    "megatron.core.transformer.enums.LayerType",
    "megatron.core.transformer.enums.ModelType",
    "megatron.model.enums.AttnMaskType",
    "megatron.model.enums.LayerType",
    "megatron.model.enums.ModelType",
    "megatron.model.enums.PositionEmbeddingType",
    "megatron.enums.ModelType",
    "megatron.enums.PositionEmbeddingType",
    # In those of DeepSpeed.
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer",
    "deepspeed.runtime.base_optimizer.DeepSpeedOptimizer",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.utils.tensor_fragment.tensor_fragment",
    "pathlib.PosixPath",
    "datetime.timedelta",
    "signal.Signals",
)
"""Names that such files hold beside tensors; whatever they are, they are read as `Inert`."""


class _Allowed(dict[str, Any]):
    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or str(name).startswith(_PROGRAMS)

    def __missing__(self, _: str) -> type[Inert]:
        return Inert


ALLOWED: Mapping[str, Any] = _Allowed(
    TENSORS | dict.fromkeys(HARMLESS, Inert) | dict.fromkeys(DROPPED, Dropped)
)
"""All that a file of `torch.save` may name. Nothing of it is imported or run, so what the programs
themselves define needs no list."""
