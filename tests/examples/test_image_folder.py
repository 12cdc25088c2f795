"""The documentation's example, a model outside the package: trained, resumed and evaluated."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from tests.launching import PATIENCE, wait_until

PROJECT = Path(__file__).parents[2]
EXAMPLE = PROJECT / "examples" / "image_folder"
MOST_LINES = 120


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 circles and 40 squares at random places, a fifth of them for validation."""
    root = tmp_path_factory.mktemp("pictures")
    random = torch.Generator().manual_seed(0)
    for kind in ("circle", "square"):
        for number in range(40):
            image = Image.new("RGB", (48, 48), "navy")
            x, y, side = torch.randint(4, 16, (3,), generator=random).tolist()
            box = (x, y, x + side + 12, y + side + 12)
            draw = ImageDraw.Draw(image)
            (draw.ellipse if kind == "circle" else draw.rectangle)(box, fill="yellow")
            path = root / ("val" if number % 5 == 0 else "train") / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return root


def test_the_page_shows_the_example_as_it_is() -> None:
    """Inlined, so that it can be read where Markdown isn't rendered by the site's tools."""
    page = (PROJECT / "docs" / "extend.md").read_text(encoding="utf-8")
    for name in ("image_folder.py", "train.yaml"):
        assert (EXAMPLE / name).read_text(encoding="utf-8") in page, name


def command(program: str, pictures: Path, output: Path, *options: str) -> list[str]:
    flags = [option for option in options if option.startswith("--")]
    given = [option for option in options if not option.startswith("--")]
    return [
        *(sys.executable, str(PROJECT / program), "--cfg-path", "train.yaml", *flags, "--options"),
        f"datasets.picture_folders.root={pictures}",
        f"run.output_dir={output}",
        *("run.num_workers=0", "run.device=cpu", *given),
    ]


def run(program: str, pictures: Path, output: Path, *options: str) -> str:
    done = subprocess.run(
        command(program, pictures, output, *options),
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    output = tmp_path_factory.mktemp("output")
    run("train.py", pictures, output, "run.name=whole")
    return output / "whole"


def test_the_example_is_small_and_the_package_does_not_depend_on_it() -> None:
    files = [EXAMPLE / "image_folder.py", EXAMPLE / "train.yaml"]
    assert sum(len(path.read_text().splitlines()) for path in files) <= MOST_LINES
    for path in (PROJECT / "lavis_ext").rglob("*.py"):
        assert not re.search(r"\bClassif(y|ier)\b|picture_folders", path.read_text()), path


def test_it_trains_saves_the_best_weights_and_writes_a_report(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())["val"]
    assert metrics["accuracy"] > 0.6
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    best = max(each["accuracy"] for each in lines if each["kind"] == "val")
    assert metrics["accuracy"] == best
    page = (trained / "report.html").read_text()
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    assert found
    content = json.loads(found[1])
    (split,) = content["splits"]
    assert len(split["examples"]) == 16
    assert "accuracy" in json.dumps(split["metrics"])
    assert "loss" in [chart["name"] for chart in content["curves"]]
    assert set(content["images"]) == {each["image"] for each in split["examples"]}


def killed(pictures: Path, output: Path, *options: str) -> None:
    """Kill a run of the name ``killed`` once it has saved a state."""
    process = subprocess.Popen(
        command("train.py", pictures, output, "run.name=killed", *options),
        cwd=EXAMPLE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: list((output / "killed").glob("state_*")) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((output / "killed").glob("state_*"))


def assert_same_best(one: Path, other: Path) -> None:
    once, again = (load_file(folder / "classifier_best.safetensors") for folder in (one, other))
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_a_killed_run_resumes_bit_for_bit(trained: Path, pictures: Path, tmp_path: Path) -> None:
    options = ("run.save_every_steps=3",)
    killed(pictures, tmp_path, *options)
    run("train.py", pictures, tmp_path, *options, "run.name=killed", "run.resume=auto")
    assert_same_best(trained, tmp_path / "killed")


def test_a_dry_run_reports_the_cost(pictures: Path, tmp_path: Path) -> None:
    said = run("train.py", pictures, tmp_path, "--dry-run")
    assert re.search(r"^pictures +train 64, val 16$", said, re.M), said
    assert "FLOPs" in said
    assert "pictures/s" in said
    assert not list(tmp_path.iterdir())


def test_evaluation_gives_the_metrics_of_training(
    trained: Path, pictures: Path, tmp_path: Path
) -> None:
    weights = f"model.weights={trained / 'classifier_best.safetensors'}"
    run("evaluate.py", pictures, tmp_path, weights, "run.name=evaluated")
    found, known = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (tmp_path / "evaluated", trained)
    )
    assert found == known


MORE = """
import image_folder
from lavis_ext.registry import registry

@registry.register_builder("more_pictures")
class MorePictures(image_folder.PictureFolders):
    pass
"""


def test_two_data_sets_train_together_and_resume_bit_for_bit(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more_pictures.py").write_text(MORE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{EXAMPLE}")
    options = (
        "imports=[image_folder,more_pictures]",
        f"datasets.more_pictures.root={pictures}",
        "run.train_dataset_ratios={picture_folders: 3, more_pictures: 1}",
        "run.log_freq=1",
        "run.save_every_steps=2",
    )
    run("train.py", pictures, tmp_path, *options, "run.name=whole")
    killed(pictures, tmp_path, *options)
    run("train.py", pictures, tmp_path, *options, "run.name=killed", "run.resume=auto")
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert set(metrics) == {"picture_folders.val", "more_pictures.val"}
    lines = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    steps = [entry for entry in map(json.loads, lines) if entry["kind"] == "train"]
    assert len(steps) == 5 * 8, "eight batches an epoch, four of each data set's"
    assert_same_best(tmp_path / "whole", tmp_path / "killed")
