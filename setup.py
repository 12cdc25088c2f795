"""The package's metadata, all of it; pyproject.toml holds only the settings of tools."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="lavis_ext",
    version=runpy.run_path(str(HERE / "lavis_ext" / "common" / "version.py"))["__version__"],
    description=(
        "PNP-VQA with a second visual stream: EfficientSAM and BLIP fused by DIFNet, "
        "as an extension of LAVIS"
    ),
    license="BSD-3-Clause",
    python_requires=">=3.11,<3.14",
    packages=find_packages(str(HERE), include=["lavis_ext", "lavis_ext.*"]),
    package_data={
        "lavis_ext": [
            *("**/*.yaml", "**/*.txt", "**/*.json", "**/*.safetensors"),
            *("**/*.html", "**/*.css", "**/*.js"),
        ]
    },
    # salesforce-lavis is needed too and cannot stand here: what it pins (transformers<4.27,
    # timm==0.4.12) excludes every release below. It is installed after these, with --no-deps, and
    # `pip check` then lists its pins as broken, which is expected.
    #
    # Each lower bound is a release with which the whole was run, all of them together.
    install_requires=[
        "filelock>=4.1",
        "huggingface_hub>=1.3",
        "matplotlib>=3.10",
        "numpy>=2.1",
        "omegaconf>=2.3",
        "packaging>=24.0",
        "pillow>=11.0",
        "pyarrow>=18.0",
        "pycocotools>=2.0.8",
        "PyYAML>=6.0.2",
        "safetensors>=0.4.5",
        "scipy>=1.14.1",
        "timm>=1.0.20",
        "torch>=2.11",
        "torchvision>=0.26",
        "transformers>=5.0",
        "wandb>=0.19",
        # What the parts of LAVIS in use import besides.
        "iopath>=0.1.10",
        "tqdm>=4.67",
        "webdataset>=0.2.100",
    ],
    extras_require={
        "dev": [
            "hypothesis>=6.130",
            "mypy>=2.4",
            "pytest>=8.3.1",
            "pytest-timeout>=2.3.1",
            "ruff>=0.17.5",
            "tensorboard>=2.19",
            "types-PyYAML>=6.0.12",
        ],
        "tensorboard": ["tensorboard>=2.19"],
    },
)
