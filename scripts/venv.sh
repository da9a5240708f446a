# Sourced by the other scripts: makes .venv with the tested versions, or does nothing when it is up to date.
#   ensure_venv EXTRAS    e.g. ensure_venv dev,tvm
# MOBILEC_PYTHON names the interpreter (default python3); MOBILEC_VENV the folder (default .venv).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${MOBILEC_VENV:-$PWD/.venv}"

ensure_venv() {
    local extras="$1" python="${MOBILEC_PYTHON:-python3}" stamp wanted
    if ! command -v "$python" >/dev/null; then
        echo "error: $python not found; install Python 3.11 or newer, or name one in MOBILEC_PYTHON" >&2
        exit 1
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: $("$python" --version) is too old; Python 3.11 or newer is needed (name one in MOBILEC_PYTHON)" >&2
        exit 1
    fi
    stamp="$VENV/.installed-${extras//,/-}"
    wanted="$(cat pyproject.toml mobilec/constraints.txt scripts/venv.sh | cksum) $PWD"
    if [ -x "$VENV/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "Setting up $VENV with [$extras] (a few minutes the first time) ..." >&2
    if ! [ -x "$VENV/bin/python" ] && ! "$python" -m venv "$VENV"; then
        echo "error: $python -m venv failed; on Debian and Ubuntu install python3-venv first" >&2
        exit 1
    fi
    # torch first and by its exact version: resolving it together with the rest may pick a newer, larger build.
    "$VENV/bin/python" -m pip install --quiet "$(grep '^torch==' mobilec/constraints.txt)"
    "$VENV/bin/python" -m pip install --quiet --constraint mobilec/constraints.txt --editable ".[$extras]"
    echo "$wanted" >"$stamp"
}
