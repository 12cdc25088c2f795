"""The model ``lavis_ext`` of lmms-eval, which finds it by the entry point ``lmms_eval.models``.

Any registered model that implements :class:`~lavis_ext.decoders.base.GenerativeModel` runs on the
tasks with one picture and one text (https://github.com/EvolvingLMMs-Lab/lmms-eval, its interface of
"simple" models in docs/guides/model_guide.md). Only lmms-eval imports this module.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from lavis_ext import distributed
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.errors import UserError, nearest
from lavis_ext.config.command_line import model_options
from lavis_ext.config.loader import import_modules, merge
from lavis_ext.config.renamed import rename_old_keys
from lavis_ext.config.typed import look_up
from lavis_ext.decoders.base import GenerativeModel
from lavis_ext.models.base import TrainableModel
from lavis_ext.processors.image import square
from lavis_ext.registry import registry

ARGUMENTS = ("weights", "arch", "model_type", "part", "prompt", "text_processor", "imports")
PREFIXES = ("model.", "decoding.")


def manifest() -> ModelManifest:
    """The payload of the entry point."""
    return ModelManifest("lavis_ext", simple_class_path=f"{__name__}.LavisExt")


class LavisExt(lmms):
    """A generative model of the registry, with trained weights or of a type.

    Its arguments are those of ``--model_args``:

    Args:
        weights: file of trained weights, or their name on the hub.
        arch: name of the model in the registry; that of the weights if they are given.
        model_type: type of the model, without weights.
        part: module of the model that generates in its place, such as its captioner.
        prompt: text in place of the task's.
        text_processor: registered processor of the task's text; by default that of the data that
            the weights were trained with.
        imports: modules to import first, separated by semicolons.
        batch_size: requests generated together, if their pictures have the same size.
        device: ``auto``, ``cpu`` or ``cuda``.
        max_batch_size: not used.
        options: ``model.KEY`` are options of the model, ``decoding.KEY`` those of its ``generate``.

    Raises UserError for unknown arguments, and as loading the model does.
    """

    is_simple = True

    def __init__(
        self,
        weights: str | None = None,
        arch: str | None = None,
        model_type: str | None = None,
        part: str | None = None,
        prompt: str | None = None,
        text_processor: str | None = None,
        imports: str = "",
        batch_size: int | str | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        import_modules(imports.split(";") if imports else [])
        _check_options(options)
        saved = None
        if weights is not None:
            saved = TrainedWeights.load(weights, key="weights", tensors=False)
            arch = saved.config["model"].get("arch")
        if arch is None:
            raise UserError("lavis_ext: give weights, or arch and model_type, in --model_args.")
        self.device = distributed.choose_device(device or "auto")
        self.batch_size = int(batch_size or 1)
        section = {"weights": weights, "model_type": model_type}
        self.model: Any = _built(arch, section, options).to(self.device).eval()
        self._generator: Any = _generator(self.model, arch, part)
        self._side = getattr(getattr(self._generator, "config", None), "image_size", None)
        self._prompt = prompt
        self._process = _text_processor(text_processor, saved)
        named = {k.removeprefix("decoding."): v for k, v in options.items() if k[:6] != "model."}
        self._decoding: Mapping[str, Any] = named

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """A text for each request, cut at the first of the task's ``until``.

        The task's further ``generation_kwargs`` are for chat models; the model's own options decide
        how it decodes. Raises UserError for a request with several pictures, or none.
        """
        texts: list[str] = []
        progress = tqdm(total=len(requests), disable=self.rank != 0, desc="lavis_ext")
        for batch in self._batches(requests):
            images = torch.stack([image for image, _, _ in batch]).to(self.device)
            prompts = [prompt for _, prompt, _ in batch]
            with torch.no_grad():
                generated = self._generator.generate(images, prompts, self._decoding)
            for text, (_, _, until) in zip(generated, batch, strict=True):
                texts.append(_cut(text, until))
            progress.update(len(batch))
        progress.close()
        return texts

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Raises UserError: answers are sampled and have no likelihood."""
        raise _unsupported(requests, "the likelihoods of given answers")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Raises UserError: models answer one text."""
        raise _unsupported(requests, "several rounds")

    def _batches(
        self, requests: Sequence[Instance]
    ) -> Iterator[list[tuple[Tensor, str, Sequence[str]]]]:
        """Image (uint8 [3, H, W]), prompt and ``until`` of up to ``batch_size`` requests.

        Images of a batch have the same size. Pictures are read batch by batch.
        """
        for start in range(0, len(requests), self.batch_size):
            read = map(self._read, requests[start : start + self.batch_size])
            for _, group in groupby(read, key=lambda each: each[0].shape):
                yield [*group]

    def _read(self, request: Instance) -> tuple[Tensor, str, Sequence[str]]:
        text, kwargs, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        if len(visuals) != 1 or not isinstance(visuals[0], Image.Image):
            kinds = ", ".join(type(each).__name__ for each in visuals) or "nothing"
            raise UserError(
                f"lavis_ext reads one picture a question; {task} has {kinds} for its number "
                f"{doc_id} of {split}."
            )
        image = pil_to_tensor(visuals[0].convert("RGB"))
        if self._side is not None:
            image = square(image, self._side)
        until = kwargs.get("until") or []
        until = [until] if isinstance(until, str) else until
        return image, self._text(text) if self._prompt is None else self._prompt, until

    def _text(self, text: str) -> str:
        """The task's question. Instructions for chat models follow it on lines of their own."""
        lines = text.replace("<image>", "").strip().splitlines() or [""]
        return self._process(lines[0]) if self._process else lines[0]


def _check_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if not name.startswith(PREFIXES):
            raise UserError(
                f"--model_args: lavis_ext has no argument '{name}'. There are: "
                f"{', '.join(ARGUMENTS)}, model.KEY and decoding.KEY.{nearest(name, ARGUMENTS)}"
            )


def _built(arch: str, given: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """The model, with the parts that it needs to answer."""
    model_class = look_up("model", arch, "--model_args: arch")
    if not (issubclass(model_class, TrainableModel)):
        raise UserError(f"--model_args: lavis_ext can't build {arch}; it is LAVIS's own model.")
    named = {
        "arch": arch,
        "model_type": given["model_type"],
        model_class.weights_key: given["weights"],
    }
    section = OmegaConf.create({"model": {k: v for k, v in named.items() if v is not None}})
    entries = [f"{key}={value}" for key, value in options.items() if key.startswith("model.")]
    section = merge(section, model_options(entries, model_class.OLD_KEYS)[0])
    defaults = OmegaConf.create({"model": model_class.default_section(section.model)})
    answering = {"answering": True} if model_class.answering_parts else {}
    torch.manual_seed(0)  # untrained parts are the same in every call
    return model_class.from_config(merge(defaults, section).model, **answering)


def _generator(model: Any, arch: str, part: str | None) -> GenerativeModel:
    found = model if part is None else getattr(model, part, None)
    if isinstance(found, GenerativeModel):
        return found
    parts = [name for name, each in model.named_children() if isinstance(each, GenerativeModel)]
    what = arch if part is None else f"part '{part}' of {arch}"
    raise UserError(
        f"--model_args: {what} generates no text. Parts of {arch} that do: "
        f"{', '.join(parts) or 'none'}."
    )


def _text_processor(name: str | None, saved: TrainedWeights | None) -> Any:
    """The named processor, or that of the evaluation of the weights' first data set."""
    if name is not None:
        return look_up("processor", name, "--model_args: text_processor").from_config(None)
    tree = {"datasets": copy.deepcopy(saved.config.get("datasets") or {}) if saved else {}}
    for dataset in tree["datasets"]:
        builder = look_up("builder", dataset, "weights: datasets")
        rename_old_keys(tree, getattr(builder, "OLD_KEYS", ()))
        if config := (tree["datasets"][dataset].get("text_processor") or {}).get("eval"):
            options = OmegaConf.create(config)
            return registry.get_processor_class(options.name).from_config(options)
    return None


def _cut(text: str, until: Sequence[str]) -> str:
    for end in until:
        text = text.partition(end)[0]
    return text.strip()


def _unsupported(requests: Sequence[Instance], what: str) -> UserError:
    tasks = ", ".join(sorted({str(each.task_name) for each in requests}))
    return UserError(
        f"{tasks}: the task asks for {what}, which lavis_ext doesn't have; its models run on tasks "
        "of the type generate_until."
    )
