#!/usr/bin/env bash
# From a bare machine with Python >= 3.10 to a merged model: `./start.sh` runs the demo, `./start.sh test` the checks,
# `./start.sh COMMAND ...` any other command of the pack. What is installed lies in .venv and nowhere else.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
lock="$root/requirements.lock"
venv="$root/.venv"

find_python() {
    for name in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
        if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "start.sh: expected Python 3.10 or newer, found none: install it, or name it with PYTHON=..." >&2
    return 1
}

install() {
    local python stamp
    stamp="$(cksum < "$lock")"
    if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/installed" 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    python="$(find_python)"
    if [ ! -x "$venv/bin/python" ]; then
        "$python" -m venv "$venv" || { echo "start.sh: cannot make $venv: on Debian and Ubuntu install python3-venv" >&2; return 1; }
    fi
    echo "installing into $venv (torch first, then the rest)"
    # torch comes first and alone: pip then takes the build for this machine and does not look for another one.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' "$lock")"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$lock"
    echo "$stamp" > "$venv/installed"
}

run_tests() {
    cd "$root"
    "$venv/bin/python" -m ruff check .
    if command -v node >/dev/null && compgen -G "tests/web/*.test.*js" >/dev/null; then
        node --test tests/web/*.test.*js
    else
        echo "SKIPPED: the tests of web/, they need node"
    fi
    if [ ! -f "${COMFYUI_PATH:-$HOME/comfy/ComfyUI}/main.py" ]; then
        echo "SKIPPED: the tests in a real ComfyUI, set COMFYUI_PATH to its folder"
    elif [ "$#" -eq 0 ]; then
        run_side_by_side
        return
    fi
    exec "$venv/bin/python" -m pytest "$@"
}

# The tests in a real ComfyUI wait for servers most of the time: the others run meanwhile, with those of GGUF, which start no server for
# most, and are told when they are through.
run_side_by_side() {
    local told status=0
    told="$(mktemp)"
    "$venv/bin/python" -m pytest tests --ignore-glob='tests/comfyui/test_[!g]*' > "$told" 2>&1 &
    "$venv/bin/python" -m pytest tests/comfyui --ignore-glob='tests/comfyui/test_gguf*' || status=$?
    wait $! || status=$?
    cat "$told"
    rm -f "$told"
    return "$status"
}

install
case "${1:-demo}" in
    test) shift; run_tests "$@" ;;
    demo) shift || true; exec "$venv/bin/python" "$root" demo "${1:-$root/demo}" ;;
    *) exec "$venv/bin/python" "$root" "$@" ;;
esac
