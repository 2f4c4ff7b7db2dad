#!/usr/bin/env bash
# Checks a vL3: every client of a lab asks every other one for /hello, at each of its addresses. Says which links are broken, and
# fails (1) if any is; 2 if there is nothing to check. Needs root; the lab has to be up, with a server beside each client.
#   scripts/check_vl3.sh [--start] [--service REGEX] [--time SECONDS] [--names] LAB
#     --start           starts `vwire hello` beside each client first, where none runs (as demo_vl3_single.sh --hello does)
#     --service REGEX   vWires to services with such names count (vl3)
#     --time SECONDS    how long one answer may take (5)
#     --names           asks by name, too, at the name server that the client was told
. "$(dirname "$0")/lib.sh"
. "$ROOT/scripts/lib_vl3.sh"

SERVICE=vl3
TIME=5
START=
NAMES=
LAB=${LAB:-}
usage() { sed -n '/^#   scripts/,/^[^#]/{s/^#   //p}' "$0"; }
while [ $# -gt 0 ]; do
    case $1 in
    --service) SERVICE=${2:?} && shift ;;
    --service=*) SERVICE=${1#*=} ;;
    --time) TIME=${2:?} && shift ;;
    --time=*) TIME=${1#*=} ;;
    --start) START=1 ;;
    --names) NAMES=1 ;;
    -h | --help) usage && exit 0 ;;
    -*) usage && exit 2 ;;
    *) LAB=$1 ;;
    esac
    shift
done
if [ -z "$LAB" ]; then
    [ -z "${KCONF:-}" ] || say "KCONF: clusters are not checked by this yet; a lab is, by its name"
    usage
    exit 2
fi
need_root
# What it has to say it says itself, and there are no logs.
trap - EXIT
rm -rf "$LOGS"
need_lab "$LAB"
if [ -n "$START" ]; then
    BIN=${VWIRE_BIN:-$ROOT/target/release}
    hello_up "$LAB" "$SERVICE"
fi

checked=0
broken=()

# link FROM TO WHAT HOST [CURL OPTIONS...]: one link, at one address.
link() {
    local from=$1 to=$2 what=$3 host=$4 answer
    shift 4
    checked=$((checked + 1))
    if answer=$(inside "$LAB" "$from" curl -gsS -m "$TIME" "$@" "http://$host:5000/hello" 2>&1) &&
        [ "${answer##*instance: }" = "$to" ]; then
        printf 'ok      %-16s → %-16s %-24s %s\n' "$from" "$to" "$what" "$answer"
    else
        printf 'BROKEN  %-16s → %-16s %-24s %s\n' "$from" "$to" "$what" "$answer"
        broken+=("$from → $to ($what)")
    fi
}

# named FROM TO ADDRESS: the same by name: what the client's name server says is where curl goes.
named() {
    local from=$1 to=$2 address=$3 server domain kind=A found
    server=$(dns_of "$from" .servers)
    domain=$(dns_of "$from" .search)
    case $address in *:*) kind=AAAA ;; esac
    found=$(inside "$LAB" "$from" dig +short +time="$TIME" +tries=2 "@$server" "$to.$domain" "$kind" 2>&1 | tail -n 1)
    link "$from" "$to" "$to.$domain" "$to.$domain" --resolve "$to.$domain:5000:$(url "$found")"
}

# dns_of CLIENT FIELD: the first of the client's name servers, or of its search domains.
dns_of() {
    curl -sS -m 10 --unix-socket "$LABS/$LAB/admin/nsc-$1.sock" http://localhost/connections |
        jq -r --arg services "$SERVICE" "[.[] | select(.service | test(\$services)) | .dns[]? | $2[]?][0] // empty"
}

declare -A addresses
clients=()
for client in $(vl3_clients "$LAB" "$SERVICE"); do
    clients+=("$client")
    addresses[$client]=$(vl3_addresses "$LAB" "$client" "$SERVICE" 2>/dev/null) || addresses[$client]=
    if [ -z "${addresses[$client]}" ]; then
        printf 'BROKEN  %-16s has no vWire to a service like %s\n' "$client" "$SERVICE"
        broken+=("$client (no vWire)")
    fi
done
for from in "${clients[@]}"; do
    for to in "${clients[@]}"; do
        [ "$from" != "$to" ] || continue
        for address in ${addresses[$to]}; do
            link "$from" "$to" "$address" "$(url "$address")"
            if [ -n "$NAMES" ]; then named "$from" "$to" "$address"; fi
        done
    done
done

if [ ${#broken[@]} -gt 0 ]; then
    say "" "${#broken[@]} broken, of $checked:"
    printf '  %s\n' "${broken[@]}"
    exit 1
fi
if [ "$checked" -eq 0 ]; then
    say "nothing to check: lab $LAB has ${#clients[@]} clients of services like $SERVICE; two are needed"
    exit 2
fi
say "" "all $checked links work"
