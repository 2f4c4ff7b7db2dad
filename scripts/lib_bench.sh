# What the benchmarks share: their options, figures and medians, engines, and iperf3 between namespaces. Sourced after lib.sh.
#
# What is measured runs with "nice -n -20": before other work on the machine, as a packet engine should; engines, clients and servers
# alike, so that none gains by it. That is no function: of one in the background, $! would be a shell's id, and the program would stay.

# bench_options ARGUMENTS...: --rounds N is ROUNDS and --seconds N is SECONDS_EACH; what else there is is in REST.
bench_options() {
    REST=()
    while [ $# -gt 0 ]; do
        case $1 in
            --rounds) ROUNDS=${2:?--rounds takes a number}; shift 2 ;;
            --seconds) SECONDS_EACH=${2:?--seconds takes a number}; shift 2 ;;
            *) REST+=("$1"); shift ;;
        esac
    done
}

# no_more_options: ends the script if there was anything else.
no_more_options() {
    [ ${#REST[@]} -eq 0 ] || { say "no such option: ${REST[0]}"; exit 1; }
}

# bench_files: an empty file of FIGURES, and a folder RUN for what runs.
bench_files() {
    RUN=$LOGS/run
    # One benchmark may run another, with the same folder for logs.
    FIGURES=$LOGS/$NAME-figures
    mkdir -p "$RUN"
    : >"$FIGURES"
}

# --- figures ---------------------------------------------------------------------------------------------------------------------

# figure KEY... VALUE: notes one reading.
figure() { local IFS=$'\t'; printf '%s\n' "$*" >>"$FIGURES"; }

# median [NONE]: of the numbers read, one a line; NONE (0) if there are none.
median() { sort -g | awk -v none="${1:-0}" '{v[NR]=$1} END {print NR ? (NR%2 ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2) : none}'; }

# readings KEY...: what was noted with just these keys.
readings() {
    local IFS=$'\t'
    awk -v key="$*"$'\t' 'index($0, key) == 1 {print substr($0, length(key) + 1)}' "$FIGURES"
}

# of KEY...: the median of the readings.
of() { readings "$@" | median; }

# field NAME: the value of a JSON field on the line read.
field() { sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p"; }

# --- engines and traffic -----------------------------------------------------------------------------------------------------------

# engine NAME [NETNS]: starts BINARY on $RUN/NAME.toml and waits until it is ready. Leaves its process id in ENGINE. Not in a pipeline:
# what ends it with the script would be lost with the pipeline's shell.
engine() {
    local name=$1 in=()
    [ -n "${2:-}" ] && in=(ip netns exec "$2")
    nice -n -20 "${in[@]}" "$BINARY" --config "$RUN/$name.toml" >"$LOGS/engine-$name.log" 2>&1 &
    ENGINE=$!
    undo stop_pid "$ENGINE"
    wait_for 10 "engine $name to be ready (log: $LOGS/engine-$name.log)" test -S "$RUN/$name.api.sock"
}

# workers NAME CORE MODE: the head of $RUN/NAME.toml.
workers() {
    printf '[workers]\ncores = [%s]\nmode = "%s"\n[api]\nsocket = "%s"\n[stats]\npath = "%s"\n' \
        "$2" "$3" "$RUN/$1.api.sock" "$RUN/$1.stats"
}

# memif_port NAME SOCKET [ID]
memif_port() { printf '[[port]]\nname = "%s"\nkind = "memif"\nrole = "server"\nsocket = "%s"\nid = %s\n' "$1" "$RUN/$2" "${3:-0}"; }

# vxlan_port NAME VNI LOCAL REMOTE
vxlan_port() {
    printf '[[port]]\nname = "%s"\nkind = "vxlan"\nvni = %s\nlocal = "%s"\nremote = "%s"\nport = 4789\n' "$1" "$2" "$3" "$4"
}

xconnect() { printf '[[xconnect]]\nports = ["%s", "%s"]\n' "$1" "$2"; }

traffic() { nice -n -20 "$BIN/traffic" --core 0 --seconds "$SECONDS_EACH" "$@"; }

# --- namespaces --------------------------------------------------------------------------------------------------------------------

# netns NAME: makes the namespace $ID-NAME.
netns() {
    ip netns add "$ID-$1"
    undo ip netns del "$ID-$1"
    ip -n "$ID-$1" link set lo up
}

# reachable NETNS ADDRESS: a TCP connection is refused by the far kernel, not lost. Needs no ping on the machine.
reachable() {
    local answer
    answer=$(timeout 2 ip netns exec "$1" bash -c "exec 3<>/dev/tcp/$2/9" 2>&1) || true
    case $answer in *refused*) return 0 ;; *) return 1 ;; esac
}

listening() { ip netns exec "$1" ss -Hltn 'sport = :5201' | grep -q 5201; }

# iperf FROM TO ADDRESS ARGUMENTS...: iperf3 from one namespace to another. Prints the client's report, and fails as the client does.
iperf() {
    local from=$1 to=$2 address=$3 server ended=0
    shift 3
    nice -n -20 ip netns exec "$to" iperf3 -s -1 -B "$address" >"$LOGS/iperf-server.log" 2>&1 &
    server=$!
    wait_for 5 "iperf3's server at $address" listening "$to"
    nice -n -20 timeout $((SECONDS_EACH + 30)) ip netns exec "$from" iperf3 -c "$address" -t "$SECONDS_EACH" "$@" || ended=$?
    stop_pid "$server"
    wait "$server" 2>/dev/null || true
    return "$ended"
}

# iperf_figure ROW FROM TO ADDRESS ARGUMENTS...: notes the receiver's Mbit/s.
iperf_figure() {
    local row=$1 line
    shift
    if iperf "$@" -f m >"$LOGS/iperf.log" && line=$(grep receiver "$LOGS/iperf.log"); then
        figure "$row" "$(awk '{for (i = 1; i < NF; i++) if ($(i + 1) == "Mbits/sec") print $i}' <<<"$line")"
    else
        say "iperf3 failed for: $row"
    fi
}
