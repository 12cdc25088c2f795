"""lmms-eval finds the model, and its tasks get the answers of this library's pipeline.

Where lmms-eval isn't installed, a stand-in for its three classes stands in its place.
"""

import importlib
import importlib.util
import json
import sys
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import merge
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from tests.conftest import PROJECT

WEIGHTS = "packaged:miniature/fusion_encoder.safetensors"
INSTALLED = importlib.util.find_spec("lmms_eval") is not None
INSTRUCTION = "\nAnswer the question using a single word or phrase."


class Lmms:
    """``lmms_eval.api.model.lmms`` as far as a model sees it."""

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    @property
    def rank(self) -> int:
        return self._rank


@dataclass
class Instance:
    request_type: str
    arguments: tuple[Any, ...]
    idx: int
    metadata: dict[str, Any]

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments

    @property
    def task_name(self) -> str:
        return str(self.metadata["task"])


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None


@pytest.fixture(scope="module")
def adapter() -> Iterator[Any]:
    """The module ``lavis_ext.lmms_eval``."""
    with pytest.MonkeyPatch.context() as patch:
        if not INSTALLED:
            for name, content in {
                "lmms_eval": {},
                "lmms_eval.api": {},
                "lmms_eval.api.model": {"lmms": Lmms},
                "lmms_eval.api.instance": {"Instance": Instance},
                "lmms_eval.models": {},
                "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
            }.items():
                module = types.ModuleType(name)
                module.__dict__.update(content)
                patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, "lavis_ext.lmms_eval", raising=False)
        yield importlib.import_module("lavis_ext.lmms_eval")
        sys.modules.pop("lavis_ext.lmms_eval", None)


@pytest.fixture(scope="module")
def docs(mini_gqa: Path) -> list[dict[str, Any]]:
    """Records of a task: questions about pictures, the second one of another size."""
    questions = json.loads((mini_gqa / "questions" / "testdev_balanced_questions.json").read_text())
    found: list[dict[str, Any]] = []
    for each in list(questions.values())[:4]:
        picture = Image.open(mini_gqa / "images" / f"{each['imageId']}.jpg")
        found.append({"question": each["question"], "images": [picture]})
    found[1]["images"] = [found[1]["images"][0].resize((150, 130))]
    return found


def requests_of(adapter: Any, model: Any, docs: list[dict[str, Any]], **kwargs: Any) -> list[Any]:
    model.task_dict = {"shapes": {"testdev": docs}}
    return [
        adapter.Instance(
            request_type="generate_until",
            arguments=(
                doc["question"] + INSTRUCTION,
                {"max_new_tokens": 16, **kwargs},
                lambda doc: doc["images"],
                number,
                "shapes",
                "testdev",
            ),
            idx=0,
            metadata={"task": "shapes", "doc_id": number, "repeats": 1},
        )
        for number, doc in enumerate(docs)
    ]


@pytest.fixture(scope="module")
def model(adapter: Any) -> Any:
    return adapter.LavisExt(weights=WEIGHTS, batch_size="3", device="cpu", max_batch_size=None)


def test_the_entry_point_leads_to_the_model(adapter: Any) -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lmms_eval.models"]["lavis_ext"].partition(":")
    manifest = getattr(importlib.import_module(module), name)()
    assert manifest.model_id == "lavis_ext"
    module, _, name = manifest.simple_class_path.rpartition(".")
    assert getattr(importlib.import_module(module), name) is adapter.LavisExt


def test_answers_are_the_pipelines_to_the_questions_without_instructions(
    adapter: Any, model: Any, docs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[int, ...], list[str]]] = []
    generate = PnpVqaFusion.generate

    def seen(self: Any, images: Any, prompts: Any, decoding: Any = None) -> list[str]:
        asked.append((tuple(images.shape), prompts))
        return generate(self, images, prompts, decoding)

    monkeypatch.setattr(PnpVqaFusion, "generate", seen)
    found = model.generate_until(requests_of(adapter, model, docs))
    questions = [doc["question"].lower() for doc in docs]
    assert [prompt for _, prompts in asked for prompt in prompts] == questions
    assert len({shape[2:] for shape, _ in asked}) == 2
    given = OmegaConf.create({"arch": "pnp_vqa_fusion", "fusion_weights": WEIGHTS})
    defaults = PnpVqaFusion.default_section(given)
    pipeline = PnpVqaFusion.from_config(merge(defaults, given), answering=True).eval()
    for answer, doc in zip(found, docs, strict=True):
        image = adapter.pil_to_tensor(doc["images"][0].convert("RGB"))[None]
        assert [answer] == pipeline.generate(image, [doc["question"].lower()])
    assert all(found)


def test_an_answer_ends_where_the_task_says(
    adapter: Any, model: Any, docs: list[dict[str, Any]]
) -> None:
    whole = model.generate_until(requests_of(adapter, model, docs[:1]))[0]
    cut = model.generate_until(requests_of(adapter, model, docs[:1], until=[whole[1:]]))[0]
    assert cut == whole[:1]


def test_a_part_captions_the_picture_with_a_prompt_of_its_own(
    adapter: Any, docs: list[dict[str, Any]]
) -> None:
    options = {"prompt": "a picture of ", "decoding.num_beams": 1, "decoding.min_length": 0}
    model = adapter.LavisExt(weights=WEIGHTS, part="captioner", device="cpu", **options)
    found = model.generate_until(requests_of(adapter, model, docs))
    assert len(set(found)) > 1
    assert any("circle" in text or "square" in text or "a " in text for text in found)


def test_options_of_the_model_and_of_its_decoding_reach_it(adapter: Any) -> None:
    options = {"model.captioner.sampling.num_captions": 2, "decoding.num_beams": 2}
    model = adapter.LavisExt(weights=WEIGHTS, device="cpu", **options)
    assert model.model.config.captioner.sampling.num_captions == 2
    assert model._decoding == {"num_beams": 2}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"weight": WEIGHTS}, "no argument 'weight'.*Did you mean 'weights'"),
        ({}, "give weights, or arch"),
        ({"arch": "no_such"}, "No model is registered as 'no_such'"),
        ({"weights": "none.safetensors"}, "there is no file none.safetensors"),
        ({"weights": WEIGHTS, "part": "reader"}, "generates no text. Parts .* captioner"),
        ({"weights": WEIGHTS, "model.no_such": 3}, "no_such"),
    ],
)
def test_wrong_arguments_are_a_sentence(adapter: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        adapter.LavisExt(device="cpu", **arguments)


def test_what_it_does_not_support_is_said(
    adapter: Any, model: Any, docs: list[dict[str, Any]]
) -> None:
    requests = requests_of(adapter, model, docs)
    with pytest.raises(UserError, match="shapes: the task asks for the likelihoods"):
        model.loglikelihood(requests)
    with pytest.raises(UserError, match="shapes: the task asks for several rounds"):
        model.generate_until_multi_round(requests)
    for images, kinds in (([], "nothing"), (docs[0]["images"] * 2, "JpegImageFile, Jpeg")):
        with pytest.raises(UserError, match=f"reads one picture a question; shapes has {kinds}"):
            model.generate_until(requests_of(adapter, model, [{**docs[0], "images": images}]))


@pytest.mark.skipif(not INSTALLED, reason="lmms-eval isn't installed")
def test_lmms_eval_itself_runs_a_task_on_it(
    adapter: Any, docs: list[dict[str, Any]], mini_gqa: Path, tmp_path: Path
) -> None:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    MODEL_REGISTRY_V2.register_manifest(adapter.manifest(), overwrite=True)
    write_task(mini_gqa, tmp_path)
    tasks = TaskManager("ERROR", include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(
        model="lavis_ext",
        model_args=f"weights={WEIGHTS}",
        tasks=["shapes"],
        device="cpu",
        task_manager=tasks,
        bootstrap_iters=0,
    )
    assert results["results"]["shapes"]["exact_match,none"] > 0.4
    assert len(results["samples"]["shapes"]) == 12


def write_task(mini_gqa: Path, folder: Path) -> None:
    """A task of lmms-eval's like its ``gqa``, with twelve questions of mini-GQA."""
    questions = json.loads((mini_gqa / "questions" / "testdev_balanced_questions.json").read_text())
    rows = [
        {"question": each["question"], "answer": each["answer"], "image": each["imageId"]}
        for each in list(questions.values())[:12]
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "shapes.yaml").write_text(f"""
dataset_path: json
dataset_kwargs:
  data_files: {{testdev: {folder / "rows.jsonl"}}}
  cache_dir: {folder / "cache"}
task: shapes
test_split: testdev
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, temperature: 0, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}
lmms_eval_specific_kwargs:
  default: {{pre_prompt: "", post_prompt: {json.dumps(INSTRUCTION)}}}
metadata:
  - version: 0.0
""")
    (folder / "utils.py").write_text(f"""
from pathlib import Path
from omegaconf import OmegaConf
from PIL import Image

IMAGES = Path({str(mini_gqa / "images")!r})

def visual(doc):
    return [Image.open(IMAGES / f"{{doc['image']}}.jpg").convert("RGB")]

def text(doc, lmms_eval_specific_kwargs):
    return doc["question"] + lmms_eval_specific_kwargs["post_prompt"]
""")
