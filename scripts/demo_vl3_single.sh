#!/usr/bin/env bash
# vL3 in one domain, with its examples. As root, on a bare Debian 12 (rustup's stable toolchain).
#   scripts/demo_vl3_single.sh --kconf_clus1=FILE [--hello] [--mysql] [--nowait] [--delete]
#     --kconf_clus1=FILE   the cluster: a topology of `vwire lab`, such as config/lab/vl3-single.yaml
#     --hello              helloworld: an HTTP server beside each client, and every client asks every other
#     --mysql              MariaDB: a replica follows its primary over the vL3
#     --nowait             does not wait for Enter between the steps
#     --delete             takes everything down; also if nothing is up
# The same flags as the first vL3 example's. What it sets up stays up until --delete. VWIRE_BIN=DIR takes the programs that are there.
. "$(dirname "$0")/lib.sh"
. "$ROOT/scripts/lib_vl3.sh"

FILE=
HELLO=
MYSQL=
WAIT=1
DELETE=
usage() { sed -n '/^#   scripts/,/^# The same/{/^# The same/d;s/^#   //p}' "$0"; }
for argument in "$@"; do
    case $argument in
    --kconf_clus1=*) FILE=${argument#*=} ;;
    --hello) HELLO=1 ;;
    --mysql) MYSQL=1 ;;
    --nowait) WAIT= ;;
    --delete) DELETE=1 ;;
    -h | --help) usage && exit 0 ;;
    *) say "$argument: no such option" && usage && exit 2 ;;
    esac
done
if [ -z "$FILE" ]; then
    say "--kconf_clus1 is missing: the cluster's topology, such as --kconf_clus1=config/lab/vl3-single.yaml"
    usage
    exit 2
fi
LAB=$(sed -n 's/^name: *//p' "$FILE" 2>/dev/null | head -n 1)
if [ -z "$LAB" ] || ! grep -q '^domains:' "$FILE"; then
    say "--kconf_clus1: $FILE is no topology of vwire lab; a kubeconfig is not taken yet"
    exit 2
fi

# pause WHAT: waits for Enter, if somebody is there.
pause() {
    [ -n "$WAIT" ] && [ -t 0 ] || return 0
    read -r -p "-- next: $1 (Enter)"
}

need_root
need_packages iproute2 jq curl bind9-dnsutils
vwire_bin

if [ -n "$DELETE" ]; then
    step "lab $LAB goes, with what runs beside its clients" "$BIN/vwire" lab --run "$LABS" down "$LAB"
    exit 0
fi

modprobe tun 2>/dev/null || true
pause "the domain and its vL3"
lab_is_up "$LAB" || step "lab $LAB" "$BIN/vwire" lab --run "$LABS" up "$FILE"
if [ -n "$HELLO" ]; then
    pause "helloworld"
    step "a server beside each client" hello_up "$LAB" vl3
    loud_step "every client asks every other" "$ROOT/scripts/check_vl3.sh" "$LAB"
fi
if [ -n "$MYSQL" ]; then
    pause "mysql"
    "$ROOT/scripts/vl3_mysql.sh" up "$LAB"
    "$ROOT/scripts/vl3_mysql.sh" check "$LAB"
fi
say "lab $LAB is up: vwire path shows its vWires; scripts/demo_vl3_single.sh --kconf_clus1=$FILE --delete takes it down"
