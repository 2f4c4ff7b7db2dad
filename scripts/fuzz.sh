#!/usr/bin/env bash
# Runs the fuzz targets on the stable toolchain (libFuzzer with coverage from LLVM's own passes) and prints, for each, how many
# inputs it executed. A crash ends it with the input's path.
#   scripts/fuzz.sh [--seconds N] [TARGET...]        N seconds per target (60), all targets unless named
. "$(dirname "$0")/lib.sh"

need_rust
SECONDS_EACH=60
if [ "${1:-}" = --seconds ]; then
    SECONDS_EACH=$2
    shift 2
fi
WANTED=("$@")

export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions=on -Ccodegen-units=1"
export CARGO_TARGET_DIR="$ROOT/target/fuzz"

# Optimised builds take minutes more on two cores: not worth it for a few seconds of running.
PROFILE=()
if [ "$SECONDS_EACH" -le 10 ]; then
    PROFILE=(--config profile.release.opt-level=1 --config 'profile.release.package."*".opt-level=0')
fi

targets_of() { sed -n 's/^name = "\(.*\)"$/\1/p' "$1/Cargo.toml" | tail -n +2; }

# The targets that run, by process id.
declare -A RUNNING=()

# start_target CRATE TARGET: in the background; its log is $LOGS/fuzz-TARGET.log.
start_target() {
    local crate=$1 target=$2 corpus="$ROOT/$1/corpus/$2"
    # The corpus in the repository seeds the run; what is found goes to the first, scratch folder.
    mkdir -p "$corpus" "$LOGS/corpus/$target" "$LOGS/artifacts"
    "$PROGRAMS/$target" -max_total_time="$SECONDS_EACH" -timeout=5 -rss_limit_mb=2048 \
        -artifact_prefix="$LOGS/artifacts/$target-" -print_final_stats=1 "$LOGS/corpus/$target" "$corpus" \
        >"$LOGS/fuzz-$target.log" 2>&1 &
    RUNNING[$!]=$target
}

stop_running() { local pid; for pid in "${!RUNNING[@]}"; do stop_pid "$pid"; done; }
undo stop_running

# await_target: waits for one of those that run, and says how many inputs it executed, or fails with the end of its log.
await_target() {
    local ended target status=0
    wait -n -p ended || status=$?
    target=${RUNNING[$ended]}
    unset "RUNNING[$ended]"
    if [ "$status" -ne 0 ]; then
        tail -n 20 "$LOGS/fuzz-$target.log"
        say "fuzz target $target failed (exit status $status); its log: $LOGS/fuzz-$target.log"
        return 1
    fi
    say "   $target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$LOGS/fuzz-$target.log") executions"
}

# fuzz CRATE TARGET...: one for each processor at a time.
fuzz() {
    local crate=$1 target
    shift
    for target in "$@"; do
        [ ${#RUNNING[@]} -lt "$(nproc)" ] || await_target
        start_target "$crate" "$target"
    done
    while [ ${#RUNNING[@]} -gt 0 ]; do await_target; done
}

wanted() { [ ${#WANTED[@]} -eq 0 ] || printf '%s\n' "${WANTED[@]}" | grep -qx "$1"; }

# The host's build scripts must not be instrumented: hence an explicit target.
HOST=$(rustc -vV | sed -n 's/^host: //p')
PROGRAMS=$CARGO_TARGET_DIR/$HOST/release

for crate in memif/fuzz dataplane/fuzz control/fuzz; do
    TARGETS=()
    for target in $(targets_of "$crate"); do if wanted "$target"; then TARGETS+=("$target"); fi; done
    [ ${#TARGETS[@]} -gt 0 ] || continue
    step "build $crate" cargo build --release --locked --manifest-path "$crate/Cargo.toml" "${PROFILE[@]}" --target "$HOST"
    step "fuzz: ${#TARGETS[@]} targets of $crate" fuzz "$crate" "${TARGETS[@]}"
    cat "$STEP_LOG"
done
