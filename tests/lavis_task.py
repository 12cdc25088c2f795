"""LAVIS's own tasks, runner and scoring with the model, on questions of mini-GQA.

    python -m tests.lavis_task data/mini_gqa --questions 200

prints the score of LAVIS's ``vqa_reading_comprehension`` beside the one computed here.
"""

import argparse
import importlib
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader

import lavis_ext
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.evaluation.vqa.accuracy import vqa_accuracy
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.processors.image import StreamImagesConfig, StreamImagesProcessor
from lavis_ext.registry import RunnerBase, registry

SPLIT = "val"
QUESTIONS = 24
PEOPLE = 10
OF_THE_MINIATURE = {
    "block_num": 0,
    "num_captions": 5,
    "num_captions_fid": 1,
    "num_patches": 6,
    "cap_min_length": 0,
    "top_k": 0,
    "batch_size_eval": 7,
    "num_workers": 0,
    "distributed": False,
    "device": "cpu",
}


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """LAVIS's task waits for other processes even where there are none."""
    store = dist.FileStore(str(folder / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def of_lavis(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # its patterns aren't raw strings
        return importlib.import_module(f"lavis.{module}")


def processors(monkeypatch: pytest.MonkeyPatch, side: int) -> tuple[Any, Any]:
    """LAVIS's processors of evaluation; OpenCV, which they import, serves only training's."""
    monkeypatch.setitem(sys.modules, "cv2", sys.modules.get("cv2") or ModuleType("cv2"))
    theirs = of_lavis("processors.blip_processors")
    return theirs.BlipImageEvalProcessor(image_size=side), theirs.BlipQuestionProcessor()


def asked(mini_gqa: Path, count: int = QUESTIONS) -> list[dict[str, Any]]:
    """Questions of mini-GQA with answers, numbered, because LAVIS's ids are numbers."""
    questions = json.loads((mini_gqa / "questions" / "testdev_balanced_questions.json").read_text())
    chosen = sorted(questions.items())[:: max(1, len(questions) // count)][:count]
    return [
        {
            "question_id": number,
            "question": each["question"],
            "answer": each["answer"],
            "image": f"{each['imageId']}.jpg",
            "image_id": each["imageId"],
        }
        for number, (_, each) in enumerate(chosen, start=1)
    ]


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def vqa_files(folder: Path, records: list[dict[str, Any]]) -> list[str]:
    """The questions as LAVIS's list, no list of answers, and VQA's questions and annotations."""
    head = dict.fromkeys(("info", "task_type", "data_type", "data_subtype", "license"), "")
    questions = [
        {name: r[name] for name in ("question_id", "image_id", "question")} for r in records
    ]
    annotations = [
        {
            "question_id": record["question_id"],
            "image_id": record["image_id"],
            "question_type": "what",
            "answer_type": "yes/no" if record["answer"] in ("yes", "no") else "other",
            "answers": [
                {"answer_id": person, "answer": record["answer"]} for person in range(PEOPLE)
            ],
        }
        for record in records
    ]
    return [
        write(folder / "list.json", records),
        str(folder / "no_answer_list.json"),
        write(folder / "questions.json", {**head, "questions": questions}),
        write(folder / "annotations.json", {**head, "annotations": annotations}),
    ]


class RunnerWithoutGpu(RunnerBase):
    """LAVIS's, but for two properties that it has only where there is a GPU."""

    @property
    def model(self) -> Any:
        return self._model

    @property
    def dataloaders(self) -> dict[str, Any]:
        """In LAVIS these are wrapped for a CUDA stream of their own."""
        size = self.config.run_cfg.batch_size_eval
        return {
            split: DataLoader(each, batch_size=size, collate_fn=each.collater)
            for split, each in self.datasets.items()
        }


def run_of_lavis(
    config: str, task_class: str, dataset: Any, model: PnpVqaFusion, folder: Path
) -> tuple[dict[str, Any], Path]:
    """Metrics by LAVIS's runner, task and config, and the folder of its results."""
    project = Path(registry.get_path("library_root")) / "projects" / "pnp-vqa" / "eval" / config
    run_cfg = OmegaConf.merge(
        OmegaConf.load(project).run, OF_THE_MINIATURE, {"output_dir": str(folder / "output")}
    )
    cfg = SimpleNamespace(run_cfg=run_cfg)
    task = getattr(of_lavis("tasks.vqa_reading_comprehension"), task_class).setup_task(cfg)
    datasets = {SPLIT: dataset}
    if hasattr(dataset, "coco_fmt_qust_file"):  # as VQATask.build_datasets
        task.ques_files[SPLIT] = dataset.coco_fmt_qust_file
        task.anno_files[SPLIT] = dataset.coco_fmt_anno_file
    task.evaluation = partial(task.evaluation, cuda_enabled=False)  # the runner doesn't say so
    runner = RunnerWithoutGpu(cfg, task, model, datasets, "job")
    found: dict[str, Any] = runner.evaluate(skip_reload=True)[SPLIT]
    return found, folder / "output" / "job" / "result"


def own_answers(
    model: PnpVqaFusion, mini_gqa: Path, records: list[dict[str, Any]], deleted: Any
) -> Any:
    """The model's output for its own batch of the same questions."""
    sizes = {name: stream.image_size for name, stream in model.streams.items()}
    read = StreamImagesProcessor(StreamImagesConfig(sizes=sizes))
    pictures = [
        read(Image.open(mini_gqa / "images" / each["image"]).convert("RGB")) for each in records
    ]
    samples: QuestionBatch = {
        "images": {name: torch.stack([each[name] for each in pictures]) for name in sizes},
        "image_index": torch.arange(len(records)),
        "text_input": [deleted(each["question"]) for each in records],
        "ids": [str(each["question_id"]) for each in records],
    }
    names = ("block_num", "num_captions", "num_captions_fid", "num_patches", "top_k")
    given = {name: OF_THE_MINIATURE[name] for name in names}
    return model.answer(
        samples, **given, max_len=20, min_len=0, cap_min_length=0, cap_max_length=20, top_p=1
    )


def vqa_run(
    model: PnpVqaFusion,
    mini_gqa: Path,
    records: list[dict[str, Any]],
    folder: Path,
    patch: pytest.MonkeyPatch,
) -> tuple[dict[str, Any], Path, Any]:
    """LAVIS's metrics, the folder of its results, and the model's own output for its own batch."""
    pictures, questions = processors(patch, 128)
    dataset = of_lavis("datasets.datasets.coco_vqa_datasets").COCOVQAEvalDataset(
        pictures, questions, str(mini_gqa / "images"), vqa_files(folder, records)
    )
    found, results = run_of_lavis("vqav2_eval.yaml", "VQARCTask", dataset, model, folder)
    return found, results, own_answers(model, mini_gqa, records, questions)


def own_score(answers: list[str], records: list[dict[str, Any]]) -> float:
    """VQA accuracy in percent by this library's metric."""
    right = [
        vqa_accuracy(answer, [record["answer"]] * PEOPLE)
        for answer, record in zip(answers, records, strict=True)
    ]
    return 100 * sum(right) / len(right)


def main() -> None:
    """Run LAVIS's task on the miniature's answers and print both scores."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mini_gqa", type=Path, help="folder of a mini-GQA")
    parser.add_argument("--questions", type=int, default=200, help="of testdev (%(default)s)")
    given = parser.parse_args()
    model = lavis_ext.load_model("pnp_vqa_fusion", "mini", is_eval=True)
    assert isinstance(model, PnpVqaFusion)
    records = asked(given.mini_gqa, given.questions)
    with (
        tempfile.TemporaryDirectory() as name,
        one_process(Path(name)),
        pytest.MonkeyPatch.context() as patch,
    ):
        found, results, own = vqa_run(model, given.mini_gqa, records, Path(name), patch)
        answers = json.loads((results / f"{SPLIT}_vqa_result.json").read_text())
    same = sum(each["answer"] == answer for each, answer in zip(answers, own.answers, strict=True))
    print(
        f"{len(records)} questions: LAVIS scores {found['agg_metrics']:.2f} %, this library "
        f"{own_score(own.answers, records):.2f} %; {same} answers are equal"
    )


if __name__ == "__main__":
    main()
