#!/usr/bin/env bash
# `scripts/test --real-kernel [--long] [PYTEST ARGUMENT...]`: the tests that need /dev/cachefiles.
#
# A guest has one processor: two guests share the work, each with a part of the files. Their output
# comes one after the other. Arguments go to both, and a part in which they select nothing is fine.
set -euo pipefail
which="realkernel and not long" limit=1800
if [[ ${1-} = --long ]]; then
    shift
    which="realkernel and long" limit=7200
fi
parts=(
    "tests/realkernel/test_failover.py tests/realkernel/test_keeper.py"
    "tests/scenarios tests/realkernel tests/execdaemon"
)
not_again=(--ignore=tests/realkernel/test_failover.py --ignore=tests/realkernel/test_keeper.py)
no_tests=5                # pytest's exit status when nothing was selected

scripts/real-kernel >/dev/null    # installs and builds what is missing, before there are two
# The guests see this tree read-only, and would compile it anew in each process.
.venv/bin/python -m compileall -q src

logs=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$logs"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
for part in 0 1; do
    ignored=()
    ((part)) && ignored=("${not_again[@]}")
    # shellcheck disable=SC2086
    scripts/real-kernel --processor "$part" --timeout "$limit" python -m pytest -p no:cacheprovider -m "$which" \
        ${parts[part]} "${ignored[@]}" "$@" >"$logs/$part" 2>&1 &
    pids+=($!)
done

failed=0 none=0
for part in 0 1; do
    status=0
    wait "${pids[part]}" || status=$?
    cat "$logs/$part"
    if ((status == no_tests)); then
        none=$((none + 1))
    elif ((status)); then
        failed=$status
    fi
done
pids=()
((none < 2)) || failed=$no_tests
# As pytest says it of one run.
grep -hE '^(=+ )?[0-9]+ [a-z]+.* in [0-9.]+s' "$logs"/* | grep -oE '[0-9]+ (passed|failed|skipped|errors?)' |
    awk -v seconds="$SECONDS" '{ sub(/s$/, "", $2); n[$2] += $1 } END {
        split("failed error passed skipped", order)
        for (i = 1; i <= 4; i++) if (n[order[i]]) text = text n[order[i]] " " order[i] ", "
        sub(/, $/, "", text); print "==== " (text ? text : "0 tests") " in " seconds "s ====" }' || true
exit "$failed"
