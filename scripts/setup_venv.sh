# Sourced by test.sh and demo.sh: makes or reuses .venv in the project root and installs clipvid in it.
# Contract: `setup_venv EXTRAS` (dev, or train,plots; base for none of them) leaves the shell in the project root with
# .venv ready; it does nothing if pyproject.toml and the project's path are those of the last install. It uses uv if
# available, or else venv and pip. Package registries are left to the machine's configuration.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "== $*"; }
die() { printf '%s\n' "error: $*" >&2; exit 1; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || printf 'does not start\n'; }

find_python() { # print a Python >= 3.11; the error names every Python that was tried
  local name found=""
  for name in python3 python3.13 python3.12 python3.11 python3.14 python; do
    command -v "$name" >/dev/null 2>&1 || continue
    if is_new_enough "$name"; then command -v "$name"; return; fi
    found+=" $name ($(version_of "$name"))"
  done
  if command -v uv >/dev/null 2>&1 && uv python find '>=3.11' 2>/dev/null; then return; fi
  die "clipvid needs Python 3.11 or newer; found:${found:- none}. Install one, or put it first on PATH."
}

make_venv() {
  local python
  if [[ -x .venv/bin/python ]]; then
    is_new_enough .venv/bin/python && return
    die ".venv has Python $(version_of .venv/bin/python), clipvid needs 3.11 or newer; remove .venv and run again"
  fi
  python=$(find_python)
  say "making .venv with Python $(version_of "$python")"
  if command -v uv >/dev/null 2>&1 && uv venv --quiet --python "$python" .venv; then return; fi
  "$python" -m venv .venv || die "$python -m venv failed; on Debian and Ubuntu: apt install python3-venv, or install uv"
  .venv/bin/python -m pip install --quiet uv || say "no uv, pip installs (slower)"
}

install() { # with uv, or with pip if uv is missing or cannot find what this machine's pip finds
  local uv
  if uv=$(command -v uv || command -v .venv/bin/uv); then
    # Bytecode is compiled once: where Python may not write it, as in many containers, every start would compile torch.
    "$uv" pip install --quiet --compile-bytecode --python .venv/bin/python "$@" && return
    say "uv could not install, trying pip"
  fi
  .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
  .venv/bin/python -m pip install --quiet "$@"
}

fingerprint() { # hash what an install depends on; the root is part of it, so a copied .venv is installed again
  .venv/bin/python -c 'import hashlib, sys
print(hashlib.sha256(open("pyproject.toml", "rb").read() + sys.argv[1].encode()).hexdigest())' "$root"
}

is_installed() { [[ -f .venv/.clipvid-$1 && $(<".venv/.clipvid-$1") == "$2" ]]; }

setup_venv() {
  local extras=$1 target=. now start=$SECONDS
  cd "$root"
  make_venv
  now=$(fingerprint)
  if is_installed dev "$now" || is_installed "$extras" "$now"; then return; fi
  [[ $extras == base ]] || target=".[$extras]"
  say "installing clipvid ($extras) into .venv; the first time takes some minutes"
  install --editable "$target"
  printf '%s\n' "$now" >".venv/.clipvid-$extras"
  say "installed in $((SECONDS - start)) s"
}
