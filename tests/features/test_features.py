"""The feature store: contents, errors, and resumption without losses."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open
from torch import nn

from lavis_ext.common import locks, progress
from lavis_ext.common.addresses import Address, RemoteFile
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.datasets.base import StoredTokens
from lavis_ext.datasets.gqa.builder import GqaFusionBuilder
from lavis_ext.datasets.gqa.dataset import GqaFusionDataset
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.datasets.samplers import BatchRows
from lavis_ext.features import extraction
from lavis_ext.features.config import FeaturesConfig
from lavis_ext.features.extract import main
from lavis_ext.features.precision import bytes_a_token, compressed, pooled
from lavis_ext.features.run_features import RunFeatures
from lavis_ext.features.store import FeatureStore
from lavis_ext.models.base import total_loss
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.processors.image import StreamImagesConfig, StreamImagesProcessor
from lavis_ext.runners.dry_run import describe
from lavis_ext.runners.freezing import freeze_all_but, trained_patterns
from lavis_ext.runners.launch import started
from tests.launching import PATIENCE, torchrun, wait_until
from tests.runners.test_runner import TINY_MODEL
from tests.tiny import make_model

PROJECT = Path(__file__).parents[2]
CPU = torch.device("cpu")
OBJECTIVES = {"itm": None, "answer": {"width": 32, "layers": 1, "dropout": 0.0}}
RANDOM = StreamImagesConfig(sizes={"grid": 32, "segmentation": 32}, crop=0.5, jitter=0.4)


class Run:
    """A tiny model and mini-GQA, with stores in the test's folder."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root = root
        self.data = data

    def model(self, seed: int = 0, fusion: dict[str, Any] | None = None) -> PnpVqaFusion:
        model = make_model(OBJECTIVES, fusion, seed).eval()
        freeze_all_but(model, trained_patterns(model, None))
        return model

    def datasets(self) -> dict[str, GqaFusionDataset]:
        size = {"name": "stream_images", "sizes": {"grid": 32, "segmentation": 32}}
        section = {
            "type": "mini",
            "mini_gqa": {"root": str(self.data), "images": 40},
            "vis_processor": {"train": size, "eval": size},
        }
        builder = GqaFusionBuilder(OmegaConf.create(section))
        return builder.build_datasets({"train": None, "val": None})

    def features(
        self,
        datasets: dict[str, GqaFusionDataset] | None = None,
        model: nn.Module | None = None,
        **options: Any,
    ) -> RunFeatures:
        given = {"root": str(self.root), "images_per_shard": 8, "batch_size": 4, **options}
        return RunFeatures(
            FeaturesConfig(**given), datasets or self.datasets(), model or self.model()
        )

    def stores(self) -> dict[str, Path]:
        """Folders of the stores by stream, one each."""
        return {path.name.split("-")[0]: path for path in self.root.glob("*-*") if path.is_dir()}

    def shards(self, stream: str = "grid") -> list[Path]:
        return sorted(self.stores()[stream].glob("*.safetensors"))

    def contents(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*/*"))
        }


@pytest.fixture
def run(tmp_path: Path, mini_gqa: Path) -> Run:
    return Run(tmp_path / "features", mini_gqa)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, mini_gqa: Path) -> Run:
    """A finished store. Tests copy it."""
    run = Run(tmp_path_factory.mktemp("undisturbed") / "features", mini_gqa)
    run.features().make(CPU, 0)
    return run


@pytest.fixture
def made(run: Run, undisturbed: Run) -> Run:
    """A copy of a finished store."""
    shutil.copytree(undisturbed.root, run.root)
    return run


def batch(dataset: GqaFusionDataset, epoch: int = 0, count: int = 12) -> QuestionBatch:
    rows = np.arange(count) * (len(dataset) // count)
    found = dataset.__getitems__(BatchRows(rows, epoch, count))
    assert isinstance(found, dict), found
    return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("fp32", 1e-6), ("fp16", 1e-3), ("bf16", 5e-3), ("int8", 1e-2)]
)
def test_loss_and_gradients_of_stored_features_are_those_of_the_images(
    run: Run, dtype: str, tolerance: float
) -> None:
    datasets, model = run.datasets(), run.model()
    found = []
    for stored in (False, True):
        if stored:
            run.features(datasets, model, dtype=dtype, make=True).use(CPU, 0)
        samples = batch(datasets["train"])
        assert ("images" in samples) != stored
        model.zero_grad()
        loss = total_loss(model(samples))
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((loss.item(), torch.cat(gradients)))
    (live, live_gradient), (read, gradient) = found
    assert read == pytest.approx(live, rel=tolerance)
    assert (gradient - live_gradient).norm() <= 10 * tolerance * live_gradient.norm()


def test_a_run_makes_its_features_first_and_trains_as_with_images(
    configured: Callable[..., Config], tiny_options: list[str], run: Run, tmp_path: Path
) -> None:
    """Also on two processes, with stores equal byte for byte."""
    frozen = [*tiny_options, *TINY_MODEL, "run.trainable=[fusion.*]", "run.max_steps=3"]
    stored = ["run.features.dtype=fp32", "run.features.images_per_shard=4"]
    metrics = []
    for root in (None, tmp_path / "one"):
        options = [f"run.features.root={root}", "run.features.make=true", *stored] if root else []
        with started(configured(*frozen, *options), ["train", "val", "testdev"]) as runner:
            metrics.append(runner.train())
    live, read = metrics
    assert read["testdev"] == pytest.approx(live["testdev"], abs=1e-5)
    (tmp_path / "output").rename(tmp_path / "earlier")
    done = torchrun(
        2,
        *("train.py", "--cfg-path", "projects/pnp-vqa/train/gqa_small.yaml", "--options"),
        *(*frozen, *stored, f"run.features.root={tmp_path / 'two'}"),
        *("run.features.make=true", "run.batch_size_train=8", "run.num_workers=1"),
    )
    assert done.returncode == 0, done.stderr
    one, two = (Run(tmp_path / name, run.data).contents() for name in ("one", "two"))
    assert one == two
    (folder,) = (tmp_path / "output").iterdir()
    both = json.loads((folder / "metrics.json").read_text())
    assert both["testdev"] == pytest.approx(live["testdev"], abs=1e-3)


def test_a_later_run_reuses_the_store_of_an_earlier_one(
    configured: Callable[..., Config],
    tiny_options: list[str],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = [
        *(*tiny_options, *TINY_MODEL, "run.trainable=null", "run.max_steps=2"),
        *(f"run.features.root={run.root}", "run.features.make=true"),
    ]

    def train(*more: str) -> dict[str, dict[str, float]]:
        with started(configured(*options, *more), ["train", "val", "testdev"]) as runner:
            return runner.train()

    first = train()
    written = {path: path.stat().st_mtime_ns for path in run.root.rglob("*.*") if path.is_file()}
    assert written

    def extract(self: extraction.Extraction, *_: Any, **__: Any) -> None:
        raise UserError("encodes images")

    monkeypatch.setattr(extraction.Extraction, "run", extract)
    assert train() == first
    assert {path: path.stat().st_mtime_ns for path in written} == written
    with pytest.raises(UserError, match="encodes images"):
        train("run.seed=1")  # encoders of other random weights


def test_the_command_makes_verifies_and_repairs_a_store(
    configured: Callable[..., Config],
    tiny_options: list[str],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [
        *(*tiny_options, *TINY_MODEL, "run.trainable=[fusion.*]"),
        *(f"run.features.root={run.root}", "run.features.images_per_shard=8"),
    ]

    def extract(*flags: str) -> str:
        small = "projects/pnp-vqa/train/gqa_small.yaml"
        arguments = ["extract", *flags, "--cfg-path", small, "--options", *options]
        monkeypatch.setattr(sys, "argv", arguments)
        main()
        return capsys.readouterr().out

    describe(configured(*options), ["train", "val", "testdev"])
    assert "GiB in" in capsys.readouterr().out
    assert not run.root.exists()
    assert "min left" in extract()
    whole = run.contents()
    assert str(run.stores()["grid"]) in extract("--verify")
    alter(run.shards()[0])
    for flags in ([], ["--verify"]):
        with pytest.raises(SystemExit) as ended:
            extract(*flags)
        assert ended.value.code == 2
        assert f"error: {run.shards()[0]}: damaged" in capsys.readouterr().err
    extract("--rebuild")
    assert run.contents() == whole


def test_an_extraction_that_is_killed_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    """``benchmarks/feature_store.py`` repeats it ten times on more images."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.feature_store", str(tmp_path)),
            *("--kills", "2", "--images", "40", "--images-per-shard", "1", "--seed", "1"),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["differing_files"] == []
    assert found["kills"] > 0
    assert found["shards"] == 80


@pytest.mark.parametrize("last", range(0, 12, 3))
def test_extraction_resumes_from_any_interruption(
    run: Run, undisturbed: Run, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """``last`` of 12 files (5 shards of 2 streams, 2 indices) are written before a power cut."""

    class PowerFailure(BaseException):
        pass

    left = [last]

    def failing(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*args: Any) -> None:
            if left[0] == 0:
                raise PowerFailure
            left[0] -= 1
            write(*args)

        return wrapped

    with monkeypatch.context() as patched:
        for name in ("write_shard", "write_index"):
            patched.setattr(FeatureStore, name, failing(getattr(FeatureStore, name)))
        with pytest.raises(PowerFailure):
            run.features().make(CPU, 0)
    kept = {path: path.stat().st_mtime_ns for path in run.root.rglob("*.safetensors")}
    assert len(kept) == min(last, 10)
    (run.stores()["grid"] / ".half.safetensors.1").write_bytes(b"written aside")
    run.features().make(CPU, 0)
    assert run.contents() == undisturbed.contents()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was finished is kept"


def test_a_store_without_its_index_is_incomplete(made: Run) -> None:
    made.features().verify()
    (made.stores()["grid"] / "index.arrow").unlink()
    with pytest.raises(UserError, match="no complete feature store"):
        made.features().verify()


def cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-7])


def alter(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, alter, lambda shard: shard.write_bytes(b"")])
def test_a_damaged_shard_is_named_and_rebuilt_when_asked(
    made: Run, undisturbed: Run, damage: Callable[[Path], None]
) -> None:
    features = made.features()
    shard = made.shards()[1]
    damage(shard)
    with pytest.raises(UserError, match=f"{shard}: damaged"):
        features.verify()
    with pytest.raises(UserError, match=f"{shard}: damaged.*--rebuild"):
        features.make(CPU, 0)
    others = {p: p.stat().st_mtime_ns for p in made.root.rglob("*.safetensors") if p != shard}
    features.make(CPU, 0, rebuild=True)
    assert made.contents() == undisturbed.contents()
    assert {path: path.stat().st_mtime_ns for path in others} == others


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_run_names_a_shard_that_is_cut_or_gone(made: Run, damage: Callable[[Path], None]) -> None:
    damage(made.shards("segmentation")[2])
    left = made.contents()
    with pytest.raises(UserError, match=r"segmentation-\w+/\w+\.safetensors: .*--rebuild"):
        made.features(make=True).use(CPU, 0)
    assert made.contents() == left


def test_tokens_that_were_altered_are_noticed_when_they_are_read(made: Run) -> None:
    shard = made.shards("segmentation")[0]
    with safe_open(shard, "pt") as file:
        images = [state[0] for state in json.loads(file.metadata()["lavis_ext"])["images"]]
    datasets = made.datasets()
    made.features(datasets).use(CPU, 0)
    assert datasets["train"].features.read(images, 0)
    alter(shard)
    made.features(datasets).use(CPU, 0)
    with pytest.raises(UserError, match=f"{shard}: the shard is missing or damaged.*--rebuild"):
        datasets["train"].features.read(images, 0)


def test_features_of_other_weights_are_never_read_and_the_difference_is_named(made: Run) -> None:
    other = made.model(seed=1)
    with pytest.raises(
        UserError, match=r"no complete feature store.*grid-\w+ differs in encoder\.weights"
    ):
        made.features(model=other).use(CPU, 0)
    with pytest.raises(UserError, match=r"differs in dtype \(bf16 there, fp32 here\)"):
        made.features(dtype="fp32").use(CPU, 0)
    store = made.stores()["grid"]
    with pytest.raises(UserError, match=r"is a store of other features; .*encoder\.weights"):
        made.features(model=other, root=str(store)).use(CPU, 0)
    with pytest.raises(UserError, match="itself a store; set its parent folder"):
        made.features(root=str(store)).use(CPU, 0)


def test_a_shard_of_another_store_is_not_read(made: Run) -> None:
    made.features(dtype="fp32", make=True).use(CPU, 0)
    fp32, bf16 = sorted(made.root.glob("grid-*/store.json"), key=lambda p: "bf16" in p.read_text())
    stray = next(fp32.parent.glob("*.safetensors"))
    shutil.copy(stray, bf16.parent)
    for shard in bf16.parent.glob("*.safetensors"):
        if shard.name != stray.name:
            shard.unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        made.features().use(CPU, 0)


@pytest.fixture
def at_address(made: Run) -> str:
    """The address of a copy of the finished stores."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{made.root}/", "/stores/", recursive=True)
    return "memory://stores"


def test_stores_at_an_address_are_copied_once_and_read_like_local_ones(
    made: Run, at_address: str, tmp_path: Path
) -> None:
    here, there = made.datasets(), made.datasets()
    made.features(here).use(CPU, 0)
    given = {"root": at_address, "cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"memory://stores/grid-\w+: .* differs in enc"):
        made.features(model=made.model(seed=1), **given).use(CPU, 0)
    made.features(there, **given).use(CPU, 0)
    images = sorted(here["train"].all_images())
    read = [datasets["train"].features.read(images, 0) for datasets in (here, there)]
    for stream, one in read[0].items():
        assert torch.equal(one.values, read[1][stream].values)
    fsspec.filesystem("memory").rm("/stores", recursive=True)
    made.features(**given).use(CPU, 0)  # without a network


def test_an_interrupted_copy_of_stores_continues_and_damaged_shards_are_noticed(
    made: Run, at_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = made.features(root=at_address, cache=str(tmp_path / "cache"))
    copied: list[str] = []
    copy = Address.copy

    def copying(self: Address, file: RemoteFile, target: Path) -> None:
        if len(copied) == 3:
            raise UserError("the network is gone")
        copied.append(file.path)
        copy(self, file, target)

    with monkeypatch.context() as patched:
        patched.setattr(Address, "copy", copying)
        with pytest.raises(UserError, match="the network is gone"):
            features.use(CPU, 0)
    first = set(copied)
    monkeypatch.setattr(
        Address, "copy", lambda *arguments: copied.append(arguments[1].path) or copy(*arguments)
    )
    features.use(CPU, 0)
    assert len(copied) == len(set(copied)), "no file is copied twice"
    shard = next((tmp_path / "cache").rglob(Path(next(iter(first))).name))
    cut(shard)
    with pytest.raises(UserError, match=f"{shard}: damaged.*--rebuild"):
        features.verify()
    features.make(CPU, 0, rebuild=True)
    features.verify()
    memory = fsspec.filesystem("memory")
    memory.pipe_file(next(iter(first)), b"short")
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name}: the shard is damaged"):
        features.make(CPU, 0)


def test_images_that_stores_at_an_address_lack_are_not_extracted(
    made: Run, at_address: str, tmp_path: Path
) -> None:
    images = sorted((made.data / "images").iterdir())
    made.data = shutil.copytree(made.data, tmp_path / "data")
    (made.data / "images" / images[0].name).write_bytes(images[1].read_bytes())
    features = made.features(root=at_address, cache=str(tmp_path / "cache"), make=True)
    with pytest.raises(UserError, match=rf"is out of date for 1 .*copy of {at_address}, which is"):
        features.use(CPU, 0)


def test_disk_space_is_checked_before_encoding(
    run: Run, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(path.stat().st_size for path in undisturbed.root.rglob("*.safetensors"))
    images = len(run.features().groups[0].extraction.wanted)
    needed = images * sum(
        store.bytes_an_image for _, store in run.features().groups[0].extraction.stores
    )
    assert needed == pytest.approx(size, rel=0.2)  # names and checksums, of tiny tokens
    usage = shutil.disk_usage("/")
    for free in (needed - 1, needed):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        if free < needed:
            with pytest.raises(UserError, match=r"need .* GiB and .* GiB are free"):
                run.features().make(CPU, 0)
            assert not list(run.root.rglob("*.safetensors"))
    run.features().make(CPU, 0)


def test_a_full_disk_ends_extraction_and_keeps_finished_shards(
    run: Run, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = Path.write_bytes, [3]

    def full(path: Path, content: bytes) -> int:
        if left[0] == 0:
            write(path, content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        return write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"No space left.* Finished shards are kept"):
            run.features().make(CPU, 0)
    assert len(list(run.root.rglob("*.safetensors*"))) == 3
    run.features().make(CPU, 0)
    assert run.contents() == undisturbed.contents()


def test_a_changed_image_is_detected_and_a_copied_one_is_accepted(
    made: Run, tmp_path: Path
) -> None:
    made.data = shutil.copytree(made.data, tmp_path / "data")  # with the same times
    datasets, model = made.datasets(), made.model()
    train = datasets["train"]
    image = train.table.columns["image_id"][0].as_py()
    path = train.images.path(image)
    os.utime(path, ns=(1, 1))
    made.features().use(CPU, 0)
    Image.new("RGB", (64, 64), "red").save(path)
    with pytest.raises(UserError, match=f"is out of date for 1 of .*{image}"):
        made.features().use(CPU, 0)
    before = {path.name for path in made.shards()}
    seen = model.encode(train[0])["grid"].values
    made.features(datasets, model, make=True).use(CPU, 0)
    assert len(before - {path.name for path in made.shards()}) == 1, "one shard is replaced"
    assert torch.allclose(model.encode(train[0])["grid"].values, seen, atol=0.05)


def test_an_image_that_changes_during_extraction_is_noticed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.data = shutil.copytree(run.data, tmp_path / "data")
    datasets = run.datasets()
    path = datasets["train"].images.path(datasets["train"].table.columns["image_id"][0].as_py())
    finish = extraction.Extraction._finish

    def changed(self: extraction.Extraction) -> None:
        Image.new("RGB", (64, 64), "red").save(path)
        finish(self)

    with monkeypatch.context() as patched:
        patched.setattr(extraction.Extraction, "_finish", changed)
        with pytest.raises(UserError, match=r"lacks 8 of the .* images"):
            run.features(datasets, make=True).use(CPU, 0)
    run.features(datasets, make=True).use(CPU, 0)


def test_a_store_grows_by_the_images_of_another_run(run: Run) -> None:
    few = {"val": run.datasets()["val"]}
    run.features(few).make(CPU, 0)
    first = {path: path.stat().st_mtime_ns for path in run.shards()}
    run.features(make=True).use(CPU, 0)
    assert len(run.shards()) > len(first)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    run.features(few).use(CPU, 0)


def test_encoders_that_are_trained_have_no_stored_features(run: Run) -> None:
    model = run.model()
    freeze_all_but(model, ["fusion.*", "streams.grid.blip.text_encoder.*"])
    run.features(model=model)
    freeze_all_but(model, ["fusion.*", "streams.segmentation.*"])
    with pytest.raises(UserError, match=r"run\.trainable includes the encoder of the segmentation"):
        run.features(model=model)


def test_tasks_that_need_images_reject_features(
    configured: Callable[..., Config], tiny_options: list[str], run: Run
) -> None:
    config = configured(
        *tiny_options,
        "run.task=gqa_reading_comprehension_fusion",
        "run.features.make=true",
    )
    with (
        pytest.raises(UserError, match=r"run\.features: the task gqa_reading_compre.* images"),
        started(config, ["val"]),
    ):
        pass
    model, datasets = run.model(), run.datasets()
    run.features(datasets, model, make=True).use(CPU, 0)
    with pytest.raises(UserError, match="Masks and captions are made from images"):
        model.locate(batch(datasets["val"]))


def test_a_fusion_of_one_stream_stores_and_reads_only_that(run: Run) -> None:
    datasets = run.datasets()
    model = run.model(fusion={"name": "grid_only"})
    run.features(datasets, model, make=True).use(CPU, 0)
    assert set(run.stores()) == {"grid"}
    assert set(batch(datasets["train"])["tokens"]) == {"grid"}
    before = run.contents()
    run.features(make=True).use(CPU, 0)  # both streams: the first is there already
    assert set(run.stores()) == {"grid", "segmentation"}
    assert before.items() <= run.contents().items()


def test_pooled_tokens_are_a_smaller_grid_that_trains_and_validates(run: Run) -> None:
    datasets, model = run.datasets(), run.model()
    run.features(datasets, model, pooling=2, make=True).use(CPU, 0)
    samples = batch(datasets["train"])
    assert samples["tokens"]["grid"].values.shape[1] == 1 + 2 * 2  # of 4x4 patches
    assert samples["tokens"]["segmentation"].values.shape[1] == 1  # of 2x2
    assert model.fuse(samples).shape[1] == 5
    assert total_loss(model(samples)).isfinite()
    with pytest.raises(UserError, match=r"pooling is 4; it must divide the segmentation"):
        run.features(pooling=4)


def test_pooling_averages_squares_and_keeps_the_class_token() -> None:
    tokens = torch.arange(1 + 2 * 4, dtype=torch.float32)[None, :, None]
    # 1 2 3 4
    # 5 6 7 8
    assert pooled(tokens, (2, 4), 2, prefix=1).flatten().tolist() == [0, 3.5, 5.5]
    assert pooled(tokens[:, 1:], (2, 4), 2, prefix=0).flatten().tolist() == [3.5, 5.5]


def test_eight_bits_are_within_half_a_step_of_each_tokens_own_scale() -> None:
    tokens = torch.randn(3, 5, 16) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    tokens[0, 0] = 0
    stored = compressed(tokens, "int8")
    assert stored["tokens"].dtype == torch.int8
    step = tokens.abs().amax(-1, keepdim=True) / 127
    assert (
        (StoredTokens(stored["tokens"], stored["scales"], (1, 5)).restored() - tokens).abs()
        <= 0.5001 * step
    ).all()
    assert stored["tokens"].nbytes + stored["scales"].nbytes == 15 * bytes_a_token(16, "int8")


def test_values_beyond_a_dtypes_range_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"1e\+05 are not finite as fp16"):
        compressed(torch.full((1, 1, 2), 1e5), "fp16")
    with pytest.raises(ValueError, match="not finite"):
        compressed(torch.full((1, 1, 2), torch.nan), "int8")


def random_views(datasets: dict[str, GqaFusionDataset]) -> dict[str, GqaFusionDataset]:
    datasets["train"].processor = StreamImagesProcessor(RANDOM)
    return datasets


def test_stored_views_depend_only_on_image_and_epoch(run: Run) -> None:
    datasets = random_views(run.datasets())
    run.features(datasets, views=3, make=True, token_dropout=0.3, noise=0.1).use(CPU, 0)
    assert len(run.stores()) == 2
    assert len(list(run.root.glob("grid-*/"))) == 2, "val's pictures are not cropped"
    train = datasets["train"]
    seen = {}
    for epoch in range(8):
        whole = batch(train, epoch)
        image = int(whole["image_index"][4])
        alone = train.__getitems__(BatchRows(np.array([4 * (len(train) // 12)]), epoch, 1))
        assert isinstance(alone, dict)
        assert torch.equal(whole["tokens"]["grid"].values[image], alone["tokens"]["grid"].values[0])
        seen[epoch] = whole["tokens"]["grid"].values[image]
        dropped = (whole["tokens"]["grid"].values == 0).all(dim=-1)
        assert not dropped[:, 0].any(), "class tokens stay"
        assert 0.1 < dropped[:, 1:].float().mean() < 0.5
    assert not torch.equal(seen[0], seen[1])
    val = datasets["val"]
    assert torch.equal(
        batch(val, 0, 4)["tokens"]["grid"].values, batch(val, 1, 4)["tokens"]["grid"].values
    )
    assert not (batch(val, 0, 4)["tokens"]["grid"].values == 0).all(dim=-1).any()


def test_several_views_are_stored_and_all_of_them_used(run: Run) -> None:
    datasets = random_views(run.datasets())
    run.features(datasets, views=3, make=True).use(CPU, 0)
    tokens = [batch(datasets["train"], epoch, 1)["tokens"]["grid"].values for epoch in range(16)]
    different = {each.float().sum().item() for each in tokens}
    assert len(different) == 3


def test_several_views_and_random_processors_need_each_other(run: Run) -> None:
    with pytest.raises(UserError, match=r"vis_processor\.train isn't random"):
        run.features(views=2)
    with pytest.raises(UserError, match="only one view would be stored"):
        run.features(random_views(run.datasets()))


def test_live_augmentation_follows_image_and_epoch(run: Run) -> None:
    train = random_views(run.datasets())["train"]
    first, again, later = (batch(train, epoch)["images"]["grid"] for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert first.shape[1:] == (3, 32, 32)


def test_the_second_process_waits_and_finds_the_work_done(
    run: Run, undisturbed: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.02)
    monkeypatch.setattr(locks, "SECONDS_A_LOOK", 0.01)
    features = run.features()
    store = features.groups[0].extraction.stores[0][1]
    lock = store.lock()
    assert lock.taken()
    lock.write_note("features of 7 of 9 images stored")
    caplog.set_level("INFO")
    monkeypatch.setattr("lavis_ext.runners.run_log.log.propagate", True)
    second = threading.Thread(target=features.make, args=(CPU, 0))
    second.start()
    wait_until(lambda: "Waiting for another process: features of 7 of 9" in caplog.text)
    assert not list(run.root.rglob("*.safetensors"))
    shutil.copytree(undisturbed.root, run.root, dirs_exist_ok=True)
    first = {path: path.stat().st_mtime_ns for path in run.root.rglob("*.safetensors")}
    lock.close()
    second.join(PATIENCE)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert run.contents() == undisturbed.contents()
