#!/bin/sh
# Install this checkout, editable, with some of its extras into a virtual environment, which is made where it does not exist.
#
#     install.sh VENV EXTRAS [PYTHON]
set -eu

venv=$1
extras=$2
python=${3-}

if [ "$(uname -s)" != Linux ]; then
    echo "modelsupervisor runs on Linux only: it needs pidfds, /proc and the child subreaper." >&2
    exit 1
fi

if [ ! -x "$venv/bin/pip" ]; then
    if [ -z "$python" ]; then
        python=$("$(dirname "$0")/find-python.sh" 3.12 3.11 3.10)
    fi
    echo "Making $venv with $("$python" --version) ($python)"
    "$python" -m venv "$venv"
fi

case ",$extras," in
*,mxnet,*)
    # MXNet's wheel brings its BLAS, but takes these from the system; without them its import fails after a long download.
    "$venv/bin/python" - <<'EOF'
import ctypes
import platform
import sys

missing = []
for name in ("libgomp.so.1", "libquadmath.so.0", "libstdc++.so.6"):
    try:
        ctypes.CDLL(name)
    except OSError:
        missing.append(name)
if missing:
    sys.exit(
        "MXNet needs %s of the system. Install them:\n"
        "    Debian, Ubuntu:  sudo apt-get install libgomp1 libquadmath0 libstdc++6\n"
        "    Fedora:          sudo dnf install libgomp libquadmath libstdc++" % ", ".join(missing)
    )
if sys.version_info >= (3, 13):
    sys.exit("MXNet 1.9.1 does not run on Python %d.%d; use 3.10, 3.11 or 3.12" % sys.version_info[:2])
EOF
    ;;
esac

echo "Installing modelsupervisor[$extras] into $venv (with MXNet some 70 MB the first time)"
"$venv/bin/python" -m pip install --quiet --editable ".[$extras]"
