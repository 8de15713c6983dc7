#!/usr/bin/env bash
# Every check that a commit must pass: lint, format, types, tests. Arguments go to pytest: bash scripts/test.sh -k layers
# All four run even if one fails, pytest last; the exit code is that of the first failure.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
setup_venv dev

status=0
check() { # run a step; remember the exit code of the first one that fails
  local code=0
  "$@" || code=$?
  if ((code != 0 && status == 0)); then status=$code; fi
}

python=.venv/bin/python
say "ruff";    check "$python" -m ruff check --quiet
say "format";  check "$python" -m ruff format --quiet --check
# pyright needs node: where it can neither be found nor fetched, the other three checks still run.
starts='import subprocess, sys; sys.exit(subprocess.run([sys.executable, "-m", sys.argv[1], "--version"], timeout=120).returncode)'
if "$python" -c "$starts" pyright >/dev/null 2>&1; then
  say "pyright"; check "$python" -m pyright
else
  say "pyright SKIPPED: it does not start on this machine (it needs node); types were not checked"
fi
# One thread per process: processes that share cores slow each other down if each uses all of them.
workers=$("$python" -c 'import os; print(min(8, os.cpu_count() or 1))')
# Where the shared data is present, a test that does not find its part of it fails instead of being skipped.
if [[ -d ../shared/data ]]; then export CLIPVID_REQUIRE_DATA=1; fi
# Bytecode is written even where the environment forbids it: without it every run rewrites the assertions of every test,
# and every child process compiles clipvid again (12 s of CPU per worker).
# Files go to the workers in alphabetical order; xdist's own, most tests first, leaves long single tests for the end.
say "pytest";  PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 check "$python" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
exit "$status"
