"""The registered model ``pnp_vqa_fusion``: visual encoders and the fusion between them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.checkpoints.weights import LoadReport, load_into
from lavis_ext.common.errors import UserError, nearest
from lavis_ext.common.metrics import Metric, prefixed
from lavis_ext.config.loader import load_yaml
from lavis_ext.config.renamed import OldKey, rename_old_keys
from lavis_ext.datasets.gqa.dataset import QuestionBatch
from lavis_ext.datasets.gqa.vocabulary import AnswerVocabulary
from lavis_ext.decoders.base import GenerativeModel, TargetScores
from lavis_ext.encoders.base import Encoder, Tokens
from lavis_ext.fusion.network import FusionNetwork, streams_read
from lavis_ext.fusion.stream_adapter import StreamLayout
from lavis_ext.models.base import (
    StepOutput,
    TrainableModel,
    no_grad_if_constant,
    total_loss,
)
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.objectives.base import FusedBatch, HeadSizes, Objective
from lavis_ext.objectives.question_head import PackedDecoderLayer
from lavis_ext.processors.image import square
from lavis_ext.registry import registry

if TYPE_CHECKING:
    from lavis_ext.encoders.blip.encoder import BlipEncoder
    from lavis_ext.models.pnp_vqa.answering import Located, PipelineOutput

UNREAD = StreamLayout(0, (0, 0), 0)
ANSWERING_PARTS = ("captioner", "reader")
"""Children that training has no use for."""
OLD_PACKAGED = {
    "packaged:encoders/mini_vocabulary.txt": "packaged:miniature/vocabulary.txt",
    "packaged:pipeline/mini_reader_tokenizer.json": "packaged:miniature/reader_tokenizer.json",
}
"""Files of the package that had other places."""


@registry.register_model("pnp_vqa_fusion")
class PnpVqaFusion(TrainableModel, GenerativeModel):
    """Streams of visual tokens, fused, and what makes answers of them.

    Children: ``streams`` (an encoder each), ``fusion`` (FusionNetwork), ``objectives`` by name,
    ``captioner`` (BlipCaptioner) and ``reader`` (FidReader). The last two, and EfficientSAM where
    the fusion doesn't read its stream, are there only in a model that is built for ``answering``.

    Args:
        config: the section ``model``.
        vocabulary: the answers of the training split; needed by the objective ``answer`` unless
            ``fusion_weights`` brings it.
        load_weights: False leaves every part at its random initialisation.
        answering: whether the whole pipeline is wanted, and not the fusion's training alone.
    """

    Config = PnpVqaFusionConfig
    CONFIGS = Path(__file__).parent / "configs"
    weights_key = "fusion_weights"
    default_task = "gqa_fusion"
    weights_name = "fusion_encoder"
    trainable = ("fusion.*", "objectives.*")
    OLD_KEYS = (
        OldKey("model.blip", "model.streams.grid", adding={"model.streams.grid.encoder": "blip"}),
        OldKey(
            "model.efficient_sam",
            "model.streams.segmentation",
            adding={"model.streams.segmentation.encoder": "efficient_sam"},
        ),
        OldKey("model.streams.*.tokenizer", values=OLD_PACKAGED),
        OldKey("model.captioner.tokenizer", values=OLD_PACKAGED),
        OldKey("model.reader.tokenizer", values=OLD_PACKAGED),
    )
    OLD_PARAMETERS = {
        r"^blip\.": "streams.grid.",
        r"^efficient_sam\.": "streams.segmentation.",
        r"^fusion\.heads\.(\w+)\.": r"objectives.\1.head.",
        r"^fusion\.adapter\.grid_projection\.": "fusion.adapter.first_projection.",
        r"^fusion\.adapter\.segmentation_projection\.": "fusion.adapter.projections.segmentation.",
        r"^fusion\.adapter\.segmentation_norm\.": "fusion.adapter.norms.segmentation.",
        r"^fusion\.adapter\.class_partner$": "fusion.adapter.partners.segmentation",
    }
    OLD_TRAINABLE = {
        "fusion.*": ("fusion.*", "objectives.*"),
        "fusion.heads.*": ("objectives.*",),
    }

    def __init__(
        self,
        config: PnpVqaFusionConfig,
        vocabulary: AnswerVocabulary | None = None,
        *,
        load_weights: bool = True,
        answering: bool = False,
    ) -> None:
        super().__init__()
        from lavis_ext.encoders.efficient_sam.encoder import EfficientSamConfig
        from lavis_ext.encoders.streams import build_streams, streams_of

        if answering:
            config.check_answering(load_weights=load_weights)
        self.config = config
        saved = None
        if config.fusion_weights and load_weights:
            saved = TrainedWeights.load(config.fusion_weights, key="model.fusion_weights")
            vocabulary = _vocabulary_of(saved) or vocabulary
        self.vocabulary = vocabulary
        names = list(config.streams)
        self.first = names[0]
        read = {self.first, *streams_read(config.fusion, names)}
        self.segmenting = streams_of(config.streams, EfficientSamConfig)[:1] if answering else []
        wanted = [name for name in names if name in {*read, *self.segmenting}]
        encoders = build_streams(config.streams, wanted, "model.streams", load_weights=load_weights)
        # A property reads them, so that they are encoders to whoever reads the code.
        self._modules["streams"] = nn.ModuleDict(encoders)
        blip = self.blip
        self.fusion = FusionNetwork(
            config.fusion,
            {
                name: StreamLayout.of(encoders[name]) if name in encoders else UNREAD
                for name in names
            },
        )
        sizes = HeadSizes(blip.width, blip.config.text_width, vocabulary)
        self.objectives = nn.ModuleDict(
            {
                name: registry.get_objective_class(name)(options, sizes)
                for name, options in config.objectives.items()
            }
        )
        if answering:
            from lavis_ext.decoders.blip_captioner import BlipCaptioner
            from lavis_ext.decoders.fid_reader import FidReader

            unloaded = {} if load_weights else {"weights": None}
            self.captioner = BlipCaptioner(replace(config.captioner, **unloaded))
            self.reader = FidReader(replace(config.reader, **unloaded))
        self._load_reports = [part.load_report for part in self._parts() if part.load_report]
        if saved is not None:
            name = f"fusion weights from {config.fusion_weights}"
            self._load_reports.append(self.load_trained(saved, name))

    @property
    def streams(self) -> Mapping[str, Encoder]:
        """The encoders that were built, by stream."""
        built: Any = self._modules["streams"]
        return cast(Mapping[str, Encoder], built)

    @property
    def blip(self) -> "BlipEncoder":
        """The first stream's encoder, which reads and matches questions as well."""
        encoder: Any = self.streams[self.first]
        return encoder

    @property
    def load_reports(self) -> list[LoadReport]:
        """What was loaded from where."""
        return self._load_reports

    @property
    def metrics(self) -> list[Metric]:
        """Each objective's loss and its other metrics."""
        return [
            metric
            for name, objective in self._objectives().items()
            for metric in prefixed(name, [Metric("loss", better="min"), *objective.metrics])
        ]

    @classmethod
    def from_pretrained(cls, model_type: str) -> "PnpVqaFusion":
        """The model of a type, ready to answer, as LAVIS's ``load_model`` builds it."""
        section = cls.default_section(OmegaConf.create({"model_type": model_type}))
        model: PnpVqaFusion = cls.from_config(section, answering=True)
        return model

    @classmethod
    def default_section(cls, given: DictConfig) -> DictConfig:
        """What the section ``given`` is merged over.

        That is the default config of its ``model_type`` or, with ``fusion_weights``, the section
        that the weights were trained with. A fusion of another name leaves the default's options
        behind, and objectives that are given replace the default's.
        """
        if given.get("fusion_weights"):
            path = str(given.fusion_weights)
            saved = TrainedWeights.load(path, key="model.fusion_weights", tensors=False)
            tree = {"model": copy.deepcopy(saved.config["model"])}
            rename_old_keys(tree, cls.OLD_KEYS)
            defaults = OmegaConf.create(tree["model"])
            if not OmegaConf.is_dict(defaults.get("fusion")) or "name" not in defaults.fusion:
                raise UserError(f"model.fusion_weights: {path} was trained without a fusion.")
            trained_as = str(defaults.get("model_type"))
            if str(given.get("model_type") or trained_as) != trained_as:
                raise UserError(
                    f"model.model_type is {given.model_type}, but {path} was trained as "
                    f"{trained_as}. Leave model_type out, or name other weights."
                )
        elif given.get("model_type"):
            defaults = load_yaml(Path(cls.default_config_path(str(given.model_type)))).model
        else:
            raise UserError(
                "model: give fusion_weights, a file that training wrote (with --options "
                "model.fusion_weights=PATH), or model_type, one of: "
                f"{', '.join(cls.types())}."
            )
        fusion = given.get("fusion")
        name = fusion.get("name") if OmegaConf.is_dict(fusion) else None
        if name not in (None, defaults.fusion.name):
            # The options of another fusion mean nothing to it, but for leaving out the gate.
            ungated = {"gate": False} if defaults.fusion.get("gate") is False else {}
            defaults.fusion = {"name": name, **ungated}
        if given.get("objectives") is not None:
            defaults.objectives = {}
        assert isinstance(defaults, DictConfig)
        return defaults

    def encode(self, samples: QuestionBatch) -> dict[str, Tokens]:
        """Tokens by stream of the batch's images, each encoded once, or what is stored."""
        encoders = self.streams
        if "tokens" in samples:
            return {
                name: Tokens(stored.restored(), stored.grid, encoders[name].prefix)
                for name, stored in samples["tokens"].items()
            }
        found = {}
        for name, encoder in encoders.items():
            images = samples["images"][name]
            with no_grad_if_constant(encoder.token_modules(), images):
                found[name] = encoder(images)
        return found

    def compile_parts(self, backend: str) -> None:
        """Let ``torch.compile`` make programs of what a batch passes on its way to a loss.

        What depends on strings and on the number of questions stays outside, so that shapes are
        few: images a batch, and the padded lengths of their rows of questions.
        """
        options = {"backend": backend, "dynamic": False}
        for encoder in self.streams.values():
            encoder.compile_parts(**options)
        self.fusion.compile(**options)
        for module in self.objectives.modules():
            if isinstance(module, PackedDecoderLayer):
                module.compile(**options)

    def fuse(self, samples: QuestionBatch) -> Tensor:
        """Fused tokens [I, P+N, D] of the batch's I images."""
        return self._fused(self.encode(samples))

    def _fused(self, tokens: Mapping[str, Tokens]) -> Tensor:
        fused: Tensor = self.fusion(tokens)
        return fused

    def forward(self, samples: QuestionBatch) -> StepOutput:
        """Weighted losses by objective, what is reported of them, and the number of questions."""
        return self._losses(FusedBatch(self.fuse(samples), samples, self.blip))

    @torch.no_grad()
    def evaluate(self, samples: QuestionBatch) -> tuple[dict[str, Tensor], list[str] | None]:
        """The sums that ``forward`` reports and that of its losses, and the answer head's answers.

        The answers [Q] are None for a model without such a head.
        """
        batch = FusedBatch(self.fuse(samples), samples, self.blip)
        answers = None
        for objective in self._objectives().values():
            answers = answers or objective.predict(batch)
        output = self._losses(batch)
        return {"loss": total_loss(output).detach(), **output.report}, answers

    @torch.no_grad()
    def locate(self, samples: QuestionBatch, block_num: int | None = None) -> "Located":
        """Where the batch's questions look: heat maps, points, masks, refined heat maps.

        Needs a model built for answering, and the images. See
        :func:`lavis_ext.models.pnp_vqa.answering.locate`.
        """
        if "images" not in samples:
            raise UserError(
                "Masks and captions are made from images, and the samples hold stored features "
                "alone; leave run.features out."
            )
        from lavis_ext.models.pnp_vqa.answering import LocatingConfig, SegmentedImages, locate

        matching = self.config.question_matching
        if block_num is not None:
            matching = replace(matching, block_num=block_num)
        config = LocatingConfig(matching, self.config.points, self.config.refined_heat)
        tokens = self.encode(samples)
        (name,) = self.segmenting
        height, width = samples["images"][name].shape[-2:]
        segmented = SegmentedImages(tokens[name].values, tokens[name].grid, (height, width))
        sam: Any = self.streams[name]
        return locate(self.blip, sam, self._fused(tokens), segmented, samples, config)

    @torch.no_grad()
    def answer(self, samples: QuestionBatch, **given: Any) -> "PipelineOutput":
        """Answers of the whole pipeline, with everything that led to them.

        Needs a model built for answering. ``given`` are options of ``predict_answers``.
        """
        from lavis_ext.models.pnp_vqa.answering import answer, overridden

        sampling, reading = overridden(self.config.captioner.sampling, self.config.reader, given)
        return answer(
            self.locate(samples, given.get("block_num")),
            samples["images"][self.first],
            self.captioner,
            self.reader,
            samples,
            sampling,
            reading,
        )

    def generate(
        self, images: Tensor, prompts: Sequence[str], decoding: Mapping[str, Any] | None = None
    ) -> list[str]:
        """The pipeline's answer to each image's question.

        Images are resized to those of the streams. ``decoding`` are options of
        ``predict_answers``, by its names. A question's text is its id too, on which what is drawn
        depends.
        """
        given = dict(decoding or {})
        for name in given:
            if name not in DECODING:
                raise UserError(
                    f"decoding: there is no option '{name}'. There are: {', '.join(DECODING)}."
                    f"{nearest(name, DECODING)}"
                )
        samples: QuestionBatch = {
            "images": {
                name: square(images, encoder.image_size) for name, encoder in self.streams.items()
            },
            "image_index": torch.arange(len(images)),
            "text_input": list(prompts),
            "ids": list(prompts),
        }
        return self.answer(samples, **given).answers

    def score_targets(
        self, images: Tensor, prompts: Sequence[str], targets: Sequence[str]
    ) -> TargetScores:
        """Raises UserError: nothing differentiable leads from an image to an answer."""
        raise UserError(
            "pnp_vqa_fusion has captions between image and answer, which are texts that are drawn: "
            "no gradient passes them. Score captions with the model's `captioner`."
        )

    def predict_answers(
        self,
        samples: QuestionBatch,
        num_beams: int | None = None,
        inference_method: str = "generate",
        max_len: int | None = None,
        min_len: int | None = None,
        internal_bsz_fid: int | None = None,
        num_captions: int | None = None,
        num_captions_fid: int | None = None,
        cap_max_length: int | None = None,
        cap_min_length: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        num_patches: int | None = None,
        block_num: int | None = None,
    ) -> tuple[list[str], list[list[str]], torch.Tensor]:
        """Answers as LAVIS's PNP-VQA gives them, with its arguments in its order.

        Arguments that are None are the config's: ``model.reader`` (beams, lengths of answers,
        captions a passage, and ``internal_bsz_fid``, passages encoded together),
        ``model.captioner.sampling`` and ``model.question_matching``.

        Returns:
            The answers [Q], the captions of each question, and the refined heat maps [Q, N] that
            patches were drawn by, where LAVIS returns the raw ones.

        Raises:
            UserError: for an ``inference_method`` other than ``generate``, and as the steps do.
        """
        if inference_method != "generate":
            raise UserError(
                f"inference_method is '{inference_method}'; PNP-VQA's reader has 'generate' alone."
            )
        output = self.answer(
            samples,
            num_beams=num_beams,
            max_len=max_len,
            min_len=min_len,
            internal_bsz_fid=internal_bsz_fid,
            num_captions=num_captions,
            num_captions_fid=num_captions_fid,
            cap_max_length=cap_max_length,
            cap_min_length=cap_min_length,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            num_patches=num_patches,
            block_num=block_num,
        )
        return output.answers, output.captions, output.patch_heat

    def _losses(self, batch: FusedBatch) -> StepOutput:
        sums: dict[str, Tensor] = {}
        report: dict[str, Tensor] = {}
        for name, objective in self._objectives().items():
            losses, metrics = objective(batch)
            total = losses.float().sum()
            sums[name] = objective.config.weight * total
            report[f"{name}_loss"] = total.detach()
            report |= {f"{name}_{metric}": value for metric, value in metrics.items()}
        return StepOutput(sums, report, len(batch))

    def with_examples(self, samples: QuestionBatch, times: int) -> QuestionBatch:
        """The batch with each question so many times, in other words: equal texts are read once."""
        return {
            **samples,
            "image_index": samples["image_index"].repeat(times),
            "text_input": _reworded(samples["text_input"], times),
            "mismatched_input": _reworded(samples["mismatched_input"], times),
            "answer": samples["answer"] * times,
            "ids": samples["ids"] * times,
            "global_size": times * samples["global_size"],
        }

    def may_leave_unused(self, trained: Mapping[str, Tensor]) -> bool:
        """Fusion and objectives use all that they have; BLIP has contrastive projections."""
        return not all(name.startswith(("fusion.", "objectives.")) for name in trained)

    def exported_state(self) -> dict[str, Tensor]:
        """What a file of fusion weights holds, by parameter name.

        Fusion and objectives; every other parameter that is trained; and encoders that were made
        without pretrained weights, since no other place has theirs.
        """
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        elsewhere = tuple(self._parts_with_weights())
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name in trained or not name.startswith(elsewhere)
        }

    def exported_facts(self) -> dict[str, Any]:
        """The vocabulary, as a file of fusion weights keeps it."""
        return {"vocabulary": self.vocabulary.as_dict() if self.vocabulary else None}

    def load_trained(self, weights: TrainedWeights, name: str) -> LoadReport:
        """Take fusion weights; parts that have files of their own may be missing."""
        return load_into(
            self,
            weights.renamed(self.OLD_PARAMETERS),
            name=name,
            allow_missing=[f"{part}*" for part in self._parts_with_weights()],
        )

    def _parts_with_weights(self) -> list[str]:
        """Name prefixes of the parts whose weights are in files of their own."""
        loaded = [
            f"streams.{name}"
            for name, config in self.config.streams.items()
            if config.weights is not None
        ]
        return [f"{part}." for part in (*loaded, *ANSWERING_PARTS)]

    def _parts(self) -> list[Any]:
        answering = (getattr(self, name, None) for name in ANSWERING_PARTS)
        return [*self.streams.values(), *(part for part in answering if part is not None)]

    def _objectives(self) -> dict[str, Objective]:
        return dict(self.objectives.items())  # type: ignore[arg-type]


DECODING = (
    "num_beams",
    "max_len",
    "min_len",
    "internal_bsz_fid",
    "num_captions",
    "num_captions_fid",
    "cap_max_length",
    "cap_min_length",
    "top_k",
    "top_p",
    "repetition_penalty",
    "num_patches",
    "block_num",
)
"""Options of ``predict_answers`` that decide what is answered."""


def _vocabulary_of(weights: TrainedWeights) -> AnswerVocabulary | None:
    """The vocabulary that a file of fusion weights brings. Raises UserError for a damaged one."""
    given = weights.facts.get("vocabulary")
    if given is None:
        return None
    try:
        return AnswerVocabulary.from_dict(given)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"model.fusion_weights: its vocabulary is damaged ({error!r:.120}); copy or train the "
            "file again."
        ) from None


def _reworded(texts: list[Any], times: int) -> list[Any]:
    """The texts, then the texts with their words moved on by one, by two, and so on."""
    words = [text.split() for text in texts]
    return [" ".join(each[n:] + each[:n]) for n in range(times) for each in words]
