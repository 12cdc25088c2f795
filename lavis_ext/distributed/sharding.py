"""Parameter sharding with FSDP2 (``torch.distributed.fsdp.fully_shard``).

Units, such as a transformer's blocks, are sharded separately, frozen or not: a unit's parameters
are gathered during its forward or backward pass. All other parameters are replicated.
"""

import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lavis_ext.common.errors import UserError, listed
from lavis_ext.common.packed_linears import unpack_linears
from lavis_ext.common.patterns import matching
from lavis_ext.distributed.process_group import greatest, is_main_process, world_size

MIXED = "mixed torch.Tensor and DTensor"
"""Part of torch's message for a sharded parameter that wasn't gathered."""


def shard(model: nn.Module, patterns: Sequence[str], device: torch.device) -> list[str]:
    """Shard the modules that match ``patterns`` in place, moving them to ``device`` one by one.

    Of nested matches the outermost is sharded. Parameters that are also used outside of their unit,
    such as tied ones, stay whole. A unit must be called as a module, ``unit(...)``, or used while
    ``gathered``. Returns the units' names. Called by every process.

    Raises UserError with one process, and for a pattern without matches.
    """
    if world_size() == 1:
        raise UserError(
            "run.sharding shards a model across processes, but there is only one; start several "
            "with torchrun, or set run.sharding=null."
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    units = _units(model, patterns)
    uses: dict[nn.Parameter, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = next((unit for unit in units if name.startswith(f"{unit}.")), "")
        uses.setdefault(parameter, set()).add(owner)
    mesh = init_device_mesh(device.type, (world_size(),))
    for unit in units.values():
        unpack_linears(unit)  # whose copies would be whole
        elsewhere = {p for p in unit.parameters() if len(uses[p]) > 1}
        # Explicit, because FSDP2 by default keeps a root unit gathered after forward.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=elsewhere)
    return list(units)


@contextmanager
def gathered(unit: nn.Module) -> Iterator[None]:
    """Context manager for using parts of a module that may be sharded, without a gradient.

    A sharded unit's parameters are whole inside. Called by every process.
    """
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(unit, FSDPModule):
        yield
        return
    unit.unshard()
    try:
        yield
    finally:
        unit.reshard()


def _units(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    known = {
        name: module
        for name, module in model.named_modules()
        if name and next(module.parameters(), None) is not None
    }
    key = "run.shard_units"
    matched = {name for pattern in patterns for name in matching(pattern, known, "module", key)}
    if not patterns:
        raise UserError(
            "run.sharding: the model declares no shardable units for this run; set name patterns "
            "of modules in run.shard_units, such as those of its blocks."
        )
    found: dict[str, nn.Module] = {}
    for name, module in known.items():
        inside = any(name.startswith(f"{unit}.") for unit in found)
        if inside or name not in matched:
            continue
        if type(module).forward is nn.Module.forward:  # FSDP2 gathers parameters around forward
            children = listed([f"{name}.{child}" for child, _ in module.named_children()])
            raise UserError(
                f"{key}: {name} holds modules without being called as one itself; name those in "
                f"it ({children})."
            )
        found[name] = module
    return found


@contextmanager
def uncalled_units_explained() -> Iterator[None]:
    """Raise UserError where torch finds the parameters of a unit used without calling the unit."""
    try:
        yield
    except RuntimeError as error:
        if MIXED not in str(error):
            raise
        frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
        modules = [type(each).__name__ for each in frames if isinstance(each, nn.Module)]
        place = f" in {modules[-1]}" if modules else ""
        raise UserError(
            f"run.shard_units: parameters of a unit are used{place} without calling the unit as a "
            "module, so they aren't gathered; name modules inside of it, such as its blocks' parts."
        ) from error


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has only its share of ``tensor``."""
    return isinstance(tensor, DTensor)


def local_bytes(tensor: Tensor) -> int:
    """Bytes of ``tensor`` in this process."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()


def parameter_bytes(model: nn.Module, patterns: Sequence[str]) -> list[tuple[int, bool]]:
    """Size in bytes of each parameter in this process, and whether it is trained.

    ``model`` is sharded already, or will be by ``patterns``.
    """
    units = _units(model, patterns) if patterns else {}
    within = {p for unit in units.values() for p in unit.parameters()}
    return [
        (
            local_bytes(p) // (world_size() if p in within and not is_sharded(p) else 1),
            p.requires_grad,
        )
        for p in model.parameters()
    ]


def whole(tensor: Tensor) -> Tensor:
    """``tensor``, a sharded one gathered on the host in the main process.

    The other processes get an empty tensor for a sharded one. Called by every process.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    gathered = cast(DTensor, tensor.detach()).full_tensor()
    return gathered.cpu() if is_main_process() else gathered.new_empty(0, device="cpu")


def sharded_as(like: Tensor, tensor: Tensor) -> Tensor:
    """Shard ``tensor``, which every process has as a whole, if ``like`` is sharded."""
    if not isinstance(like, DTensor):
        return tensor
    mesh = like.device_mesh
    placed = tensor.to(mesh.device_type)
    return distribute_tensor(placed, mesh, like.placements, src_data_rank=None)


def shares(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shard a state dict's tensors to match ``module``'s parameters."""
    own = module.state_dict()
    return {
        name: sharded_as(own[name], tensor)
        if name in own and own[name].shape == tensor.shape
        else tensor
        for name, tensor in state.items()
    }


class GradientAverages:
    """Averages gradients over the processes for models with sharded units.

    FSDP2 averages those of its units; DDP can't wrap a model with such units.
    """

    def __init__(self, model: nn.Module) -> None:
        from torch.distributed.fsdp import FSDPModule

        self._units = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self._whole = [p for p in model.parameters() if p.requires_grad and not is_sharded(p)]

    def set_last(self, last: bool) -> None:
        """Set whether the next backward pass is the step's last, before gradients are averaged."""
        for unit in self._units:
            unit.set_requires_gradient_sync(last)

    def average(self) -> None:
        """Average gradients of unsharded parameters. Called by every process."""
        used = greatest([int(parameter.grad is not None) for parameter in self._whole])
        for parameter in (p for p, anywhere in zip(self._whole, used, strict=True) if anywhere):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()


def clip_gradients(parameters: Iterable[nn.Parameter], most: float | None) -> Tensor:
    """Clip gradients to a norm of ``most``; returns their norm before clipping.

    The norm is over all parameters; for sharded ones over all processes.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    kinds = [[p for p in with_gradient if is_sharded(p) == kind] for kind in (False, True)]
    kinds = [kind for kind in kinds if kind] or [[]]
    norms = [nn.utils.get_total_norm([cast(Tensor, p.grad) for p in kind]) for kind in kinds]
    norms = [cast(DTensor, norm).full_tensor() if is_sharded(norm) else norm for norm in norms]
    total = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if most is not None:
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, most, total)
    return total
