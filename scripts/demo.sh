#!/usr/bin/env bash
# The whole of clipvid on generated videos, without any download of weights or data. Arguments go to `clipvid demo`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
setup_venv base
exec .venv/bin/clipvid demo "$@"
