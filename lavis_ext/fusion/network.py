"""The fusion network, trained together with the objectives' heads on frozen encoders."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lavis_ext.checkpoints.reading import PretrainedConfig, load_pretrained
from lavis_ext.checkpoints.weights import LoadReport
from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import check
from lavis_ext.encoders.base import Tokens

# Imported to be registered.
from lavis_ext.fusion import (  # noqa: F401
    baselines,
    channel_concat,
    difnet,
    expert_attention,
    gated_adapter,
    window_fusions,
)
from lavis_ext.fusion.base import Fusion, FusionConfig, GridFusion
from lavis_ext.fusion.stream_adapter import GridAdapter, StreamAdapter, StreamLayout
from lavis_ext.registry import registry


def streams_read(config: FusionConfig, names: list[str], where: str = "model.fusion") -> list[str]:
    """Streams in ``names`` that the fusion reads, in order.

    Raises UserError for a fusion that needs more streams than there are.
    """
    reads = registry.get_fusion_class(config.name).reads
    if reads != "first" and len(names) < 2:
        raise UserError(
            f"{where}.name: the fusion '{config.name}' fuses several streams, but model.streams "
            f"has only {names[0]}; add another, or use first_only."
        )
    return {"all": names, "first": names[:1], "others": names[1:]}[reads]


class FusionNetwork(nn.Module):
    """Adapter, fusion encoder, output projection and gate.

    With the gate, ``fused = first + tanh(gate) * encoder(...)``. The gate has a value per channel
    and starts at 0, so the fused tokens at step 0 are exactly the first stream (after Flamingo,
    Alayrac et al., 2022, section 3.1.2). Without it, the output is the encoder's, as in DIFNet's
    paper.

    Args:
        config: an instance of the named fusion's ``Config``.
        layouts: layout of each stream, in order. Fused tokens have that of the first.
        where: config key, for error messages.
        load_weights: whether to load ``config.weights``; ``load_report`` has the result.

    Raises UserError for an unknown fusion, and for invalid options or weights.
    """

    def __init__(
        self,
        config: FusionConfig,
        layouts: Mapping[str, StreamLayout],
        where: str = "model.fusion",
        *,
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        check(config, where)
        encoder_class: type[Fusion] = registry.get_fusion_class(config.name)
        if not isinstance(config, encoder_class.Config):
            raise TypeError(
                f"{config.name} takes a {encoder_class.Config.__name__}, not {config!r}"
            )
        if config.gate and not encoder_class.gated:
            raise UserError(
                f"{where}.gate is true, but the fusion '{config.name}' has no gate; set it "
                "to false."
            )
        names = list(layouts)
        self.first = names[0]
        self.reads = streams_read(config, names, where)
        width = layouts[self.first].width
        d_model = width if config.d_model is None else config.d_model
        self.config = config
        self.adapter: StreamAdapter | GridAdapter
        if issubclass(encoder_class, GridFusion):
            self.adapter = GridAdapter(layouts, d_model)
            read = [layouts[names[0]]._replace(width=d_model)]
            read += [layouts[name]._replace(prefix=0) for name in names[1:]]
            self.encoder: Fusion = encoder_class(config, d_model, read)
        else:
            self.adapter = StreamAdapter(layouts, self.reads, d_model)
            self.encoder = encoder_class(config, d_model)
        self.load_report: LoadReport | None = None
        if load_weights:
            self.load_report = load_pretrained(
                self.encoder,
                PretrainedConfig(weights=config.weights),
                name=f"fusion {config.name}",
                key=f"{where}.weights",
                foreign=encoder_class.foreign_names,
            )
        self.output_projection = nn.Identity() if d_model == width else nn.Linear(d_model, width)
        self.gate = nn.Parameter(torch.zeros(width)) if config.gate else None

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """Fused tokens [B, P+N, D] in place of the first stream's.

        ``streams`` are encoders' tokens by name. The first has to be there for its layout; others
        may be left out if they aren't in ``reads``.
        """
        encoded = self.output_projection(self.encoder(*self.adapter(streams)))
        if self.gate is None:
            return encoded
        return streams[self.first].values + torch.tanh(self.gate) * encoded
