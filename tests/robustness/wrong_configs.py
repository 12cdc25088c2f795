"""Wrong configs: options, YAML files, and incompatible settings."""

from tests.robustness.damages import (
    evaluating,
    mine,
    small,
    writing,
)
from tests.robustness.wrong_inputs import SMALL, Case

OPTIONS: dict[str, str] = {
    # Unknown keys at every level.
    "rum.max_epoch=3": "unknown section 'rum'. Did you mean 'run'?",
    "fast_train=true": "unknown section 'fast_train'. There are: model, datasets, task, run",
    "run.save_every_minutes=0": "run.save_every_minutes is 0.0; it must be above 0.",
    "run.data_faults.retries=-1": "run.data_faults.retries is -1; it must be at least 0.",
    "run.data_faults.then=skp": "then is 'skp'; it must be one of: stop, skip. Did you mean 'skip'",
    "run.data_faults.most_skipped=-1": "most_skipped is -1; it must be at least 0.",
    "run.data_faults.stall_seconds=0": "stall_seconds is 0.0; it must be above 0.",
    "run.watchdog_seconds=0": "run.watchdog_seconds is 0.0; it must be above 0.",
    "run.data_faults=null": "run.data_faults",
    "run.max_skipped_steps=0": "run.max_skipped_steps is 0; it must be at least 1.",
    "run.name=a/b": "run.name is 'a/b'; it must be the name of a folder.",
    "run.max_epochs=3": "run.max_epochs: there is no such key. Did you mean 'max_epoch'?",
    "run.fast_train=true": "run.fast_train: there is no such key.",
    "run.wandb.projct=x": "run.wandb.projct: there is no such key. Did you mean 'project'?",
    "model.blib.image_size=3": "model.blib: there is no such key.",
    "model.blip.image_sise=96": "model.streams.grid.image_sise: there is no such key. Did you mean",
    "model.efficient_sam.dept=3": "model.streams.segmentation.dept: there is no such key.",
    "model.fusion.dmodel=128": "model.fusion.dmodel: there is no such key. Did you mean 'd_model'?",
    "model.objectives.answer.widht=8": "model.objectives.answer.widht: there is no such key. Did y",
    "datasets.gqa_fusion.rot=x": "datasets.gqa_fusion.rot: there is no such key. Did you mean 'roo",
    "datasets.gqa_fusion.mini_gqa.image=9": "mini_gqa.image: there is no such key. Did you mean 'i",
    "datasets.gqa_fusion.mini_gqa.world=tall": "mini_gqa.world is 'tall'",
    "datasets.gqa_fusion.mismatched.hrad=1": "mismatched.hrad: there is no such key. Did you mean",
    "datasets.gqa_fusion.vis_processor.trian.grid_size=9": "vis_processor.trian: there is no such",
    "datasets.gqa_fusion.vis_processor.train.grid_sise=9": "train.grid_sise: there is no such key.",
    "datasets.gqa_fusion.text_processor.eval.max_word=9": "Did you mean 'max_words'?",
    # Unregistered names.
    "model.arch=pnp_vqa": "model.arch: No model is registered as 'pnp_vqa'. Registered: ",
    "model.model_type=large": "model.model_type is 'large'; there are: base_esam, base_es",
    "model.fusion.name=difnett": "No fusion is registered as 'difnett'. Registered: channel_concat",
    "model.objectives.itn.weight=1": "No objective is registered as 'itn'. Registered: answer, cap",
    "model.objectives.caption.weight=1": "model.objectives.caption trains model.fusions.captioner",
    "model.fusions.captionner.name=sum": "captionner: there is no such part. Did you",
    "model.fusions.captioner.nmae=sum": "model.fusions.captioner.nmae: there is no such key. Did y",
    "model.answerer=vqaa": "model.answerer is 'vqaa'; it must be one of: reader, vqa. Did you mean",
    "model.vqa.inference=ranking": "inference is 'ranking'; it must be one of: generate, rank.",
    "run.task=gqa": "run.task: No task is registered as 'gqa'. Registered: gqa_fusion",
    "run.runner=fusion_runer": "run.runner: No runner is registered as 'fusion_runer'. Registered:",
    "run.runner=runner_base": "run.runner is 'runner_base', which has no typed config",
    "run.lr_sched=cosine": "run.lr_sched: No learning-rate scheduler is registered as 'cosine'.",
    "datasets.gqa_fussion.root=x": "No dataset builder is registered as 'gqa_fussion'",
    "datasets.gqa_fusion.type=minni": "type is 'minni'; there are: balanced, all, mini, fine. Did",
    "datasets.gqa_fusion.vis_processor.train.name=blip": "train.name: No processor is registered a",
    "datasets.gqa_fusion.subset=al": "subset is 'al'; it must be one of: balanced, all.",
    "imports=[nope_module]": "imports: the module 'nope_module' can't be imported",
    # Values of another type.
    "run.max_epoch=three": "run.max_epoch is 'three'; it must be a whole number.",
    "run.max_epoch=1.5": "run.max_epoch is 1.5; it must be a whole number.",
    "run.max_epoch=null": "run.max_epoch is null; it must be a whole number.",
    "run.init_lr=fast": "run.init_lr is 'fast'; it must be a number.",
    "run.amp=maybe": "run.amp is 'maybe'; it must be true or false.",
    "run.trainable=fusion": "run.trainable is 'fusion'; it must be a list, each entry a string",
    "run.trainable=[a,[b]]": "is ['a', ['b']]; it must be a list, each entry a string",
    "run.trainable.0=a": "run.trainable is a list and can't be replaced by a mapping",
    "run.wandb=true": "run.wandb is true; it must be a mapping of keys to values, or null.",
    "run=3": "the section 'run' is missing, or isn't a mapping.",
    "datasets.gqa_fusion=balanced": "datasets.gqa_fusion is 'balanced'; it must be a mapping",
    "datasets.gqa_fusion.vis_processor=x": "vis_processor is 'x'; it must be a mapping",
    "datasets.gqa_fusion.vis_processor.train=x": "a mapping with `name`, a registered processor",
    "datasets.gqa_fusion.questions=x.json": "questions is 'x.json'; it must be a mapping",
    "model.blip=3": "model.streams.grid is 3; it must be a mapping of keys to values.",
    "model.objectives=[itm]": "model.objectives is a mapping and can't be replaced by a list",
    "model.fusion=difnet": "model.fusion is 'difnet'; it must be a mapping",
    "model.fusion_weights=3": "model.fusion_weights",
    "model.question_encoder=bert": "model.question_encoder is 'bert'; it must be a mapping",
    "model.question_encoder.encoder=lstm": "No question encoder is registered as 'lstm'",
    "model.objectives.answer=3": "model.objectives.answer is 3; it must be a mapping",
    "imports=['']": "imports is ['']; it must be a list of module names.",
    "imports=os": "imports is 'os'; it must be a list of module names.",
    # Values out of range, and incompatible values.
    "run.max_epoch=0": "run.max_epoch is 0; it must be at least 1.",
    "run.init_lr=-1": "run.init_lr is -1.0; it must be above 0.",
    "run.init_lr=.inf": "run.init_lr is inf; it must be a finite number.",
    "run.min_lr=1": "run.min_lr (1.0) must not exceed init_lr",
    "run.device=gpu": "run.device is 'gpu'; it must be one of: auto, cpu, cuda.",
    "datasets.gqa_fusion.missing_images_limit=2": "missing_images_limit is 2.0; it must be at most",
    "datasets.gqa_fusion.vis_processor.train.grid_size=0": "sizes.grid is 0, but",
    "model.blip.image_size=97": "model.streams.grid.image_size is 97; it must be a multiple of",
    "model.fusion.heads=3": "model.fusion.heads is 3; it must divide the fusion's width 128",
    "model.fusion={name: expert_attention, heads: 64, d_model: 128}": "into multiples of 4",
    "model.objectives.answer.head=glimpse": "head is 'glimpse'; it must be one of: transformer,",
    "model.objectives.answer.heads=3": "answer.width is 128; it must be a multiple of",
    "datasets.gqa_fusion.mismatched.text=words": "it must be one of: question, statement.",
    "run.small_train_size=0": "run.small_train_size is 0; it must be above 0.",
    "run.small_val_size=0": "run.small_val_size is 0; it must be above 0.",
    "run.small_test_size=-5": "run.small_test_size is -5; it must be above 0.",
    "run.small_train_size=many": "run.small_train_size is 'many'; it must be a number, or null.",
    "run.small_train_size=2.5": "small_train_size is 2.5: a share of the images is at most 1.0.",
    "run.batch_size_train=many": "run.batch_size_train is 'many'; it must be a whole number, or",
    "run.images_per_batch=0": "run.images_per_batch is 0; it must be at least 1.",
    "run.sample_by=questions": "run.sample_by is 'questions'; it must be one of: images, examples.",
    "run.small_train_size=true": "run.small_train_size is true; it must be a number, or null",
    # LAVIS's choices.
    "model.captioner.sampling.drop_contained=some": "drop_contained is 'some'; it must be true or",
    "model.reader.internal_bsz_fid=captions": "it must be one of: questions, passages.",
    # LoRA and parameter groups.
    "model.lora=[{modules: [a], rank: 0}]": "model.lora[0].rank is 0; it must be at least 1.",
    "model.lora=[{modules: [a], rnk: 4}]": "model.lora[0].rnk: there is no such key. Did you mean",
    "model.lora=[{rank: 4}]": "model.lora[0].modules is empty; give patterns",
    "run.parameter_groups=[{init_lr: 1}]": "run.parameter_groups[0].parameters is empty; give",
    "run.parameter_groups=[{parameters: [a], init_lr: 0}]": "[0].init_lr is 0.0; it must be above",
    "run.parameter_groups=3": "run.parameter_groups is 3; it must be a list, each entry a mapping",
    "run.shard_units=['fusion.*']": "run.shard_units is set, but nothing is sharded without run.",
    "run.sharding=fsdp": "run.sharding is 'fsdp'; it must be one of: fsdp2. Did you mean 'fsdp2'?",
    # Splits have one role each.
    "run.train_splits=[val]": "has two roles",
    "run.valid_splits=[train]": "train has two roles",
    "run.valid_splits=[testdev]": "testdev has two roles",
    "run.valid_splits=[val,testdev]": "run.valid_splits must name exactly one split",
    "run.test_splits=[train]": "train has two roles",
    "run.test_splits=[val,testdev]": "val has two roles",
    # Unresolvable interpolations.
    "run.output_dir=${nope.x}": "run.output_dir: Interpolation key 'nope.x' not found.",
    "run.output_dir=${oc.env:NOPE}": "run.output_dir: Environment variable 'NOPE' not found.",
    "run.output_dir=${run.output_dir}": "run.output_dir: Recursive interpolation detected.",
    "model.arch=${nope}": "Interpolation key 'nope' not found.",
    "run.max_epoch=???": "run.max_epoch is ???, which means missing; set a value.",
    "datasets.gqa_fusion.root=${": "--options: the value in 'datasets.gqa_fusion.root=${' is",
    # Options of another form.
    "run.max_epoch": "--options: 'run.max_epoch' isn't of the form KEY=VALUE, such as run.max_epoc",
    "=3": "--options: '=3' isn't of the form KEY=VALUE",
    "run..max_epoch=3": "--options: 'run..max_epoch=3' isn't of the form KEY=VALUE",
    "run.max_epoch=[1": "--options: the value in 'run.max_epoch=[1' is invalid YAML",
    'run.x=!!python/object/apply:os.system ["touch made"]': "--options: the value in 'run.x=",
}
"""Expected part of the message by option."""

TEXT = SMALL.read_text(encoding="utf-8")
YAMLS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "not a config; it needs the sections model, datasets and run."),
    "comments alone": ("# nothing\n", "not a config; it needs the sections model, datasets and"),
    "a list": ("- model\n- run\n", "not a config; it needs the sections"),
    "a number": ("3", "the config can't be read (it isn't a mapping of keys to values)."),
    "syntax": (f"{TEXT}  bad: [1\n", f"invalid YAML at line {len(TEXT.splitlines()) + 2}"),
    "tab": ("model:\n\tarch: x\n", "invalid YAML at line 2"),
    "key twice": (f"{TEXT}\nrun:\n  seed: 3\n", "(found duplicate key run)"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", "invalid YAML (it isn't text)."),
    "python object": (
        TEXT.replace("max_epoch: 5", 'max_epoch: !!python/object/apply:os.system ["touch made"]'),
        "!!python/object/apply:os.system is not allowed, only plain values",
    ),
    "python name": (TEXT.replace("max_epoch: 5", "max_epoch: !!python/name:os.system"), "at line"),
    "binary value": (f"{TEXT}  name: !!binary aGk=\n", "!!binary is not allowed"),
    "no such date": (f"{TEXT}  name: !!timestamp 2024-99-99\n", "month must be in 1..12"),
    "endless": (f"{TEXT}  name: &a [*a]\n", "more than 10,000 values"),
    "a bomb of aliases": (
        "\n".join(
            [
                "a0: &a0 [1]",
                *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)),
            ]
        ),
        "more than 10,000 values",
    ),
    "nested without end": ("[" * 5000, "50 levels"),
    "a number without end": (
        TEXT.replace("max_epoch: 5", f"max_epoch: {'9' * 5000}"),
        "thousands of digits",
    ),
    "a value to come": (TEXT.replace("max_epoch: 5", "max_epoch: ???"), "run.max_epoch is ???"),
    "half an interpolation": (TEXT.replace("max_epoch: 5", "max_epoch: ${run."), "not a config"),
    "no data sets": (
        "model: {arch: pnp_vqa_fusion}\nrun: {}\n",
        "the section 'datasets' is missing",
    ),
    "run without keys": (
        "model: {arch: pnp_vqa_fusion, model_type: mini}\ndatasets: {gqa_fusion: }\nrun:\n",
        "the section 'run' is missing, or isn't a mapping.",
    ),
    "no arch": ("model: {}\ndatasets: {}\nrun: {}\n", "model.arch is missing"),
    "another section": (f"{TEXT}\npreprocess: {{}}\n", "unknown section 'preprocess'."),
}

NO_OBJECTIVE = """
model: {arch: pnp_vqa_fusion, model_type: mini, objectives: {}}
datasets: {gqa_fusion: {type: mini, root: gqa, mini_gqa: null}}
run: {metric: loss, device: cpu, num_workers: 0, max_steps: 2}
"""

CONFIGS = [
    *(
        Case("config, by --options", option, "train", small(option), s)
        for option, s in OPTIONS.items()
    ),
    Case(
        "config, by --options", "both forms", "train", small("run.seed=1", "3"), "'3' isn't of the"
    ),
    *(
        Case(
            "config, YAML", name, "train", ["--cfg-path", "my.yaml"], s, writing("my.yaml", content)
        )
        for name, (content, s) in YAMLS.items()
    ),
    Case(
        "config, YAML",
        "no objective",
        "train",
        ["--cfg-path", "my.yaml"],
        "model.objectives is empty, and the fusion is trained by their losses",
        writing("my.yaml", NO_OBJECTIVE),
    ),
    Case("config, YAML", "not there", "train", ["--cfg-path", "gone.yaml"], "No such file"),
    Case("config, YAML", "a folder", "train", ["--cfg-path", "gqa"], "Is a directory"),
    Case(
        "config",
        "one question alone",
        "train",
        mine("run.small_train_size=1", "run.sample_by=examples"),
        "no mismatched",
    ),
    Case("config", "nothing to train", "train", mine("run.trainable=[nothing.*]"), "run.trainable"),
    *(
        Case("config", name, "train", mine(option), says)
        for name, option, says in (
            (
                "LoRA on nothing",
                "model.lora=[{modules: ['*.qury']}]",
                "no linear or convolution layer matches '*.qury'. Nearest: ",
            ),
            (
                "LoRA twice on a layer",
                "model.lora=[{modules: ['*.query']}, {modules: ['*.layer.0.*']}]",
                "model.lora[0] and model.lora[1] both match",
            ),
            (
                "rates for nothing",
                "run.parameter_groups=[{parameters: [fuson.*]}]",
                "no trained parameter matches 'fuson.*'. Nearest: ",
            ),
            (
                "two rates for a parameter",
                "run.parameter_groups=[{parameters: [fusion.*]}, {parameters: ['*.bias']}]",
                "run.parameter_groups[0] and run.parameter_groups[1] both match fusion.",
            ),
            (
                "sharding in one process",
                "run.sharding=fsdp2",
                "run.sharding shards a model across processes, but there is only one;",
            ),
        )
    ),
    Case("config", "no such metric", "train", mine("run.metric=f1"), "run.metric is 'f1'"),
    Case(
        "config",
        "a metric without its files",
        "train",
        mine("run.metric=consistency"),
        "isn't computed on 'val'",
    ),
    Case("config", "no such split", "train", mine("run.test_splits=[challenge]"), "'challenge'"),
    Case(
        "config",
        "a file of a split that isn't there",
        "train",
        mine("datasets.gqa_fusion.questions={vall: x.json}"),
        "there is no split 'vall'",
    ),
    Case(
        "config",
        "another mini-GQA",
        "train",
        mine("datasets.gqa_fusion.mini_gqa={root: gqa, images: 50}"),
        "images 40 where 50",
    ),
    Case(
        "config",
        "an objective that is a number",
        "train",
        mine("model.objectives.answer=null", "model.objectives.itm=3"),
        "itm is 3",
    ),
    Case(
        "config",
        "evaluating what was trained on",
        "evaluate",
        evaluating("run.valid_splits=[train]"),
        "train has two roles",
    ),
    Case("config", "no GPU", "train", mine("run.device=cuda"), "no CUDA device"),
    Case("config", "evaluating without weights", "evaluate", ["--cfg-path", "eval.yaml"], "or mod"),
    Case(
        "config",
        "resuming an evaluation that isn't there",
        "evaluate",
        evaluating("run.resume=gqa"),
        "no interrupted evaluation",
    ),
    Case(
        "config",
        "an output folder that is a file",
        "train",
        mine("run.output_dir=picture.jpg"),
        "can't create a folder",
    ),
]
