"""Any image model of timm as an encoder: ViTs, CNNs and hybrids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from timm.data import resolve_data_config
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from lavis_ext.checkpoints.reading import (
    ALLOW_UNEXPECTED_HELP,
    OWN_NAMES,
    PretrainedConfig,
    load_pretrained,
)
from lavis_ext.checkpoints.sources import WEIGHT_FILES
from lavis_ext.checkpoints.weights import LoadReport
from lavis_ext.common.errors import UserError, nearest
from lavis_ext.config.schema import check, option
from lavis_ext.encoders.base import Encoder, EncoderConfig
from lavis_ext.encoders.efficientnet_names import efficientnet_names
from lavis_ext.encoders.pixels import PixelNormalization
from lavis_ext.registry import registry

PRETRAINED = "pretrained"


@dataclass
class TimmConfig(PretrainedConfig, EncoderConfig):
    """Options of ``timm``; ``model`` selects any of its models."""

    encoder: str = option("timm", "The encoder's name in the registry.")
    model: str = option(
        "resnet18", "The model's name in timm, such as vit_base_patch14_dinov2.lvd142m."
    )
    image_size: int = option(224, "Side of the input image in pixels.", at_least=1)
    weights: str | None = option(
        None,
        "pretrained (timm's own, from the hub), a local path, a URL or installed:PACKAGE/PATH, a "
        "file of an installed package; null is random weights",
        files=WEIGHT_FILES,
    )
    output: str = option(
        "tokens",
        "tokens: the model's output before pooling; features: the map of a stage, as by timm's "
        "features_only",
        choices=("tokens", "features"),
    )
    feature_index: int = option(-1, "The stage whose map `output: features` takes; -1 is the last.")
    allow_unexpected: list[str] = option(
        lambda: ["fc.*", "head.*", "classifier.*", "head_dist.*", "norm_head.*"],
        f"{ALLOW_UNEXPECTED_HELP}; by default those of classifiers",
    )

    def file_source(self, field: str) -> str | None:
        """Hub name of timm's weights, for ``weights: pretrained``."""
        if self.weights != PRETRAINED or not timm.is_model(self.model):
            return self.weights
        facts = timm.get_pretrained_cfg(self.model)
        return str(facts.hf_hub_id) if facts and facts.hf_hub_id else PRETRAINED


@registry.register_encoder("timm")
class TimmEncoder(Encoder):
    """A timm model without its classifier. Parameters are under ``network.`` with timm's names.

    Pixels are normalized by the model's settings in timm. Width, grid and prefix are measured on
    an image when the encoder is built.

    Raises UserError for a model that timm doesn't have, an image size that the model doesn't
    support, and weights that can't be found, read or matched.
    """

    Config = TimmConfig
    config: TimmConfig

    def __init__(self, config: TimmConfig, where: str = "timm") -> None:
        super().__init__()
        check(config, where)
        self.config = config
        self._where = where
        self.network = self._build(config, where)
        facts = resolve_data_config({}, model=self.network)
        self.normalize = PixelNormalization(facts["mean"], facts["std"])
        if config.weights != PRETRAINED:
            is_efficientnet = isinstance(self.network, EfficientNet)
            self.load_report = load_pretrained(
                self.network,
                config,
                name=f"timm {config.model}",
                key=f"{where}.weights",
                foreign=efficientnet_names(self.network) if is_efficientnet else OWN_NAMES,
            )
        if hasattr(self.network, "set_input_size"):
            self._set_image_size()
        self._stage = self._chosen_stage() if config.output == "features" else None
        self._width, self._grid, self._prefix = self._measured()

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self._width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the map or of the patches."""
        return self._grid

    @property
    def prefix(self) -> int:
        """Class and register tokens of a ViT; 0 for maps."""
        return self._prefix

    def token_modules(self) -> Sequence[nn.Module]:
        """Normalization and network."""
        return self.normalize, self.network

    def fingerprint_options(self) -> dict[str, Any]:
        """Image size, model and output, which can differ between equal weights."""
        return {
            "image_size": self.config.image_size,
            "model": self.config.model,
            "output": self.config.output,
            "stage": self._stage,
        }

    def compile_parts(self, **options: Any) -> None:
        """Compile the network, with options of ``torch.compile``."""
        self._raw = torch.compile(self._raw, **options)  # type: ignore[method-assign]

    def encode(self, images: Tensor) -> Tensor:
        """Tokens [B, P + h*w, D] of images [B, 3, S, S], uint8 in 0..255 or float in [0, 1].

        Raises UserError for images of another size.
        """
        side = self.config.image_size
        if images.shape[-2:] != (side, side):
            raise UserError(
                f"{self._where}: {self.config.model} is built for {side}x{side} pixels, but got "
                f"images of {images.shape[-2]}x{images.shape[-1]}."
            )
        pixels = self.normalize(images).contiguous(memory_format=torch.channels_last)
        found = self._raw(pixels)
        if found.dim() == 3:
            return found
        return self._channels_first(found).flatten(2).transpose(1, 2)

    def _raw(self, pixels: Tensor) -> Tensor:
        """Output of the network: tokens [B, L, D], or a map [B, D, h, w] or [B, h, w, D]."""
        network: Any = self.network
        if self._stage is None:
            found: Tensor = network.forward_features(pixels)
        else:
            (found,) = network.forward_intermediates(
                pixels, indices=[self._stage], output_fmt="NCHW", intermediates_only=True
            )
        return found

    def _channels_first(self, found: Tensor) -> Tensor:
        channels = getattr(self.network, "num_features", None)
        last = self._stage is None and found.shape[1] != channels and found.shape[-1] == channels
        return found.permute(0, 3, 1, 2) if last else found

    def _build(self, config: TimmConfig, where: str) -> nn.Module:
        if not timm.is_model(config.model):
            raise UserError(
                f"{where}.model is '{config.model}', which timm {timm.__version__} doesn't have."
                f"{nearest(config.model, timm.list_models())}"
            )
        pretrained = config.weights == PRETRAINED
        try:
            network: nn.Module = timm.create_model(
                config.model, pretrained=pretrained, num_classes=0
            )
        except Exception as error:  # errors of the hub and of timm have no common class
            raise UserError(
                f"{where}: timm can't make {config.model} with weights: {config.weights} "
                f"({error!r:.160})."
            ) from error
        # EfficientNet-Lite0 takes half the time in this layout, on a CPU (torch 2.13).
        cast(Any, network).to(memory_format=torch.channels_last)
        if pretrained:
            total = len(network.state_dict())
            self.load_report = LoadReport(f"timm {config.model} from the hub", total, (), (), ())
        return network

    def _set_image_size(self) -> None:
        side = self.config.image_size
        try:
            self.network.set_input_size(img_size=(side, side))  # type: ignore[operator]
        except (AssertionError, ValueError, TypeError, RuntimeError) as error:
            raise self._wrong_size(error) from None

    def _chosen_stage(self) -> int:
        """The index of the stage, from 0. Later stages are removed from the network."""
        network: Any = self.network
        if not hasattr(network, "prune_intermediate_layers"):
            raise UserError(
                f"{self._where}.output: timm has no features of {self.config.model}; use tokens."
            )
        index = self.config.feature_index
        info = getattr(network, "feature_info", [])
        stages = len(info) if len(info) else 1
        if not -stages <= index < stages:
            raise UserError(
                f"{self._where}.feature_index is {index}; {self.config.model} has the stages 0 to "
                f"{stages - 1}, and -1 is the last."
            )
        stage = index % stages
        network.prune_intermediate_layers([stage], prune_norm=True)
        return stage

    @torch.no_grad()
    def _measured(self) -> tuple[int, tuple[int, int], int]:
        """Width, grid and prefix, measured on an image of the configured size."""
        training, side = self.network.training, self.config.image_size
        device = next(self.network.parameters()).device
        self.network.eval()  # else batch norms would update their statistics
        try:
            found = self._raw(torch.zeros(1, 3, side, side, device=device))
        except (AssertionError, ValueError, RuntimeError) as error:
            raise self._wrong_size(error) from None
        finally:
            self.network.train(training)
        if found.dim() == 4:
            _, width, rows, columns = self._channels_first(found).shape
            return width, (rows, columns), 0
        prefix = int(getattr(self.network, "num_prefix_tokens", 0))
        patches = found.shape[1] - prefix
        embedding: Any = getattr(self.network, "patch_embed", None)
        rows, columns = getattr(embedding, "grid_size", None) or (round(patches**0.5),) * 2
        if rows * columns != patches:
            raise UserError(
                f"{self._where}: the {patches} tokens of {self.config.model} are not a grid; use "
                "output: features."
            )
        return found.shape[2], (rows, columns), prefix

    def _wrong_size(self, error: Exception) -> UserError:
        return UserError(
            f"{self._where}.image_size is {self.config.image_size}, which {self.config.model} "
            f"doesn't support ({str(error) or 'no reason is given'!s:.160})."
        )
