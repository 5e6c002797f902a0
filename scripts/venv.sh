# Sourced by the other scripts: makes .venv where it is missing or out of date, and enters it.
# Usage: . scripts/venv.sh EXTRA     (an extra of pyproject.toml: vision, test, dev)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=".venv/.installed-$1-$(cksum <pyproject.toml | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
  base=""
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      base=$candidate
      break
    fi
  done
  if [ -z "$base" ]; then
    echo "No Python 3.11 or newer was found; install one, or set PYTHON to its path." >&2
    exit 2
  fi
  echo "Setting up .venv ($1): the first time, torch takes a few minutes …" >&2
  [ -x .venv/bin/python ] || "$base" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$1]"
  touch "$stamp"
fi
PATH="$PWD/.venv/bin:$PATH"
