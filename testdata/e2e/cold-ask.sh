#!/usr/bin/env bash
# How long until the first token, in round trips: a client at host a, a miner at
# host b, a coordinator at pub, and R = 50 ms on every leg of the NAT laboratory.
# The model needs no time of its own. Medians of N runs each:
#
#   empty HOME      a client that never spoke to the coordinator    limit 5 R
#   stored ticket   one that did, in an earlier process             limit 4 R
#   warm tunnel     a request through a running `client proxy`      limit 1.2 R
#
# The first two are ttft_ms of -json, from the start of the process. With empty
# HOME the join link comes by -join. Another load on the machine only ever adds to
# these times: a median over its limit is measured again, that one alone, up to five
# rounds, and the table says which round it shows. Fails when the fifth is over its
# limit too.
# Root on Linux; jq, curl, iproute2, nftables.
#
#   cold-ask.sh [N [KIND...]]     default: 9 none eim-apdf (natlab kinds)
. "$(dirname "$0")/lib.sh"

[ "$(id -u)" = 0 ] || die "needs root for network namespaces"
need jq curl ip nft
N=${1:-9}
R=50
KINDS=("${@:2}")
[ ${#KINDS[@]} -gt 0 ] || KINDS=(none eim-apdf)
prepare mintai natlab firsttoken
cd "$WORK"
cat >miner.toml <<'T'
[miner]
name = "demo-box"
[[miner.backend]]
type = "demo"
first_token = "0ms"
tokens_per_second = 1000
tokens = 8
T

# ttft HOME: one ask, its ttft_ms added to the file HOME.ms beside that folder.
ttft() {
  as "$1" "$MINTAI" -mode client ask -json -join "$LINK" "tell me"
  run ask "$NATLAB" exec a -- "${CMD[@]}"
  if ! code 0 || ! json ask '.path.kind | startswith("relay") | not' >/dev/null; then
    cat ask.out ask.err >&2
    return 1
  fi
  jq .ttft_ms ask.out
}
cold() {
  local i
  for ((i = 0; i < N; i++)); do
    mkdir "empty$i"
    ttft "$WORK/empty$i" || return 1
    rm -rf "empty$i"
  done >cold.ms
}
ticket() {
  local i
  rm -rf known
  mkdir known
  ttft "$WORK/known" >/dev/null || return 1
  for ((i = 0; i < N; i++)); do ttft "$WORK/known" || return 1; done >ticket.ms
}
warm() {
  rm -rf warm
  mkdir warm
  as "$WORK/warm" "$MINTAI" -mode client proxy -join "$LINK"
  spawn proxy "$NATLAB" exec a -- "${CMD[@]}"
  local proxy=$PID
  await 20 "$NATLAB" exec a -- curl -fsS http://127.0.0.1:11500/v1/models || return 1
  "$NATLAB" exec a -- "$WORK/firsttoken" -n "$N" -model demo >warm.ms || return 1
  stop "$proxy"
}
# within FILE LIMIT-IN-R WHAT ROUND: prints the median, in milliseconds and in R.
within() {
  awk -v m="$(median <"$1")" -v r="$R" -v limit="$2" -v kind="$kind" -v what="$3" -v round="$4" 'BEGIN {
    printf "%-10s %-14s %7.1f ms  %5.2f R  limit %.1f R%s\n", kind, what, m, m / r, limit, (round > 1 ? "  (round " round ")" : "")
    exit !(m > 0 && m <= limit * r) }' >>table
}

# calm FILE LIMIT-IN-R: whether the median is within its limit.
calm() {
  awk -v m="$(median <"$1")" -v r="$R" -v limit="$2" 'BEGIN { exit !(m > 0 && m <= limit * r) }'
}

# settle MEASURE LIMIT-IN-R WHAT: measures until the median is within its limit.
settle() {
  local round
  for round in 1 2 3 4 5; do
    must "$kind: $N answers, $3" "$1"
    ! calm "$1.ms" "$2" || break
  done
  check "$kind: $3 within $2 R" within "$1.ms" "$2" "$3" "$round"
}

for kind in "${KINDS[@]}"; do
  lab "$kind" "$kind" "$R"
  settle cold 5 "empty HOME"
  settle ticket 4 "stored ticket"
  settle warm 1.2 "warm tunnel"
  lab_down
done
echo "# medians of $N, R = $R ms"
sed 's/^/# /' table
finish
