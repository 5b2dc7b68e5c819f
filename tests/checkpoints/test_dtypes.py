import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignctl.checkpoints.tensors.dtypes import (
    DTYPES,
    FLOATS,
    DType,
    bits_of,
    dtype_of,
    tensor_of,
    view_bytes,
)
from alignctl.checkpoints.tensors.lazy import LazyTensor, Spec, check_finite
from alignctl.errors import UserError


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda dtype: dtype.name)
def test_a_type_is_as_wide_as_pytorchs(dtype: DType) -> None:
    assert dtype.itemsize == dtype.torch.itemsize == dtype.bits.itemsize
    assert dtype_of(dtype.torch) == dtype


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
def test_the_precision_and_the_exponent_of_a_float_are_pytorchs(dtype: DType) -> None:
    assert dtype.precision == torch.finfo(dtype.torch).eps
    (infinity,) = bits_of(torch.tensor([torch.inf], dtype=dtype.torch))
    assert infinity == dtype.exponent


@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 0, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda dtype: dtype.name)
def test_bits_and_tensors_are_the_same_memory(dtype: DType, shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape, dtype=dtype.torch)
    bits = bits_of(tensor)
    again = tensor_of(bits, dtype)
    assert (bits.shape, again.shape, again.dtype) == (shape, shape, dtype.torch)
    assert len(view_bytes(bits)) == tensor.numel() * dtype.itemsize
    if tensor.numel():
        assert again.data_ptr() == tensor.data_ptr() == bits.ctypes.data


def test_a_view_is_copied_in_its_own_order() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).t()
    assert torch.equal(tensor_of(bits_of(tensor), dtype_of(tensor.dtype)), tensor)
    assert bytes(view_bytes(bits_of(tensor)[1:])) == tensor[1:].contiguous().numpy().tobytes()


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
@given(data=st.data())
def test_what_is_not_finite_is_counted_as_pytorch_counts_it(
    dtype: DType, data: st.DataObject
) -> None:
    width = 8 * dtype.itemsize
    numbers = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=20))
    if data.draw(st.booleans()):
        numbers.append(dtype.exponent)
    bits = np.array(numbers, dtype.bits)
    broken = int((~torch.isfinite(tensor_of(bits, dtype))).sum())
    if not broken:
        check_finite(bits, dtype, "here")
        return
    with pytest.raises(UserError) as error:
        check_finite(bits, dtype, "here")
    assert error.value.message == f"here: {broken} of {bits.size} values are infinite or NaN"


def test_one_broken_value_among_a_million_is_found_wherever_it_is() -> None:
    for place in (0, 2**17 - 1, 2**17, 999_999):
        tensor = torch.zeros(1_000_000)
        tensor[place] = -torch.inf
        lazy = LazyTensor.holding(tensor, "here")
        with pytest.raises(UserError, match="here: 1 of 1000000 values"):
            lazy.guard().bits()


@given(st.lists(st.integers(1, 4), max_size=4))
def test_steps_are_those_of_a_contiguous_tensor(shape: list[int]) -> None:
    assert Spec.of(torch.empty(shape)).strides == torch.empty(shape).stride()


def test_a_type_is_changed_as_pytorch_rounds() -> None:
    tensor = torch.randn(100)
    for dtype in FLOATS:
        changed = LazyTensor.holding(tensor, "here").to(dtype)
        assert torch.equal(changed.make(), tensor.to(dtype.torch))
        assert changed.dtype == dtype
