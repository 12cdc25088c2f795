"""Several machines: network namespaces with their own addresses, data and output folders."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MINI_IMAGES, SMALL
from tests.launching import wait_until
from tests.runners.test_runner import TINY_MODEL

pytestmark = pytest.mark.beyond_core

PROJECT = Path(__file__).parents[2]
EVAL = PROJECT / "projects" / "pnp-vqa" / "eval" / "gqa_small_eval.yaml"
MINUTES = 10


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Machines:
    """Two hosts on one network, each with a working folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.names = [f"lavis{os.getpid()}{end}" for end in "ab"]
        self.folders = [folder / end for end in "ab"]
        self.addresses = ["10.231.7.1", "10.231.7.2"]

    def set_up(self, data: Path) -> None:
        links = [f"v{os.getpid()}{end}"[-15:] for end in "ab"]
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for name, link, address in zip(self.names, links, self.addresses, strict=True):
            ip("link", "set", link, "netns", name)
            ip("-n", name, "link", "set", link, "name", "eth0")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        for folder in self.folders:
            folder.mkdir()
            shutil.copytree(data, folder / "mini_gqa")

    def tear_down(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def start(self, *arguments: str) -> list[subprocess.Popen[str]]:
        """torchrun's agents, one a machine."""
        agents = []
        for rank in range(len(self.names)):
            launcher = ["--nnodes=2", f"--node-rank={rank}", "--nproc_per_node=1"]
            launcher += [f"--master-addr={self.addresses[0]}", "--master-port=29511"]
            agents.append(self.start_on(rank, "-m", "torch.distributed.run", *launcher, *arguments))
        return agents

    def start_on(self, machine: int, *arguments: str) -> subprocess.Popen[str]:
        """A program of Python on one machine."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[machine], sys.executable, *arguments],
            cwd=self.folders[machine],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "eth0",
                "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")]),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def lose(self, machine: int) -> None:
        """Kill all processes of a machine; torchrun's workers have sessions of their own."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.names[machine]], capture_output=True, text=True
        )
        for pid in map(int, found.stdout.split()):
            os.kill(pid, signal.SIGKILL)

    def run(self, *arguments: str) -> None:
        ended(*self.start(*arguments))


def ended(*programs: subprocess.Popen[str], well: bool = True) -> str:
    """Wait for programs to end, well or not; returns what they printed."""
    said = [program.communicate(timeout=60 * MINUTES)[0] for program in programs]
    assert all((program.returncode == 0) == well for program in programs), said
    return "".join(said)


@pytest.fixture
def machines(tmp_path: Path, mini_gqa: Path) -> Iterator[Machines]:
    found = Machines(tmp_path)
    try:
        found.set_up(mini_gqa)
    except (OSError, subprocess.CalledProcessError):
        found.tear_down()
        pytest.skip("needs root and Debian's iproute2, for network namespaces")
    yield found
    found.tear_down()


DATA = [
    "datasets.gqa_fusion.root=mini_gqa",
    "datasets.gqa_fusion.mini_gqa.root=mini_gqa",
    f"datasets.gqa_fusion.mini_gqa.images={MINI_IMAGES}",
    "run.num_workers=0",
    "run.device=cpu",
    "run.report=false",
    "run.resume=auto",
    "task.resamples=0",
]
TRAIN = [
    *("--cfg-path", str(SMALL), "--options", *DATA, *TINY_MODEL),
    "run.small_train_size=48",
    "run.sample_by=examples",
    "run.batch_size_train=4",
    "run.batch_size_eval=16",
    "run.save_every_steps=1",
    "run.max_epoch=9",
]
STEPS = "run.max_steps=40"


@pytest.mark.timeout(2400)
def test_two_machines_without_a_common_folder_train_resume_and_evaluate(
    machines: Machines,
) -> None:
    here, there = machines.folders
    train = str(PROJECT / "train.py")
    machines.run(train, *TRAIN, STEPS, "run.name=whole")
    whole = here / "output" / "whole"
    assert not [*(there / "output").glob("whole/*")], "only the first machine keeps the run's files"

    agents = machines.start(train, *TRAIN, STEPS, "run.name=cut")
    wait_until(lambda: [*(here / "output" / "cut").glob("state_*")])
    machines.lose(1)
    said = agents[0].communicate(timeout=60 * MINUTES)[0]
    assert agents[0].returncode != 0
    assert "rank 1 has ended" in said or "Connection closed" in said
    machines.run(train, *TRAIN, STEPS, "run.name=cut")
    cut = here / "output" / "cut"
    for name in ("testdev_predictions.json", "metrics.json"):
        assert json.loads((cut / name).read_text()) == json.loads((whole / name).read_text())

    weights = there / "weights.safetensors"
    for folder in machines.folders:
        shutil.copy(whole / "fusion_encoder_best.safetensors", folder / weights.name)
    options = [*DATA, "model.fusion_weights=weights.safetensors", "run.batch_size_eval=4"]
    evaluate = str(PROJECT / "evaluate.py")
    machines.run(evaluate, "--cfg-path", str(EVAL), "--options", *options, "run.name=judged")
    judged = json.loads((here / "output" / "judged" / "metrics.json").read_text())
    assert "testdev" in judged


@pytest.mark.timeout(900)
def test_machines_extract_features_each_by_itself_or_together_into_a_common_folder(
    machines: Machines, tmp_path: Path
) -> None:
    features = ["run.trainable=[fusion.*]", "run.features.images_per_shard=4"]
    extract = ["-m", "lavis_ext.features.extract", *TRAIN, *features]
    said = ended(*machines.start(*extract), well=False)
    assert "mini_gqa/features isn't the same folder on all machines" in said
    assert not [*tmp_path.rglob("*.safetensors")]

    for machine in range(2):
        ended(machines.start_on(machine, *extract))
    common = tmp_path / "common"
    machines.run(*extract, f"run.features.root={common}")
    one, other, together = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*/*")}
        for root in (*(folder / "mini_gqa" / "features" for folder in machines.folders), common)
    )
    assert len([name for name in one if name.endswith(".safetensors")]) > 4
    assert one == other == together

    train = [str(PROJECT / "train.py"), *TRAIN, *features, "run.max_steps=2"]
    machines.run(*train, "run.features.root=mini_gqa/features", "run.name=stored")
    index = next((machines.folders[1] / "mini_gqa" / "features").rglob("index.arrow"))
    index.unlink()
    lacking = ended(
        *machines.start(*train, "run.features.root=mini_gqa/features", "run.name=lacking"),
        well=False,
    )
    assert "there is no complete feature store" in lacking
