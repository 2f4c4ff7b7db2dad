#!/usr/bin/env bash
# The mysql example: MariaDB beside two clients of a vL3, mysql-primary and mysql-replica; the replica follows the primary over the vL3, and
# a row that is inserted on the primary appears on the replica. Needs root; the lab has to be up.
#   scripts/vl3_mysql.sh up LAB       starts both servers, and replication
#   scripts/vl3_mysql.sh check LAB    inserts a row, and waits until the replica has it
#   scripts/vl3_mysql.sh down LAB     ends both (as does vwire lab down)
# Data, sockets and logs are in the lab's folder and go with it. Neither server looks at /etc/mysql or listens anywhere but on the vL3.
. "$(dirname "$0")/lib.sh"
. "$ROOT/scripts/lib_vl3.sh"

SERVICE=${SERVICE:-vl3}
PASSWORD=vl3-example
VERB=${1:-}
LAB=${2:-}
case $VERB in up | check | down) ;; *) sed -n '/^#   scripts/s/^#   //p' "$0" && exit 2 ;; esac
need_root
[ "$VERB" = down ] || need_lab "$LAB"
need_packages iproute2 curl jq mariadb-server
DATA=$LABS/$LAB/tmp

# sql PART STATEMENTS: by the server's private socket.
sql() { mariadb --no-defaults --socket="$DATA/mysql-$1/sock" --user=root --batch --skip-column-names --execute="$2"; }

# served PART ID: starts a server, with a new data folder if there is none.
served() {
    local part=$1 id=$2 data=$DATA/mysql-$1 address
    address=$(vl3_addresses "$LAB" "mysql-$part" "$SERVICE" | head -n 1)
    [ -n "$address" ] || { say "mysql-$part has no vWire to a service like $SERVICE" && return 1; }
    sql "$part" "SELECT 1" >/dev/null 2>&1 && return 0
    if [ ! -d "$data/mysql" ]; then
        mkdir -m 0700 "$data"
        mariadb-install-db --no-defaults --user=root --datadir="$data" --skip-test-db --auth-root-authentication-method=normal
    fi
    beside "$LAB" "mysql-$part" "mysql-$part" mariadbd --no-defaults --user=root --datadir="$data" --socket="$data/sock" \
        --pid-file="$data/pid" --bind-address="$address" --port=3306 --server-id="$id" --log-bin=log --skip-name-resolve \
        --innodb-buffer-pool-size=16M --innodb-log-file-size=8M
    wait_for 120 "mysql-$part's server" sql "$part" "SELECT 1"
}

replicate() {
    local primary
    primary=$(vl3_addresses "$LAB" mysql-primary "$SERVICE" | head -n 1)
    sql primary "CREATE USER IF NOT EXISTS replica IDENTIFIED BY '$PASSWORD'; GRANT REPLICATION SLAVE ON *.* TO replica;
        CREATE DATABASE IF NOT EXISTS vl3; CREATE TABLE IF NOT EXISTS vl3.rows (id VARCHAR(64) PRIMARY KEY);"
    sql replica "STOP SLAVE; CHANGE MASTER TO MASTER_HOST='$primary', MASTER_USER='replica', MASTER_PASSWORD='$PASSWORD',
        MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos; START SLAVE;"
    wait_for 60 "the replica's table" sql replica "SELECT * FROM vl3.rows"
}

appears() { [ "$(sql replica "SELECT COUNT(*) FROM vl3.rows WHERE id = '$1'")" = 1 ]; }

check() {
    local row
    row="row-$$-$(date +%s%N)"
    sql primary "INSERT INTO vl3.rows VALUES ('$row')"
    if ! wait_for 60 "$row on the replica" appears "$row"; then
        mariadb --no-defaults --socket="$DATA/mysql-replica/sock" --user=root --execute="SHOW SLAVE STATUS\\G" |
            grep -E 'Master_Host|Running|Error'
        return 1
    fi
    say "$row: inserted on the primary, and on the replica, which follows $(sql replica "SHOW SLAVE STATUS" | cut -f 2)"
}

# ended PART: its process has gone.
ended() { ! kill -0 "$1" 2>/dev/null; }

down() {
    local part pid
    for part in replica primary; do
        pid=$(cat "$DATA/mysql-$part/pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        wait_for 60 "the end of mysql-$part" ended "$pid"
    done
}

case $VERB in
up)
    step "mysql-primary" served primary 1
    step "mysql-replica" served replica 2
    step "replication" replicate
    ;;
check) loud_step "a row follows" check ;;
down) step "both servers end" down ;;
esac
