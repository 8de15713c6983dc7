#!/usr/bin/env bash
# The default tests with the lowest versions of direct dependencies that pyproject.toml allows, on the lowest Python.
# They run in an environment of their own, build/lowest, which needs uv. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
cd "$root"
uv=$(command -v uv || command -v .venv/bin/uv) || die "uv resolves the lowest versions; install it (pip install uv) and run again"

say "resolving the lowest versions for Python 3.11"
mkdir -p build
"$uv" pip compile --quiet pyproject.toml --extra dev --resolution lowest-direct --python-version 3.11 \
  --no-header --no-annotate --output-file build/lowest.txt
[[ -x build/lowest/bin/python ]] || "$uv" venv --quiet --python 3.11 build/lowest
python=build/lowest/bin/python
"$uv" pip sync --quiet --python "$python" build/lowest.txt
"$uv" pip install --quiet --python "$python" --no-deps --editable .

workers=$("$python" -c 'import os; print(min(8, os.cpu_count() or 1))')
say "pytest"; PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 "$python" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
