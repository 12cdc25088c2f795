"""Data, weights and states are plain values: they can't run code, leave folders or steer terminals.

Files that are rejected outright are in ``wrong_*.py``; these tests are about the readers, and about
valid but malicious files.
"""

import ast
import base64
import hashlib
import json
import logging
import re
import sys
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save, save_file

from lavis_ext.ask.pipeline import model_section
from lavis_ext.checkpoints.sources import resolve
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.checkpoints.weights import read_state_dict
from lavis_ext.common.errors import UserError, exit_with, listed, printable
from lavis_ext.common.files import is_file, is_folder
from lavis_ext.common.tables import table
from lavis_ext.datasets.gqa.questions import read_questions
from lavis_ext.datasets.pictures import ImageFolder, read_image
from lavis_ext.evaluation.gqa.reported import reported
from lavis_ext.evaluation.html_head import POLICY
from lavis_ext.evaluation.report.content import report_content
from lavis_ext.evaluation.report.curves import read_curves
from lavis_ext.evaluation.report.page import assembled, page
from lavis_ext.features.reader import StoredStream
from lavis_ext.features.store import INDEX, INDEX_SCHEMA, FeatureStore
from lavis_ext.runners.run_log import set_up_logging
from tests.evaluation.test_report import NASTY, content_of, result_of
from tests.sources import parsed

pytestmark = pytest.mark.beyond_core

PROJECT = Path(__file__).parents[2]
SOURCES = [
    *sorted((PROJECT / "lavis_ext").rglob("*.py")),
    *sorted((PROJECT / "benchmarks").rglob("*.py")),
    PROJECT / "train.py",
    PROJECT / "evaluate.py",
]
KEY = "model.efficient_sam.weights"
OUTSIDE = [
    "../secret",
    "../images/../secret",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a\0b",
    "secret",
    "%2e",
]


# --- what the code calls -------------------------------------------------------------------------


@cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in the sources: file, name of the function, and call."""
    return [
        (str(path.relative_to(PROJECT)), ast.unparse(node.func), node)
        for path in SOURCES
        for node in ast.walk(parsed(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def given(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(each.value) for each in call.keywords if each.arg == name), None)


def test_no_call_runs_code_from_files() -> None:
    runs_code = re.compile(
        r"(^|\.)(eval|exec|compile_command|unsafe_load|full_load|extractall|system|popen)$"
        r"|^(pickle|cPickle|dill|joblib|shelve|marshal)\.|^np\.(fromregex|load)$|^yaml\.load"
    )
    found = []
    for path, name, call in calls():
        # model.eval() takes nothing.
        if runs_code.search(name) and (call.args or not name.endswith(".eval")):
            found.append(f"{path}: {name}")
        if name == "torch.load" and given(call, "weights_only") != "True":
            found.append(f"{path}: torch.load without weights_only")
        if given(call, "shell") or given(call, "trust_remote_code") or given(call, "allow_pickle"):
            found.append(f"{path}: {name} with shell, remote code or pickles")
    assert found == []


def test_each_dangerous_reader_is_called_in_one_place() -> None:
    """Each is safe in one place, for a documented reason, and called nowhere else."""
    allowed = {
        "torch.load": {"lavis_ext/checkpoints/weights.py"},
        "Image.open": {"lavis_ext/datasets/pictures.py", "lavis_ext/datasets/gqa/object_masks.py"},
        # Between processes of one run, which torchrun started.
        "dist.all_gather_object": {"lavis_ext/distributed/process_group.py"},
        "dist.broadcast_object_list": {"lavis_ext/distributed/process_group.py"},
        # A tokenizer's own class, from a folder.
        "transformers.BertTokenizer.from_pretrained": {"lavis_ext/checkpoints/tokenizers.py"},
        "transformers.T5Tokenizer.from_pretrained": {"lavis_ext/checkpoints/tokenizers.py"},
        "importlib.import_module": {
            "lavis_ext/config/keys.py",  # this package's modules
            "lavis_ext/config/loader.py",
            "lavis_ext/registry.py",
            "lavis_ext/common/environment.py",
        },
        "OmegaConf.load": set(),  # YAML is read by config/scalars.py
    }
    for reader, files in allowed.items():
        found = {path for path, name, _ in calls() if name == reader}
        assert {path for path in found if path.startswith("lavis_ext")} == files, reader
    for path, name, call in calls():
        if name == "Image.open" and path.startswith("lavis_ext"):
            assert given(call, "formats"), path
        if name.endswith("from_pretrained"):
            assert name in allowed or path == "lavis_ext/__init__.py", f"{path}: {name}"


def test_json_of_files_is_parsed_where_its_depth_and_numbers_are_bounded() -> None:
    own = {
        "lavis_ext/common/files.py",  # the one place
        "lavis_ext/datasets/questions/table.py",  # what the reader has parsed before
        "lavis_ext/features/run_features.py",  # what was dumped two lines before
        "lavis_ext/distributed/peers.py",  # what processes of one run tell each other
        "lavis_ext/pretraining/ship.py",
    }
    found = {path for path, name, _ in calls() if name in ("json.load", "json.loads")}
    assert {path for path in found if path.startswith("lavis_ext")} <= own


# --- configs and weights -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 999, "x\0"], ids=["too long", "NUL"])
def test_a_name_that_no_file_can_have_is_of_no_file(name: str, tmp_path: Path) -> None:
    for look in (is_file, is_folder):
        assert not look(tmp_path / name)
    with pytest.raises(UserError, match=r"model\.weights: there is no file x"):
        TrainedWeights.load(name)


def saved_weights(path: Path, **config: Any) -> Path:
    streams = {"grid": {"encoder": "blip"}, "segmentation": {"encoder": "efficient_sam"}}
    section: dict[str, Any] = {"arch": "pnp_vqa_fusion", "model_type": "mini", "streams": streams}
    section["fusion"] = {"name": "grid_only"}
    weights = TrainedWeights({"a": torch.ones(1)}, {"model": section, **config}, None, None, 1)
    weights.save(path)
    return path


def test_imports_of_weights_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imports of a config are imported; that is their purpose."""
    (tmp_path / "made_by_somebody.py").write_text("raise RuntimeError('it ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = saved_weights(tmp_path / "w.safetensors", imports=["made_by_somebody"])
    assert model_section(str(path), None, []).fusion.name == "grid_only"
    assert "made_by_somebody" not in sys.modules


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "a/${run.seed}", "???", "${oc.decode:'1'}"])
@pytest.mark.parametrize("where", ["model", "run"])
def test_references_in_saved_configs_are_not_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, where: str
) -> None:
    """A URL with an environment variable in it would leak the variable."""
    monkeypatch.setenv("SECRET", "1234")
    path = saved_weights(tmp_path / "w.safetensors")
    saved = TrainedWeights.load(path)
    saved.config.setdefault(where, {})["blip"] = {"weights": [{"deep": text}]}
    saved.save(path)
    with pytest.raises(UserError, match="unresolved reference"):
        model_section(str(path), None, [])


def test_a_shard_is_a_file_beside_its_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "weights"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), ".", 3, "a\0"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(
            UserError, match=r"not a weights file in the same folder|is not an index"
        ):
            read_state_dict(index)


# --- paths ---------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> ImageFolder:
    (tmp_path / "images").mkdir()
    for name in ("secret.jpg", "images/n1.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return ImageFolder(tmp_path / "images")


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_id_does_not_lead_out_of_the_image_folder(images: ImageFolder, name: str) -> None:
    assert name not in images
    assert images.missing([name, "n1"]) == [name]
    with pytest.raises(UserError, match="no image"):
        images.read(name)


def test_a_path_as_image_id_cannot_leave_the_image_folder(
    images: ImageFolder, tmp_path: Path
) -> None:
    records = [{"question_id": "1", "question": "What?", "image": "../secret.jpg"}]
    (tmp_path / "q.json").write_text(json.dumps(records))
    name = read_questions(tmp_path / "q.json").text("image_id", 0)
    assert name == "../secret"
    assert images.missing([name]) == [name]


def test_an_index_of_features_only_names_shards_of_its_store(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, {"stream": "grid", "views": 1, "dtype": "fp32"}, 1, 2)
    store.begin()
    save_file({"tokens": torch.ones(1, 1, 2)}, tmp_path / "secret.safetensors")
    row = {"image": "n1", "row": 0, "size": 1, "mtime_ns": 1, "digest": ""}
    for shard in ("../secret.safetensors", str(tmp_path / "secret.safetensors")):
        table = pa.Table.from_pylist([{**row, "shard": shard}], INDEX_SCHEMA)
        with pa.ipc.new_file(store.folder / INDEX, INDEX_SCHEMA) as writer:
            writer.write_table(table)
        with pytest.raises(UserError, match="the shard is missing or damaged"):
            StoredStream(store, (1, 1), prefix=0)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "DDS"])
def test_an_image_has_a_known_format_with_any_name(tmp_path: Path, kind: str) -> None:
    """Pillow starts Ghostscript for EPS, and has rarely reviewed decoders."""
    Image.new("RGB", (16, 16)).save(tmp_path / "n1.jpg", kind)
    with pytest.raises(UserError, match="not a supported image format"):
        read_image(tmp_path / "n1.jpg")


# --- downloads -----------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """Content served for any URL, with a separate cache."""
    content = save({"a": torch.ones(2)})

    class Response(BytesIO):
        headers = {"Content-Length": str(len(content))}

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Response(content))
    return content


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def test_blob_names_equal_gits() -> None:
    assert git_name(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


@pytest.mark.parametrize("kind", ["sha256", "gitsha1"])
def test_a_download_is_compared_with_its_pin(served: bytes, tmp_path: Path, kind: str) -> None:
    right = {"sha256": hashlib.sha256(served).hexdigest(), "gitsha1": git_name(served)}[kind]
    url = "https://example.org/w.safetensors"
    with pytest.raises(
        UserError, match=rf"{KEY}: {url} has the {kind} {right}, not 0+\. The download was"
    ):
        resolve(f"{url}#{kind}={'0' * len(right)}", key=KEY)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [], "it was kept"
    path = resolve(f"{url}#{kind}={right}", key=KEY)
    assert path.read_bytes() == served
    path.write_bytes(served + b"x")
    with pytest.raises(UserError, match=r"delete it to download it again"):
        resolve(f"{url}#{kind}={right}", key=KEY)


def test_a_download_without_a_pin_is_logged(
    served: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lavis_ext"), "propagate", True)
    resolve("https://example.org/w.safetensors", key=KEY)
    assert "no hash to verify it" in caplog.text
    assert hashlib.sha256(served).hexdigest() in caplog.text


NO_KNOWN_HASH = (
    "BLIP/models/model_large_retrieval_coco_train2014.pth",
    "BLIP/models/model_large_caption_coco_train2014.pth",
)
"""Nobody publishes hashes of LAVIS's weights. Their download says that nothing verifies it."""


def test_every_address_that_ships_is_pinned() -> None:
    files = [*(PROJECT / "lavis_ext").rglob("*.yaml"), *(PROJECT / "projects").rglob("*.yaml")]
    addresses = re.findall(
        r"'(https?://[^']+)'", repr([yaml.safe_load(file.read_text()) for file in files])
    )
    assert len(addresses) >= 4
    unpinned = {address for address in addresses if address.endswith(NO_KNOWN_HASH)}
    assert len(unpinned) == len(NO_KNOWN_HASH), "the others have hashes"
    for address in {*addresses} - unpinned:
        assert re.search(r"#(sha256=[0-9a-f]{64}|gitsha1=[0-9a-f]{40})$", address), address


def test_hub_downloads_are_verified_by_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    blob = tmp_path / "blob"
    blob.write_bytes(save({"a": torch.ones(2)}))
    asked: list[str | None] = []
    named = SimpleNamespace(sha256="0" * 64)

    def info(self: Any, name: str, revision: str | None, **_: Any) -> Any:
        asked.append(revision)
        file = SimpleNamespace(rfilename="model.safetensors", lfs=named)
        return SimpleNamespace(siblings=[file], sha="abc123")

    def download(name: str, filename: str, revision: str | None) -> str:
        asked.append(revision)
        return str(blob)

    monkeypatch.setattr(logging.getLogger("lavis_ext"), "propagate", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"group/name/model\.safetensors has the sha256"):
        resolve("group/name@v1", key=KEY)
    assert asked == ["v1", "v1"]
    assert not blob.exists(), "the cache still has it"
    blob.write_bytes(save({"a": torch.ones(2)}))
    named.sha256 = hashlib.sha256(blob.read_bytes()).hexdigest()
    assert "no revision is pinned" not in caplog.text
    assert resolve("group/name", key=KEY) == blob
    assert "no revision is pinned; this is group/name@abc123" in caplog.text


# --- what is shown -------------------------------------------------------------------------------

STEERING = "\x1b[2J\x07\r\x9b31m\u202egpj.x\ud83d\x00"


def test_control_characters_in_data_are_escaped(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        exit_with(UserError(f"no image '{STEERING}'"))
    set_up_logging(tmp_path, quiet=False)
    logging.getLogger("lavis_ext").info("question %s", STEERING)
    print(table([(STEERING, "1"), ("b", "22")]), printable(STEERING), listed([STEERING]))
    captured = capsys.readouterr()
    for text in (captured.err, captured.out, (tmp_path / "log.txt").read_text()):
        assert r"\x1b[2J" in text
        assert not set("\x1b\x07\r\x9b\u202e\x00") & set(text)
        text.encode()
    assert printable("¿Qué es?\tहिन्दी 😀\n") == "¿Qué es?\tहिन्दी 😀\n"


def test_an_id_takes_one_line_of_a_message() -> None:
    assert listed(["a\nerror: b", "x" * 98 + "y"]) == f"a\\nerror: b, {'x' * 27}...{'x' * 29}y"


def test_data_in_a_report_is_never_markup(tmp_path: Path) -> None:
    result, _ = result_of(3)
    odd = [
        replace(q, id=f"{NASTY}{n}", image_id=NASTY, answer=NASTY, structural=NASTY)
        for n, q in enumerate(result.outcomes.questions)
    ]
    outcomes = replace(result.outcomes, questions=odd, predictions=[NASTY] * 3)
    trace = replace(next(iter(result.traces.values())), captions=[NASTY])
    shown = [question.id for question in odd]
    result = replace(result, outcomes=outcomes, shown=shown, traces=dict.fromkeys(shown, trace))
    log = tmp_path / "log.jsonl"
    steps = [
        {"kind": kind, "step": n, f"{NASTY}_loss": n} for n in (1, 2) for kind in ("train", NASTY)
    ]
    log.write_text("".join(json.dumps(step) + "\n" for step in steps))
    split = reported("val", {NASTY: 1.0}, result, dict.fromkeys(shown, NASTY), None)
    html = page(report_content(NASTY, {NASTY: NASTY}, {NASTY: split}, log))
    assert NASTY not in html
    assert html.count("<script") == html.count("</script>") == 2
    (tmp_path / "report.html").write_text(html)
    content = content_of(tmp_path / "report.html")
    assert content["splits"][0]["examples"][0]["captions"] == [NASTY]
    assert content["curves"][0]["name"] == f"{NASTY}_loss"


PAGES = (("evaluation/report/report.js", "evaluation/report/template.html"),)
PAGES += (("sweep/sweep.js", "sweep/sweep.html"),)


@pytest.mark.parametrize(("script", "template"), PAGES)
def test_the_pages_script_inserts_data_as_text_and_fetches_nothing(
    script: str, template: str
) -> None:
    package = PROJECT / "lavis_ext"
    shared = (package / "evaluation/report/plots.js").read_text()
    program = shared + (package / script).read_text()
    unsafe = (
        r"\b(innerHTML|outerHTML|insertAdjacentHTML|eval|Function|fetch|XMLHttp\w+)\b|\.write\("
    )
    assert re.findall(unsafe, program) == []
    text = assembled({"title": "t"}, (package / template).read_text(), style="", program=program)
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    (embedded,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(embedded.encode()).digest()).decode()
    assert policy == f"{POLICY}; script-src 'sha256-{digest}'", "only this script, by its hash"
    assert POLICY.startswith("default-src 'none'; ")


@pytest.mark.parametrize(
    "line",
    ['{"kind": ["a"], "step": 1}', '{"kind": "train", "step": 1, "loss": NaN}', "[" * 9999, "\x00"],
)
def test_a_log_of_another_program_gives_no_curve_and_no_error(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(line.encode() + b"\n\xff\n")
    curves = read_curves(log)
    json.dumps(curves, allow_nan=False)
    assert not any(chart["series"] for chart in curves)
