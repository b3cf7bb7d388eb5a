#!/usr/bin/env bash
# Compile the dependency groups of pyproject.toml into requirement files with hashes (`make lock`; LOCK_ARGS=--upgrade for new versions).
# The files name no index: whoever installs uses the indexes that their own machine is configured with.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}

compile() {
  local name=$1
  shift
  echo "lock: requirements/$name.txt"
  "$uv" pip compile --quiet --universal --python-version 3.13 --no-python-downloads --generate-hashes \
    --no-emit-index-url --no-emit-find-links --no-header \
    --output-file "requirements/$name.txt" "$@" ${LOCK_ARGS:-}
}

# One version of a package in all files: each file is held to those compiled before it.
compile test pyproject.toml --group test --extra cli
compile bench pyproject.toml --group bench --extra cli --extra bench --constraints requirements/test.txt
compile dask pyproject.toml --group dask --constraints requirements/bench.txt --constraints requirements/test.txt
compile http pyproject.toml --group http --constraints requirements/bench.txt --constraints requirements/test.txt
compile tonio pyproject.toml --group tonio
compile clients pyproject.toml --group clients --constraints requirements/test.txt
compile greenlet pyproject.toml --group greenlet
compile loops pyproject.toml --extra uvloop --extra rloop
compile docs pyproject.toml --group docs --constraints requirements/bench.txt --constraints requirements/test.txt
compile lint pyproject.toml --group lint --group greenlet --group test --group clients --extra cli --extra bench \
  --constraints requirements/bench.txt --constraints requirements/clients.txt --constraints requirements/docs.txt
compile uv pyproject.toml --group uv
