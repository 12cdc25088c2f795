"""Kill an extraction at random moments, resume it, and compare it with an undisturbed one.

python -m benchmarks.feature_store OUT                  # 10 kills, 1,500 images, about 3 min

Each process is killed (SIGKILL, with its workers) at a random moment after its first write, and the
next one resumes. Prints a JSON object; exits with 1 if a byte differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.processes import PROJECT, command, environment

CONFIG = "projects/pnp-vqa/train/mini_train.yaml"
SECONDS_A_LOOK = 0.002


def extraction(out: Path, root: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start an extraction into ``root``."""
    program = [
        *("-m", "lavis_ext.features.extract", "--cfg-path", CONFIG, "--options"),
        f"datasets.gqa_fusion.mini_gqa.root={out / 'mini_gqa'}",
        f"datasets.gqa_fusion.mini_gqa.images={options.images}",
        f"run.features.root={root}",
        f"run.features.images_per_shard={options.images_per_shard}",
        "run.features.batch_size=8",
        "run.small_val_size=null",
        "run.num_workers=1",
        "run.device=cpu",
    ]
    return subprocess.Popen(
        command(program, options.processes),
        cwd=PROJECT,
        env=environment(threads=1),
        stdout=subprocess.DEVNULL,
    )


def killed(process: subprocess.Popen[bytes], root: Path, seconds: float) -> bool:
    """Kill a process ``seconds`` after its first write below ``root``; False if it ended before."""
    before = state(root)
    while state(root) == before:
        if process.poll() is not None:
            return False
        time.sleep(SECONDS_A_LOOK)
    time.sleep(seconds)
    ended = process.poll() is not None
    if not ended:
        for pid in family(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
    return not ended


def family(pid: int) -> list[int]:
    """Ids of a process and its descendants, such as ranks and loader workers."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def state(root: Path) -> list[tuple[str, int]]:
    """Names and modification times of the files below ``root``, without locks."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            try:
                found.append((str(path), path.stat().st_mtime_ns))
            except FileNotFoundError:  # renamed in the meantime
                found.append((str(path), 0))
    return sorted(each for each in found if not each[0].endswith((".lock", ".lock.progress")))


def contents(root: Path) -> dict[str, bytes]:
    """Contents of all files of the stores by name."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*/*"))}


def main() -> None:
    """Extract with and without kills, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--images-per-shard", type=int, default=32)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out = options.out.resolve()
    whole, broken = out / "undisturbed", out / "killed"
    for root in (whole, broken):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
    if extraction(out, whole, options).wait():
        raise SystemExit("the undisturbed extraction failed")
    times = [time_ns for _, time_ns in state(whole)]
    seconds = (max(times) - min(times)) / 1e9
    draw = random.Random(options.seed)
    kills, left = 0, []
    for _ in range(options.kills):
        process = extraction(out, broken, options)
        kills += killed(process, broken, draw.uniform(0, 2 * seconds / (options.kills + 1)))
        left.append(len(list(broken.rglob("[0-9a-f]*.safetensors"))))
    if extraction(out, broken, options).wait():
        raise SystemExit("the last extraction failed")
    expected, found = contents(whole), contents(broken)
    differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    print(
        json.dumps(
            {
                "kills": kills,
                "shards_after_each": left,
                "shards": sum(name.endswith(".safetensors") for name in expected),
                "bytes": sum(map(len, expected.values())),
                "seconds_of_writing": round(seconds, 2),
                "differing_files": differing,
            },
            indent=1,
        )
    )
    raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()
