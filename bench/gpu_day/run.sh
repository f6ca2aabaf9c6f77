#!/usr/bin/env bash
# A first visit to a machine with a GPU: all that only a device can tell, within a budget of seconds.
#
#   bench/gpu_day/run.sh [stage ...]      of: env smoke tests benches train sanitize; all by default
#
# It runs from the source tree, without an installation. The environment may set
#   PYTHON     the interpreter (python3)
#   BUDGET     seconds for all stages (500); what is left when they are over is skipped
#   LEAST_S    a stage that has fewer seconds does not begin (15)
#   OUT        the folder of the results (bench/results/gpu_day)
#   TESTS      folders or files of tests, each run in a process of its own (five groups)
#   SIMULATED  1: rehearse without a GPU all that measures nothing
#
# OUT gets summary.txt, the JSON files and pictures of the benches, and logs.tar.gz. They are
# written after each stage, so that what there is stays if the machine is taken away.
set -u
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
BUDGET=${BUDGET:-500}
OUT=${OUT:-bench/results/gpu_day}
SIMULATED=${SIMULATED:+--simulated}
LEAST_S=${LEAST_S:-15}
stages=${*:-env smoke tests benches train sanitize}

mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
logs=$(mktemp -d)
: >"$OUT/summary.txt"
export PYTHONPATH="$PWD:$PWD/tests:$PWD/bench${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLBACKEND=Agg JAX_PLATFORMS=cpu
[ -n "$SIMULATED" ] && export CUDA_VISIBLE_DEVICES=-1

say() { printf '[%3d s] %s\n' "$SECONDS" "$*" | tee -a "$OUT/summary.txt"; }

pack() { tar -C "$logs" -czf "$OUT/logs.tar.gz" .; }

finish() {
    pack
    rm -rf "$logs"
}
trap finish EXIT

wants() { case " $stages " in *" $1 "*) ;; *) return 1 ;; esac }

n_failed=0
# stage NAME SECONDS COMMAND: runs a command, no longer than that, and never past the budget.
stage() {
    local name=$1 limit=$2 left=$((BUDGET - SECONDS)) begun=$SECONDS code=0
    shift 2
    wants "${name%%:*}" || return 0
    if [ "$left" -lt "$LEAST_S" ]; then
        say "left out: $name; $left s of the budget are left"
        return 0
    fi
    [ "$left" -lt "$limit" ] && limit=$left
    timeout -k 5 "$limit" "$@" >"$logs/${name//:/_}.log" 2>&1 || code=$?
    if [ "$code" = 0 ]; then
        say "ok: $name, $((SECONDS - begun)) of $limit s"
    else
        n_failed=$((n_failed + 1))
        say "FAILED with $code: $name, $((SECONDS - begun)) of $limit s"
        tail -n 20 "$logs/${name//:/_}.log" | cut -c1-300 | tee -a "$OUT/summary.txt"
    fi
    pack
}

describe_machine() {
    nvidia-smi
    uname -a
    nproc
    free -g
    ulimit -l # of memory that can be locked, which pinned memory needs
    df -h /dev/shm
    "$PYTHON" --version
    "$PYTHON" -c 'import cupy; cupy.show_config()'
    "$PYTHON" -c 'from parllel import cuda; print(cuda.describe())' || [ -n "$SIMULATED" ]
}

# What make test-gpu selects, in several processes: an error of the device ends one of them alone.
run_tests() {
    local group number=0 failed=0 process processes=()
    local options=(--cuda=real -m cuda -q -p no:cacheprovider --maxfail=40 --tb=short)
    [ -n "$SIMULATED" ] && options+=(-p eager_as_real)
    local groups=(
        "tests/storages" "tests/tree tests/arrays tests/cuda tests/ops" "tests/samplers tests/cages"
        "tests/replays tests/kernels tests/transforms"
        "tests/testing tests/runners tests/repository tests/torch tests/metrics tests/examples"
    )
    [ -n "${TESTS:-}" ] && read -ra groups <<<"$TESTS"
    for group in "${groups[@]}"; do
        number=$((number + 1))
        # shellcheck disable=SC2086  # several folders
        "$PYTHON" -m pytest "${options[@]}" --junitxml="$logs/tests_$number.xml" $group \
            >"$logs/tests_$number.log" 2>&1 &
        processes+=($!)
        [ -n "$SIMULATED" ] && wait $! # a rehearsal takes one processor
    done
    for process in "${processes[@]}"; do
        wait "$process"
        # 5: none of the tests are for a device
        case $? in 0 | 5) ;; *) failed=1 ;; esac
    done
    grep -hE '^(FAILED|ERROR)' "$logs"/tests_*.log | cut -c1-220 | sort -u
    tail -q -n 1 "$logs"/tests_*.log
    return $failed
}

find_sanitizer() {
    command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1
}

export -f describe_machine run_tests
export PYTHON SIMULATED logs

stage env 60 bash -c describe_machine
stage smoke 90 "$PYTHON" bench/gpu_day/smoke.py $SIMULATED
stage tests 200 bash -c run_tests
if [ -f "$logs/tests.log" ]; then tee -a "$OUT/summary.txt" <"$logs/tests.log"; fi
if [ -z "$SIMULATED" ]; then
    for bench in rows advantage frames replay step; do
        stage "benches:$bench" 75 "$PYTHON" "bench/bench_$bench.py" --out "$OUT"
    done
fi
stage train 90 "$PYTHON" bench/gpu_day/train.py --out "$OUT" $SIMULATED
sanitizer=$(find_sanitizer)
if [ -z "$SIMULATED" ] && [ -n "$sanitizer" ]; then
    stage sanitize 75 "$sanitizer" --tool memcheck --error-exitcode 9 \
        "$PYTHON" bench/gpu_day/smoke.py --kernels-only
elif [ -z "$SIMULATED" ] && wants sanitize; then
    say "left out: sanitize; compute-sanitizer is not installed"
fi

say "stages that failed: $n_failed; results are in $OUT"
[ "$n_failed" = 0 ]
