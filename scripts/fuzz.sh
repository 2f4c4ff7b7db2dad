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

# profile_of CRATE: to build the whole control plane optimised takes six minutes on two cores: not worth it for a few seconds of running.
profile_of() {
    if [ "$1" = control/fuzz ] && [ "$SECONDS_EACH" -le 10 ]; then
        printf '%s\n' --config profile.release.opt-level=1 --config 'profile.release.package."*".opt-level=0'
    fi
}

targets_of() { sed -n 's/^name = "\(.*\)"$/\1/p' "$1/Cargo.toml" | tail -n +2; }

run_target() {
    local crate=$1 target=$2 corpus="$ROOT/$1/corpus/$2"
    mkdir -p "$corpus" "$LOGS/artifacts"
    # The corpus in the repository seeds the run; what is found goes to the first, scratch folder.
    mkdir -p "$LOGS/corpus/$target"
    "$CARGO_TARGET_DIR/release/$target" -max_total_time="$SECONDS_EACH" -timeout=5 -rss_limit_mb=2048 \
        -artifact_prefix="$LOGS/artifacts/$target-" -print_final_stats=1 "$LOGS/corpus/$target" "$corpus"
}

for crate in memif/fuzz dataplane/fuzz control/fuzz; do
    # -Z flags are not needed, but the host's build scripts must not be instrumented: hence an explicit target.
    mapfile -t profile < <(profile_of "$crate")
    step "build $crate" cargo build --release --locked --manifest-path "$crate/Cargo.toml" "${profile[@]}" \
        --target "$(rustc -vV | sed -n 's/^host: //p')"
    mkdir -p "$CARGO_TARGET_DIR/release"
    for target in $(targets_of "$crate"); do
        if [ ${#WANTED[@]} -gt 0 ] && ! printf '%s\n' "${WANTED[@]}" | grep -qx "$target"; then continue; fi
        cp -f "$CARGO_TARGET_DIR/$(rustc -vV | sed -n 's/^host: //p')/release/$target" "$CARGO_TARGET_DIR/release/"
        step "fuzz $target" run_target "$crate" "$target"
        sed -n 's/^stat::number_of_executed_units: */   executions: /p' "$STEP_LOG"
    done
done
