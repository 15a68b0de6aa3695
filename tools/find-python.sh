#!/bin/sh
# Find an interpreter that can really be used, and print its path.
#
#     find-python.sh 3.12 3.11 3.10        the first of these versions that works
#     find-python.sh --all 3.10 3.11 ...   every one that works, one "VERSION PATH" a line
#
# A name on PATH proves nothing: version switchers put commands there that only fail, and Debian packages Python without the module
# that makes virtual environments. So each candidate is run and has to import what we need. Where pyenv is, the versions that it
# keeps out of sight come last.
set -u

all=no
if [ "${1-}" = --all ]; then
    all=yes
    shift
fi

# The version of an interpreter and its real path; nothing where it cannot be used.
probe() {
    "$1" -c '
import sys
import ctypes, ensurepip, ssl, venv
print("%d.%d" % sys.version_info[:2], sys.executable)
' 2>/dev/null </dev/null
}

# The version alone, whatever it lacks: for the message.
version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null
}

on_path() {
    command -v "python$1" || :
    old_ifs=$IFS
    IFS=:
    for folder in $PATH; do
        for name in "python$1" python3; do
            if [ -x "$folder/$name" ]; then echo "$folder/$name"; fi
        done
    done
    IFS=$old_ifs
}

out_of_sight() {
    if command -v pyenv >/dev/null 2>&1; then
        pyenv whence --path "python$1" 2>/dev/null || :
    fi
}

incomplete=

# Print "VERSION PATH" of the first usable candidate that "$1" gives for the version "$2".
search() {
    list=$("$1" "$2")
    while IFS= read -r candidate; do
        [ -n "$candidate" ] || continue
        answer=$(probe "$candidate")
        if [ "${answer%% *}" = "$2" ]; then
            echo "$answer"
            return 0
        fi
    done <<EOF
$list
EOF
    return 1
}

if [ "$all" = yes ]; then
    found=$(for version in "$@"; do search on_path "$version" || search out_of_sight "$version"; done)
    if [ -n "$found" ]; then
        echo "$found"
        exit 0
    fi
else
    # What is on PATH was put there to be used: it goes before anything out of sight, even where that is newer.
    for where in on_path out_of_sight; do
        for version in "$@"; do
            if answer=$(search "$where" "$version"); then
                echo "${answer#* }"
                exit 0
            fi
        done
    done
fi

for version in "$@"; do
    for candidate in $(on_path "$version"); do
        if [ -z "$incomplete" ] && [ "$(version_of "$candidate")" = "$version" ]; then incomplete=$version; fi
    done
done
newest=${1-3.12}
{
    if [ -n "$incomplete" ]; then
        echo "Python $incomplete is here, but without what makes virtual environments (venv, ensurepip). Install it:"
        echo "    Debian, Ubuntu:  sudo apt-get install python$incomplete-venv"
        echo "    Fedora:          sudo dnf install python$incomplete"
    else
        echo "No usable Python of these versions was found: $*. Install one:"
        echo "    Debian, Ubuntu:  sudo apt-get install python3 python3-venv"
        echo "                     (Debian 12 has 3.11, Ubuntu 22.04 3.10 and 24.04 3.12)"
        echo "    Fedora:          sudo dnf install python$newest"
        echo "or name one yourself:  make run PYTHON=/path/to/python$newest"
    fi
} >&2
exit 1
