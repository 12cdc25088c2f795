"""Stands in for train.py: leaves a run's files behind, without a model.

``FAKE_TRAIN`` names a JSON file with ``configs`` (a folder with each run's resolved config),
``values`` (accuracy by run), ``fail`` (errors by run) and ``hold`` (by run, a named pipe: the first
attempt saves a state, opens the pipe and waits to be stopped).
"""

import json
import os
import signal
import sys
from pathlib import Path

plan = json.loads(Path(os.environ["FAKE_TRAIN"]).read_text())
options = dict(each.split("=", 1) for each in sys.argv[sys.argv.index("--options") + 1 :])
name = options["run.name"]
folder = Path(options["run.output_dir"]) / name
folder.mkdir(parents=True, exist_ok=True)
with Path(plan["attempts"]).open("a") as file:
    file.write(f"{name}\n")
if name in plan["fail"]:
    print("first lines\nerror: " + plan["fail"][name] + "\nlast line", flush=True)
    raise SystemExit(2)
state = folder / "state_00000003.safetensors"
if name in plan["hold"] and not state.exists():
    state.touch()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with Path(plan["hold"][name]).open("w") as pipe:
        pipe.write("saved\n")
        pipe.flush()
        signal.pause()  # the pipe's end tells the test that this process is gone
value = plan["values"].get(name, 0.5)
(folder / "config.yaml").write_text((Path(plan["configs"]) / f"{name}.yaml").read_text())
lines = [
    {
        "kind": "declared",
        "step": 0,
        "metrics": [["answer_accuracy", "share", "max"], ["loss", "", "min"]],
    }
]
lines += [{"kind": "train", "step": n, "loss": 1 / n} for n in (1, 2, 3)]
lines += [{"kind": "val", "step": n, "answer_accuracy": value * n / 3} for n in (1, 2, 3)]
(folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
(folder / "metrics.json").write_text(json.dumps({"val": {"answer_accuracy": value}}))
