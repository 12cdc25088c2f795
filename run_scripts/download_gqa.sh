#!/usr/bin/env bash
# Fetch GQA's questions and images into data/gqa, or into the folder given; --help has the options.
set -euo pipefail
exec python -m lavis_ext.datasets.gqa.download "$@"
