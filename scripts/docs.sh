#!/usr/bin/env bash
# Builds the documentation site in build/docs; every warning is an error. Arguments go to sphinx-build.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
setup_venv docs

.venv/bin/python -m sphinx -W --keep-going -n -q -b html -d build/doctrees docs build/docs "$@"
say "built build/docs/index.html"
