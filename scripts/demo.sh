#!/usr/bin/env bash
# All of clipvid on generated videos, without downloads of weights or data. Arguments go to `clipvid demo`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
setup_venv train,plots
exec .venv/bin/clipvid demo "$@"
