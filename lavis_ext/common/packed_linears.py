"""Linear layers whose weights are kept in the layout of a CPU's kernels, for inference.

torch multiplies by a matrix in its own layout, and the kernel rearranges it in every call. With
few rows, as in generating a word of each caption, that takes as long as the product. Here the
rearranged copy is kept: a fifth less time for hundreds of rows, and half of it for a vocabulary.
In int8, the product itself takes a third of the time.
"""

from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from lavis_ext.common.errors import UserError

SMALLEST = 512 * 512
"""Numbers of the smallest weight that is packed; below, calling the kernel takes longer."""

LARGEST = 127
"""Largest magnitude in int8."""
ZERO = 128
"""What int8's 0 is in uint8, which oneDNN's kernel takes for its input."""
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


class PackedLinear(nn.Linear):
    """``nn.Linear`` with a packed copy of its weight.

    The copy, as large as the weight, is made in the first call and again after the weight was
    changed in place, which isn't noticed for changes of ``weight.data``. It serves calls without
    gradients on a CPU, in float32 or, under autocast, in bfloat16; all others are ``nn.Linear``'s.
    """

    _packed: dict[torch.dtype, tuple[Any, int, int, Tensor]] | None = None
    """By data type: the weight (a reference), its address and version, and the packed copy."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``, up to rounding."""
        dtype = self._packed_dtype(input)
        if dtype is None:
            return super().forward(input)
        bias = None if self.bias is None else self.bias.to(dtype)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            input.to(dtype), self._weight_in(dtype), bias, "none", [], ""
        )
        return found

    def _packed_dtype(self, input: Tensor) -> torch.dtype | None:
        """The data type to compute in, or None for ``nn.Linear``'s own way."""
        weight = self.weight
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or weight.device.type != "cpu"
            or weight.dtype != torch.float32
            or type(weight) is not nn.Parameter  # such as a DTensor
            or weight.is_inference()
            or not input.numel()
        ):
            return None
        if not torch.is_autocast_enabled("cpu"):
            return torch.float32 if input.dtype == torch.float32 else None
        narrow = torch.get_autocast_dtype("cpu")
        supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return narrow if narrow == torch.bfloat16 and supported else None

    def _weight_in(self, dtype: torch.dtype) -> Any:
        weight, packed = self.weight, self._packed or {}
        of, address, version, copy = packed.get(dtype, (None, 0, 0, weight))
        now = (weight.data_ptr(), weight._version)
        if of is None or of() is not weight or (address, version) != now:
            copy = self._pack(weight.detach(), dtype)
            self._packed = {**packed, dtype: (ref(weight), *now, copy)}
        return copy

    @staticmethod
    def _pack(weight: Tensor, dtype: torch.dtype) -> Any:
        return torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))

    def __getstate__(self) -> dict[str, Any]:
        """The state without the packed copy, which can be neither copied nor saved."""
        return {name: each for name, each in self.__dict__.items() if name != "_packed"}


class Int8Linear(PackedLinear):
    """``nn.Linear`` in int8: weights with a scale per output, inputs with a scale per row.

    Calls that a packed copy doesn't serve, such as those with gradients, are ``nn.Linear``'s. The
    scale of an input is its row's largest magnitude and sums are integers, so that a row's result
    depends on no other row. Weights are rounded to 1/127 of an output's largest, inputs to 1/127
    of a row's: about 1 % of a result. ``torch.compile`` leaves the layers out, since it would
    compile ``nn.Linear``'s way.
    """

    @torch.compiler.disable
    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``, up to the rounding to int8."""
        dtype = self._packed_dtype(input)
        if dtype is None:
            return nn.Linear.forward(self, input)
        rows = input.reshape(-1, self.in_features).float()
        # Two reductions, because those of aminmax and of the infinity norm take 20 times as long.
        scale = torch.maximum(rows.amax(dim=1), rows.amin(dim=1).neg_())[:, None]
        scale = scale.clamp_min_(SMALLEST_SCALE)
        # Converted by int8, because conversion to uint8 isn't vectorized.
        signed = (rows * (LARGEST / scale)).round_().to(torch.int8)
        unsigned = signed.view(torch.uint8).bitwise_xor_(ZERO)
        weight, weight_scales, weight_zeros = self._weight_in(torch.int8)
        product = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1 / LARGEST, ZERO, weight, weight_scales, weight_zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        if self.bias is None:
            product.mul_(scale)
        else:
            product = torch.addcmul(self.bias, product, scale)
        return product.unflatten(0, input.shape[:-1]).to(dtype)

    @staticmethod
    def _pack(weight: Tensor, dtype: torch.dtype) -> Any:
        scales = weight.abs().amax(dim=1).clamp_min_(SMALLEST_SCALE) / LARGEST
        quantized = (weight / scales[:, None]).round_().to(dtype)
        packed = torch.ops.onednn.qlinear_prepack(quantized, None)
        return packed, scales, torch.zeros(len(scales), dtype=torch.int32)


def int8_supported() -> bool:
    """Whether ``quantize_linears`` works here.

    Without VNNI, oneDNN adds pairs of products in 16 bits, which overflow.
    """
    return torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()


def quantize_linears(model: nn.Module) -> None:
    """Make the ``nn.Linear`` layers of ``model`` compute in int8 on a CPU, in place.

    Parameters and their names stay. Raises UserError if the CPU isn't made for int8.
    """
    if not int8_supported():
        raise UserError(
            "int8 needs a CPU with VNNI instructions and a torch with oneDNN. Use float32 "
            "(quantization null) or, where the CPU has it, bfloat16 (run.amp=true)."
        )
    int8: Any = Int8Linear
    for module in model.modules():
        if type(module) in (nn.Linear, PackedLinear):
            module.__class__ = int8


def pack_linears(model: nn.Module) -> None:
    """Make the large ``nn.Linear`` layers of ``model`` pack their weights, in place.

    Parameters and their names stay. Without oneDNN nothing happens.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.numel() >= SMALLEST:
            module.__class__ = PackedLinear


def unpack_linears(model: nn.Module) -> None:
    """Undo ``pack_linears`` and ``quantize_linears``, in place."""
    unpacked: Any = nn.Linear
    for module in model.modules():
        if type(module) in (PackedLinear, Int8Linear):
            module.__class__ = unpacked
            module.__dict__.pop("_packed", None)
