# What the vL3 scripts share: looking into a lab, and starting workloads beside its clients. Sourced after lib.sh.
#
# A workload runs in its client's namespace and carries the lab's mark in its environment: `vwire lab down` ends it with everything else.

# Where labs keep their files.
LABS=${VWIRE_LABS:-/run/vwire/lab}

# vwire_bin: where the programs are; VWIRE_BIN=DIR takes those that are there, and builds none.
vwire_bin() {
    BIN=${VWIRE_BIN:-$ROOT/target/release}
    if [ -z "${VWIRE_BIN:-}" ]; then
        need_rust
        step "build" cargo build --release --locked -p vwire-control -p vwire-dataplane --bins
    fi
}

# lab_is_up LAB
lab_is_up() { [ "$(jq -r .complete "$LABS/$1/lab.json" 2>/dev/null)" = true ]; }

# need_lab LAB: says so, and ends the script, if it is not up.
need_lab() {
    lab_is_up "$1" && return 0
    say "there is no lab $1 that is up; vwire lab up FILE makes one, vwire lab status lists them"
    exit 2
}

# vl3_clients LAB SERVICES: the names of its clients that ask for services whose names match.
vl3_clients() {
    jq -r --arg services "$2" '.spec.domains[].nodes[].clients[]? |
        select(any(.services[]; sub("^[a-z]+://"; "") | sub("[/?].*"; "") | test($services))) | .name' "$LABS/$1/lab.json"
}

# vl3_addresses LAB CLIENT SERVICES: its addresses on vWires that are up, to services whose names match.
vl3_addresses() {
    curl -sS -m 10 --unix-socket "$LABS/$1/admin/nsc-$2.sock" http://localhost/connections |
        jq -r --arg services "$3" '.[] | select(.state == "UP" and (.service | test($services))) | .client_addresses[] | split("/")[0]'
}

# inside LAB CLIENT COMMAND...: runs it in the client's namespace.
inside() {
    local lab=$1 client=$2
    shift 2
    VWIRE_LAB=$(jq -r .mark "$LABS/$lab/lab.json") ip netns exec "vw-$lab-$client" "$@"
}

# beside LAB CLIENT NAME COMMAND...: starts it in the client's namespace, with its output in the lab's log NAME. Ended by `lab down`.
beside() {
    local lab=$1 client=$2 name=$3
    shift 3
    # Nothing of the caller's stays open in it: whoever waits for the script's output shall not wait for the workload.
    (
        exec </dev/null >>"$LABS/$lab/log/$name.log" 2>&1
        export VWIRE_LAB
        VWIRE_LAB=$(jq -r .mark "$LABS/$lab/lab.json")
        exec ip netns exec "vw-$lab-$client" setsid "$@"
    ) &
}

# url ADDRESS: as it stands in a URL.
url() { case $1 in *:*) printf '[%s]' "$1" ;; *) printf '%s' "$1" ;; esac }

# hello_answers LAB CLIENT: its own server answers.
hello_answers() { inside "$1" "$2" curl -sf -m 5 http://127.0.0.1:5000/hello; }

# hello_up LAB SERVICES: one `vwire hello` beside each client of such services, where none runs yet.
hello_up() {
    local lab=$1 client
    for client in $(vl3_clients "$lab" "$2"); do
        hello_answers "$lab" "$client" >/dev/null 2>&1 && continue
        beside "$lab" "$client" "$client" "$BIN/vwire" hello --instance "$client"
        wait_for 20 "$client's server" hello_answers "$lab" "$client"
    done
}
