"""Any image model of timm as an encoder: ViTs, CNNs, and what lies between."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from lavis_ext.checkpoints.sources import resolve
from lavis_ext.checkpoints.weights import LoadReport, load_into, read_state_dict
from lavis_ext.common.errors import UserError, nearest
from lavis_ext.config.schema import check, option
from lavis_ext.encoders.base import Encoder, EncoderConfig
from lavis_ext.encoders.pixels import PixelNormalisation
from lavis_ext.registry import registry

PRETRAINED = "pretrained"


@dataclass
class TimmConfig(EncoderConfig):
    """A model of timm by its name, such as ``resnet18`` or ``vit_base_patch14_dinov2.lvd142m``."""

    encoder: str = option("timm", "The encoder's name in the registry.")
    model: str = option("resnet18", "The model's name in timm.")
    image_size: int = option(224, "Side of the input image in pixels.", at_least=1)
    weights: str | None = option(
        None, "pretrained (timm's own, from the hub), a local path or a URL; null is random weights"
    )
    output: str = option(
        "tokens",
        "tokens: what the model gives before it is pooled; features: the map of a stage, as of "
        "timm's features_only",
        choices=("tokens", "features"),
    )
    feature_index: int = option(-1, "The stage whose map `output: features` takes; -1 is the last.")
    allow_missing: list[str] = option(list, "patterns of names the checkpoint may lack")
    allow_unexpected: list[str] = option(
        lambda: ["fc.*", "head.*", "classifier.*", "head_dist.*", "norm_head.*"],
        "patterns of names the checkpoint may have in excess; by default those of classifiers",
    )


@registry.register_encoder("timm")
class TimmEncoder(Encoder):
    """A timm model without its classifier. Parameters are under ``network.``, by timm's names.

    Pixels are normalized as timm says of the model. Width, grid and prefix are what one image gives
    when the encoder is built.

    Raises UserError for a model that timm doesn't have, an image size that it can't take, and
    weights that can't be had, read or matched.
    """

    Config = TimmConfig
    config: TimmConfig

    def __init__(self, config: TimmConfig, where: str = "timm") -> None:
        super().__init__()
        check(config, where)
        self.config = config
        self._where = where
        self.network = self._made(config, where)
        facts = resolve_data_config({}, model=self.network)
        self.normalise = PixelNormalisation(facts["mean"], facts["std"])
        if config.weights not in (None, PRETRAINED):
            self.load_report = load_into(
                self.network,
                read_state_dict(resolve(str(config.weights), key=f"{where}.weights")),
                name=f"timm {config.model} from {config.weights}",
                allow_missing=config.allow_missing,
                allow_unexpected=config.allow_unexpected,
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
        """Rows and columns of the map."""
        return self._grid

    @property
    def prefix(self) -> int:
        """Class and register tokens of a ViT; 0 for maps."""
        return self._prefix

    def token_modules(self) -> Sequence[nn.Module]:
        """Normalization and network."""
        return self.normalise, self.network

    def fingerprint_options(self) -> dict[str, Any]:
        """The model's name, which says what no shape shows, and what is taken of it."""
        return {
            "image_size": self.config.image_size,
            "model": self.config.model,
            "output": self.config.output,
            "stage": self._stage,
        }

    def compile_parts(self, **options: Any) -> None:
        """Compile what images pass, with options of ``torch.compile``."""
        self._raw = torch.compile(self._raw, **options)  # type: ignore[method-assign]

    def encode(self, images: Tensor) -> Tensor:
        """Tokens [B, P + h*w, D] of images [B, 3, S, S], uint8 in 0..255 or float in [0, 1].

        Raises UserError for images of another size.
        """
        side = self.config.image_size
        if images.shape[-2:] != (side, side):
            raise UserError(
                f"{self._where}: {self.config.model} got images of {images.shape[-2]}x"
                f"{images.shape[-1]} pixels and is built for {side}x{side}."
            )
        found = self._raw(self.normalise(images))
        if found.dim() == 3:
            return found
        return self._channels_first(found).flatten(2).transpose(1, 2)

    def _raw(self, pixels: Tensor) -> Tensor:
        """What the network gives: tokens [B, L, D], or a map [B, D, h, w] or [B, h, w, D]."""
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

    def _made(self, config: TimmConfig, where: str) -> nn.Module:
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
        except Exception as error:  # what hub and timm raise has no common class
            raise UserError(
                f"{where}: timm can't make {config.model} with weights: {config.weights} "
                f"({error!r:.160})."
            ) from error
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
        """The stage by its number from 0; what comes after it is left out of the network."""
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
        """Width, grid and prefix of an image of the configured size."""
        training, side = self.network.training, self.config.image_size
        device = next(self.network.parameters()).device
        self.network.eval()  # or batch norms would take notice of it
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
                f"{self._where}: the {patches} tokens of {self.config.model} lie on no grid; "
                "use output: features."
            )
        return found.shape[2], (rows, columns), prefix

    def _wrong_size(self, error: Exception) -> UserError:
        return UserError(
            f"{self._where}.image_size is {self.config.image_size}, which {self.config.model} "
            f"can't take ({str(error) or 'no reason is given'!s:.160})."
        )
