#!/usr/bin/env bash
# The demo and the Python tests with the newest versions of all Python packages: `make test-newest`.
#
# The locks stay as they are: newer ones are written to target/newest, where the packages go that differ, and a virtual
# environment of them to .venv-newest. What moved is said first, so that a failure has its suspects.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export DAXFS_VENV=.venv-newest
python=${PYTHON:-python3}

rm -rf target/newest
"$python" scripts/lock.py --upgrade --into target/newest
"$python" scripts/environment.py --locks target/newest --venv $DAXFS_VENV link tests
scripts/wheel.sh

status=0
$DAXFS_VENV/bin/python -m pytest -q -p no:cacheprovider python/tests --ignore python/tests/kernel || status=1
$DAXFS_VENV/bin/python examples/demo/demo.py || status=1
[ $status -eq 0 ] && echo "newest: passed" || echo "newest: FAILED; what moved stands above, and target/newest has the locks"
exit $status
