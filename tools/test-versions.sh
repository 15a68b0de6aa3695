#!/bin/sh
# Run the suite on every Python from 3.10 to 3.13 that is installed, each in a virtual environment of its own (.venv-3.x). 3.13 runs
# without MXNet, which has no release for it; the tests that need it are skipped there with a word.
set -u

tools=$(dirname "$0")
found=$("$tools/find-python.sh" --all 3.10 3.11 3.12 3.13) || exit 1
echo "Found:"
echo "$found" | sed 's/^/    /'

failed=
while read -r version python <&3; do
    extras=test,examples,mxnet
    if [ "$version" = 3.13 ]; then extras=test,examples; fi
    venv=.venv-$version
    echo
    echo "== Python $version"
    if ! { "$tools/install.sh" "$venv" "$extras" "$python" && "$venv/bin/python" -m pytest -q -m "not slow" "$@"; }; then
        failed="$failed $version"
    fi
done 3<<EOF
$found
EOF

echo
if [ -n "$failed" ]; then
    echo "Failed on:$failed"
    exit 1
fi
echo "Passed on: $(echo "$found" | cut -d' ' -f1 | tr '\n' ' ')"
