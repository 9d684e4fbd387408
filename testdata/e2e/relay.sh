#!/usr/bin/env bash
# The relay, only when needed: in the NAT laboratory the client sits at host a, the
# miner at host b, the coordinator at pub. Direct first; then direct UDP between a
# and b is blocked, and the answer comes by relay and says so. The laboratory's own
# packet counters prove both. For public addresses and for usual home routers.
# Root on Linux; jq, iproute2, nftables.
#
#   relay.sh [KIND...]     default: none eim-apdf (natlab kinds)
. "$(dirname "$0")/lib.sh"

[ "$(id -u)" = 0 ] || die "needs root for network namespaces"
need jq ip nft
KINDS=("$@")
[ ${#KINDS[@]} -gt 0 ] || KINDS=(none eim-apdf)
prepare mintai natlab
cd "$WORK"
cat >miner.toml <<'T'
[miner]
name = "demo-box"
[[miner.backend]]
type = "demo"
tokens_per_second = 2000
tokens = 4000
T

# bytes FROM TO: what has arrived on the way between two hosts.
bytes() { "$NATLAB" status | jq ".Pairs[\"$1>$2\"].Bytes // 0"; }
# count NAME: remembers all counters that matter.
count() {
  local way
  for way in b:a a:pub pub:a b:pub pub:b; do
    printf -v "$1_${way/:/_}" '%s' "$(bytes "${way%:*}" "${way#*:}")"
  done
}
grown() { echo $(($2 - $1)); } # FROM TO

ask() { # NAME ARGS...
  as "$WORK/client" "$MINTAI" -mode client ask -json -join "$LINK" "${@:2}" "tell me"
  run "$1" "$NATLAB" exec a -- "${CMD[@]}"
}

for kind in "${KINDS[@]}"; do
  echo "# $kind on both sides"
  rm -rf client
  mkdir client
  lab "$kind" "$kind" 20

  count before
  ask direct
  count after
  must "$kind: open: an answer" code 0
  check "$kind: open: the path is direct" json direct '.path.kind | IN("host", "srflx", "prflx", "mapped")'
  size=$(jq -j .answer direct.out | wc -c)
  # shellcheck disable=SC2154
  check "$kind: open: its $size bytes went from b to a" test "$(grown "$before_b_a" "$after_b_a")" -ge "$size"
  # shellcheck disable=SC2154
  check "$kind: open: and not over the coordinator" test "$(grown "$before_pub_a" "$after_pub_a")" -lt $((size / 2))

  must "$kind: direct UDP is blocked" "$NATLAB" block a b on
  count before
  ask relayed
  count after
  must "$kind: blocked: an answer all the same" code 0
  check "$kind: blocked: the path is relay-udp" json relayed '.path.kind == "relay-udp"'
  check "$kind: blocked: and the reason is said" json relayed '.path.reason | length > 0'
  check "$kind: blocked: the same answer" eval 'cmp <(jq -j .answer direct.out) <(jq -j .answer relayed.out)'
  check "$kind: blocked: nothing went from b to a" eq 0 "$(grown "$before_b_a" "$after_b_a")"
  # shellcheck disable=SC2154
  check "$kind: blocked: its bytes went from b to the coordinator" test "$(grown "$before_b_pub" "$after_b_pub")" -ge "$size"
  check "$kind: blocked: and from there to a" test "$(grown "$before_pub_a" "$after_pub_a")" -ge "$size"
  as "$WORK/client" "$MINTAI" -mode client ask -join "$LINK" -v "tell me"
  run footer "$NATLAB" exec a -- "${CMD[@]}"
  check "$kind: blocked: -v says relay" has footer.err relay
  check "$kind: the coordinator's log does not hold the prompt" lacks coordinator.err "tell me"

  must "$kind: direct UDP is free again" "$NATLAB" block a b off
  ask again
  check "$kind: open again: the next answer is direct" json again '.path.kind | startswith("relay") | not'

  lab_down
done
finish
