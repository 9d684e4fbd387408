# shellcheck shell=bash
# What the end-to-end scripts share: a folder and a network of their own, waits
# with a deadline, processes that are stopped by their id, and checks that count.
#
#   MINTAI=FILE   test this binary instead of building one
#   KEEP=1        leave the folder with all logs behind, and say where it is

set -euo pipefail

E2E=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$E2E/../.." && pwd)
NAME=$(basename "$0" .sh)
PASSED=0 FAILED=0 PIDS=() RC=0
NATLAB='' # the laboratory's program, once there is one

die() {
  echo "$NAME: $*" >&2
  exit 1
}

need() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || die "needs $tool (Debian: apt-get install $tool)"
  done
}

# prepare makes the folder and the binaries named: mintai, natlab, or a folder of testdata.
prepare() {
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/mintai-$NAME.XXXXXX")
  export WORK
  trap cleanup EXIT
  trap 'exit 130' INT TERM HUP
  local what
  for what in "$@"; do
    case $what in
      mintai)
        if [ -n "${MINTAI:-}" ]; then
          MINTAI=$(realpath "$MINTAI")
        else
          MINTAI=$WORK/mintai
          (cd "$ROOT" && go build -o "$MINTAI" .)
        fi
        export MINTAI
        ;;
      natlab | openaisdk) # modules of their own
        (cd "$ROOT/testdata/$what" && go build -o "$WORK/$what" .)
        [ "$what" != natlab ] || NATLAB=$WORK/natlab
        ;;
      *) (cd "$ROOT" && go build -o "$WORK/$what" "./testdata/$what") ;;
    esac
  done
}

# own_network runs the rest of the script in a network namespace of its own: the
# default ports are free, and nothing outside is reached. It looks like a machine
# on a LAN: loopback and one card with a private address.
own_network() {
  if [ -z "${E2E_NETWORK:-}" ]; then
    need unshare ip
    local user=()
    [ "$(id -u)" = 0 ] || user=(--map-root-user)
    trap - EXIT
    E2E_NETWORK=1 exec unshare "${user[@]}" --net -- "$BASH" "$0" "$@"
  fi
  trap cleanup EXIT
  trap 'exit 130' INT TERM HUP
  ip link set lo up
  ip link add eth0 type veth peer name lan0
  ip link set lan0 up
  ip addr add 192.168.77.10/24 dev eth0
  ip -6 addr add fd77::10/64 dev eth0 nodad 2>/dev/null || true
  ip link set eth0 up
  ip route add default via 192.168.77.1
}

cleanup() {
  local code=$? pid
  trap - EXIT INT TERM HUP
  set +e
  for pid in "${PIDS[@]}"; do kill -TERM "$pid" 2>/dev/null; done
  for pid in "${PIDS[@]}"; do
    await 5 gone "$pid" || kill -KILL "$pid" 2>/dev/null
  done
  [ -n "$NATLAB" ] && [ -n "${NATLAB_LAB:-}" ] && "$NATLAB" down >/dev/null 2>&1
  if [ "$code" != 0 ] || [ "$FAILED" != 0 ]; then show_logs >&2; fi
  if [ -n "${KEEP:-}" ]; then
    echo "$NAME: everything is in $WORK" >&2
  else
    rm -rf "$WORK"
  fi
  exit "$code"
}

show_logs() {
  local f
  for f in "$WORK"/*.err "$WORK"/*.log; do
    [ -s "$f" ] || continue
    echo "--- the end of $(basename "$f")"
    tail -n 25 "$f"
  done
}

# await SECONDS CMD...: CMD until it succeeds; fails when the time is over.
await() {
  local end=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "${EPOCHREALTIME/[.,]/}" -lt "$end" ] || return 1
    sleep 0.05
  done
}

gone() { ! kill -0 "$1" 2>/dev/null; }

# as HOME CMD...: the words that run CMD with that HOME and nothing else of this
# environment. Ctrl-C works in it although it runs in the background.
as() {
  local home=$1
  shift
  CMD=(env -i --default-signal=INT PATH="$PATH" HOME="$home" LANG=C.UTF-8 "$@")
}

# spawn NAME CMD...: in the background; its id in PID, its output in NAME.out and NAME.err.
spawn() {
  local name=$1
  shift
  # Emptied here and not only by the child's redirection, which may come later
  # than the first look: what a former process wrote would be taken for this one's.
  : >"$WORK/$name.out"
  : >"$WORK/$name.err"
  "$@" >"$WORK/$name.out" 2>"$WORK/$name.err" </dev/null &
  PID=$!
  PIDS+=("$PID")
}

# run NAME CMD...: waits for it, a minute at most; its exit code in RC.
run() {
  local name=$1
  shift
  RC=0
  timeout --foreground --kill-after=5 60 "$@" >"$WORK/$name.out" 2>"$WORK/$name.err" </dev/null || RC=$?
}

# ended PID: waits a minute at most for a spawned process; its exit code in RC.
ended() {
  RC=0
  await 60 gone "$1" || kill -KILL "$1" 2>/dev/null || true
  wait "$1" || RC=$?
  forget "$1"
}

# stop PID: asks it to end and demands that it does.
stop() {
  kill -TERM "$1" 2>/dev/null || true
  await 15 gone "$1" || kill -KILL "$1" 2>/dev/null || true
  RC=0
  wait "$1" || RC=$?
  forget "$1"
}

forget() {
  local keep=() p
  for p in "${PIDS[@]}"; do [ "$p" = "$1" ] || keep+=("$p"); done
  PIDS=("${keep[@]}")
}

# check "what holds" CMD...: one counted test.
check() {
  local what=$1
  shift
  if "$@" >"$WORK/said" 2>&1; then
    PASSED=$((PASSED + 1))
    echo "ok - $NAME: $what"
  else
    FAILED=$((FAILED + 1))
    echo "not ok - $NAME: $what"
    echo "#   failed: $*"
    tail -n 5 "$WORK/said" | sed 's/^/#   /'
  fi
}

# must: like check, and without it the rest makes no sense.
must() {
  local before=$FAILED
  check "$@"
  [ "$FAILED" = "$before" ] || finish
}

finish() {
  echo "$NAME: $PASSED passed, $FAILED failed"
  [ "$FAILED" = 0 ] || exit 1
  exit 0
}

eq() { [ "$1" = "$2" ]; }

# code N: the last run, ended or stop left with it.
code() { [ "$RC" = "$1" ]; }

# found ARGS...: grep -q at the end of a pipe; it reads on, so that what writes
# does not fail.
found() { grep "$@" >/dev/null; }

# has FILE TEXT: in any case of letters.
has() { grep -qiF -- "$2" "$WORK/$1"; }
lacks() { ! grep -qF -- "$2" "$WORK/$1"; }

# json NAME FILTER: NAME.out is one JSON value, and the jq filter holds for it.
json() { jq -es "length == 1 and (.[0] | ($2))" "$WORK/$1.out"; }

# whole FILES...: their lines, without one that is still being written.
whole() {
  local file line
  for file in "$@"; do
    while IFS= read -r line; do printf '%s\n' "$line"; done <"$WORK/$file"
  done
}

# link FILES...: the first join link that a coordinator printed.
link() { (whole "$@" | grep -oE 'mintai://[]a-z0-9:/.?=&[-]+' | head -n 1); }

# start_coordinator HOME [ARGS...]: COORDINATOR is its id, LINK its join link.
# shellcheck disable=SC2034 # for the scripts
start_coordinator() {
  as "$1" "$MINTAI" -mode coordinator "${@:2}"
  spawn coordinator "${PREFIX[@]}" "${CMD[@]}"
  COORDINATOR=$PID
  await 15 eval 'link coordinator.out coordinator.err || gone "$COORDINATOR"'
  LINK=$(link coordinator.out coordinator.err) && [ -n "$LINK" ]
}
PREFIX=() # natlab exec HOST --, where a script runs in the laboratory

# start_miner HOME CONFIG [ARGS...]: MINER is its id.
# shellcheck disable=SC2034 # for the scripts
start_miner() {
  as "$1" "$MINTAI" -mode miner -config "$2" "${@:3}"
  spawn miner "${PREFIX[@]}" "${CMD[@]}"
  MINER=$PID
}

# public_link: the first for 20.0.0.1, as a coordinator at pub printed it.
public_link() { whole coordinator.out | grep -oE 'mintai://20[.]0[.]0[.]1:[]a-z0-9:/.?=&[-]+' | head -n 1; }

# lab A B RTT: a laboratory with a coordinator at pub, the miner of miner.toml at b,
# and the client's PREFIX at a; LINK is for all of them. Ends the script on failure.
lab() {
  export NATLAB_LAB=e$$
  rm -rf "$WORK/server" "$WORK/box" "$WORK/look"
  mkdir "$WORK/server" "$WORK/box" "$WORK/look"
  printf '[coordinator]\npublic = ["20.0.0.1"]\n' >"$WORK/coordinator.toml"
  must "$1/$2: the laboratory is up" "$NATLAB" up --a "$1" --b "$2" --rtt "$3" --bind-pid $$
  PREFIX=("$NATLAB" exec pub --)
  must "$1/$2: a coordinator starts" start_coordinator "$WORK/server" -config "$WORK/coordinator.toml"
  must "$1/$2: it prints a link for everybody" await 15 public_link
  LINK=$(public_link)
  awk -v join="$LINK" '{print} $1 == "[miner]" {printf "join = \"%s\"\n", join}' "$WORK/miner.toml" >"$WORK/box.toml"
  chmod 600 "$WORK/box.toml" # it holds a join secret
  PREFIX=("$NATLAB" exec b --)
  start_miner "$WORK/box" "$WORK/box.toml"
  PREFIX=("$NATLAB" exec a --)
  must "$1/$2: the demo model is seen" await 30 offers "$WORK/look" demo -join "$LINK"
}

lab_down() {
  stop "$MINER"
  stop "$COORDINATOR"
  "$NATLAB" down
}

# offers HOME MODEL [ARGS...]: the client sees that model.
offers() {
  as "$1" "$MINTAI" -mode client models "${@:3}"
  "${PREFIX[@]}" timeout --foreground 20 "${CMD[@]}" </dev/null 2>/dev/null | found -F -- "$2"
}

# rss PID: its resident memory in MB.
rss() { awk '/^VmRSS:/ {printf "%d\n", $2 / 1024}' "/proc/$1/status"; }

# ports PID: the UDP and TCP ports that it listens on, as the system sees them.
ports() { ss -Hlntup | awk -v pid="pid=$1," 'index($0, pid) {n = split($5, a, ":"); print a[n]}' | sort -un; }

median() { sort -n | awk '{a[NR]=$1} END {if (NR) printf "%.1f\n", NR%2 ? a[(NR+1)/2] : (a[NR/2]+a[NR/2+1])/2}'; }
