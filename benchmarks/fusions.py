"""Trained parameters and FLOPs of every fusion, with its adapter, at several sizes.

    python -m benchmarks.fusions

Prints the table of docs/fusions.md. Nothing is computed but shapes.
"""

from dataclasses import dataclass
from typing import Any

import torch

from lavis_ext.common.tables import markdown
from lavis_ext.config.typed import typed
from lavis_ext.encoders.base import Tokens
from lavis_ext.fusion.network import FusionNetwork
from lavis_ext.fusion.stream_adapter import StreamLayout
from lavis_ext.registry import registry
from lavis_ext.runners.flops import counted_flops

BASE = StreamLayout(768, (24, 24), 1)
"""BLIP base at 384 px."""
SIZES = {
    "mini": (StreamLayout(128, (8, 8), 1), StreamLayout(64, (16, 16), 0)),
    "base, 384 px": (BASE, StreamLayout(256, (24, 24), 0)),
    "base, 1024 px": (BASE, StreamLayout(256, (64, 64), 0)),
}
"""Streams of BLIP and EfficientSAM; the pixels are EfficientSAM's."""
RESEARCHERS = {"lf": 6, "t": 2, "n": 12, "heads": 12, "d_ff": 3072}
PAPERS = {"d_model": 512, "lf": 1, "t": 2, "n": 3, "heads": 8, "d_ff": 2048}
MINIS = {"heads": 4, "d_ff": 512}
FUSIONS: dict[str, dict[str, Any]] = {
    "channel_concat": {},
    "local_cross_attention": {},
    "gated_adapter": {},
    "spatial_aggregator": {},
    "expert_attention": {},
    "difnet, the paper's": {"name": "difnet", **PAPERS},
    "difnet, base_esam's": {"name": "difnet", **RESEARCHERS},
    "sum": {},
    "first_only": {},
}


@dataclass(frozen=True)
class Cost:
    """Cost of a fusion."""

    parameters: int
    flops: int
    """For the forward pass of an image."""


def cost(options: dict[str, Any], first: StreamLayout, other: StreamLayout) -> Cost:
    """The cost of the fusion with these options on two streams."""
    schema = registry.get_fusion_class(options["name"]).Config
    config = typed(schema, dict(options), "model.fusion")
    layouts = {"grid": first, "segmentation": other}
    with torch.device("meta"):
        network = FusionNetwork(config, layouts).eval()
        streams = {
            name: Tokens(
                torch.empty(1, size.prefix + size.grid[0] * size.grid[1], size.width),
                size.grid,
                size.prefix,
            )
            for name, size in layouts.items()
        }
    with torch.no_grad(), counted_flops() as counter:
        network(streams)
    return Cost(sum(p.numel() for p in network.parameters()), counter.get_total_flops())


def table() -> str:
    """Rows of fusions, columns of sizes; cells of parameters in millions and GFLOP."""
    rows = []
    for label, options in FUSIONS.items():
        row = [label if "," in label else f"`{label}`"]
        for size, (first, other) in SIZES.items():
            own = {"name": label, **options}
            if own["name"] == "difnet" and size == "mini":
                own = {"name": "difnet", **MINIS}
            found = cost(own, first, other)
            row.append(f"{found.parameters / 1e6:.3g} · {found.flops / 1e9:.3g}")
        rows.append(row)
    return markdown(rows, ["fusion", *SIZES])


if __name__ == "__main__":
    print(table())
