#!/usr/bin/env bash
# Runs the workspace's tests as `cargo test --workspace` does, but in two lanes side by side: the control plane's, which mostly wait for
# peers, and all others, with the one of the control plane's that waits longest. Nearly half of the time is saved so. Fails if any test
# did, after all have run, and names them.
#   scripts/run_tests.sh
. "$(dirname "$0")/lib.sh"

need_rust
need_packages jq

# Each line: the package's folder, the test's name, the program.
programs() {
    cargo test --workspace --locked --no-run --message-format=json |
        jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable) |
            [(.manifest_path | rtrimstr("/Cargo.toml")), "\(.target.kind[0]) \(.target.name)", .executable] | @tsv'
}

# lane NAME: runs the programs that are read, each in its package's folder, and lists those that failed in $LOGS/NAME.failed.
lane() {
    local folder name program log status running=
    # A lane in the background hears no Ctrl-C; the script's end tells it.
    trap '[ -z "$running" ] || kill "$running" 2>/dev/null; exit 143' TERM
    while IFS=$'\t' read -r folder name program; do
        log="$LOGS/$(basename "$folder")-${name// /-}.log"
        status=0
        (cd "$folder" && CARGO_MANIFEST_DIR=$folder exec "$program" --test-threads=2 </dev/null) >"$log" 2>&1 &
        running=$!
        wait "$running" || status=$?
        if [ "$status" = 0 ]; then
            # One write, so that the lanes' lines do not mix.
            printf '%s\n' "-- $(basename "$folder"), $name: $(grep '^test result:' "$log" | tail -n 1)"
        else
            printf '%s\n' "$(printf -- '-- %s, %s: exit status %s\n' "$(basename "$folder")" "$name" "$status"; cat "$log")"
            echo "$(basename "$folder"), $name: $log" >>"$LOGS/$1.failed"
        fi
    done
}

rm -f "$LOGS"/*.failed
programs >"$LOGS/programs"
CONTROL="^$ROOT/control"
LONGEST=$'\ttest conformance_go_peers\t'
grep "$CONTROL" "$LOGS/programs" | grep -v "$LONGEST" >"$LOGS/programs.control"
{ grep -v "$CONTROL" "$LOGS/programs"; grep "$LONGEST" "$LOGS/programs"; } >"$LOGS/programs.others"
lane control <"$LOGS/programs.control" &
FIRST=$!
undo stop_pid "$FIRST"
lane others <"$LOGS/programs.others" &
SECOND=$!
undo stop_pid "$SECOND"
wait "$FIRST" "$SECOND"
cargo test --workspace --locked --doc
if cat "$LOGS"/*.failed 2>/dev/null; then
    say "failed: the above"
    exit 1
fi
