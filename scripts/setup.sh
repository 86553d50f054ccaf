#!/bin/sh
# Usage: sh scripts/setup.sh run|dev   (every recipe in the justfile calls this)
# Creates .venv with an editable install of the package; "dev" adds the test tools.
# Does nothing if pyproject.toml, the path of this folder and $PYTHON have not changed.
set -eu
cd "$(dirname "$0")/.."
what=${1:-dev}
case "$what" in
run)
    extras=cli,admin
    tool=dgx-storage
    # psycopg (20 MB) only for PostgreSQL
    case "${DATABASE_URL-}" in postgres*)
        what=postgres
        extras=cli,admin,postgres
        ;;
    esac
    ;;
dev)
    extras=dev
    tool=pytest
    ;;
*)
    echo "usage: sh scripts/setup.sh run|dev" >&2
    exit 2
    ;;
esac

# The real path, because the editable install of another path would run another checkout.
want="$(pwd -P)|${PYTHON-}"
for ready in ".venv/.ready-$what" .venv/.ready-postgres .venv/.ready-dev; do
    [ "$what" = dev ] && [ "$ready" != .venv/.ready-dev ] && continue
    # -x: other tools, such as uv sync, may have removed the installed tools
    if [ "$ready" -nt pyproject.toml ] && [ "$(cat "$ready")" = "$want" ] && [ -x ".venv/bin/$tool" ]; then exit 0; fi
done

if [ -n "${PYTHON-}" ]; then set -- "$PYTHON"; else set -- python3 python python3.14 python3.13 python3.12 python3.11; fi
for python in "$@"; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break || python=
done
if [ -z "$python" ]; then
    echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python" >&2
    exit 1
fi
echo "setting up .venv with $("$python" --version) (once) ..." >&2
case "$(cat .venv/.ready-* 2>/dev/null)" in "$want"*) ;; *) rm -rf .venv ;; esac
[ -x .venv/bin/python ] || "$python" -m venv .venv
if ! { command -v uv && UV_COMPILE_BYTECODE=1 uv pip install -q --python .venv/bin/python -e ".[$extras]"; } >/dev/null; then
    .venv/bin/python -m pip install -q --disable-pip-version-check -e ".[$extras]"
fi
printf %s "$want" >".venv/.ready-$what"
