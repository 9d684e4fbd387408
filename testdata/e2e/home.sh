#!/usr/bin/env bash
# A coordinator at home: in the NAT laboratory it runs at host a, behind a router
# with a real miniupnpd and its usual rule (nothing below 1024), without any
# configuration at first, then with TLS on a port that the router forwards. What it
# says of its reach must be true; its Internet link must work from outside, direct and
# relayed, for a miner behind another NAT and for those in its own LAN and on its own
# machine; and the router must be as it was once it has ended.
# Root on Linux; jq, iproute2, nftables, miniupnpd.
. "$(dirname "$0")/lib.sh"

[ "$(id -u)" = 0 ] || die "needs root for network namespaces"
need jq ip nft miniupnpd
prepare mintai natlab
cd "$WORK"
export NATLAB_LAB=h$$
mkdir server neighbour guest stranger blocked
printf '[client]\nrelay = "always"\n' >always.toml

# at HOST: AT runs a command there; n is a second machine in a's LAN.
NEIGHBOUR=natlab-$NATLAB_LAB-n
at() {
  AT=("$NATLAB" exec "$1" --)
  [ "$1" != n ] || AT=(ip netns exec "$NEIGHBOUR")
}
neighbour_up() {
  local router=natlab-$NATLAB_LAB-natA
  ip netns add "$NEIGHBOUR" &&
    ip -n "$router" link add n0 type veth peer name eth0 netns "$NEIGHBOUR" &&
    ip -n "$router" link set n0 master br0 up &&
    ip -n "$NEIGHBOUR" addr add 192.168.1.50/24 dev eth0 &&
    ip -n "$NEIGHBOUR" link set lo up &&
    ip -n "$NEIGHBOUR" link set eth0 up &&
    ip -n "$NEIGHBOUR" route add default via 192.168.1.1
}
# shellcheck disable=SC2329 # by trap
leave() {
  local code=$?
  set +e
  ip netns del "$NEIGHBOUR" 2>/dev/null # it may be gone
  (exit "$code")
  cleanup
}

# join FILE NAME LINK: a miner's configuration.
join() {
  printf '[miner]\nname = "%s"\njoin = "%s"\nmetrics = ""\n[[miner.backend]]\ntype = "demo"\ntokens_per_second = 2000\n' "$2" "$3" >"$1"
  chmod 600 "$1" # it holds a join secret
}
# printed PLACE: the newest link for it.
printed() { grep -oE "^ +$1 +mintai://[^ ]+" coordinator.out | tail -n 1 | grep -oE 'mintai://.*'; }

# ask NAME HOST HOME MODEL ARGS...
ask() {
  as "$WORK/$3" "$MINTAI" -mode client "${@:5}" ask -json -m "$4" "tell me"
  at "$2"
  run "$1" "${AT[@]}" "${CMD[@]}"
}
sees() { # HOST HOME MODEL LINK
  as "$WORK/$2" "$MINTAI" -mode client models -join "$4"
  at "$1"
  "${AT[@]}" timeout --foreground 20 "${CMD[@]}" </dev/null 2>/dev/null | found -F -- "$3"
}
rules() { "$NATLAB" exec natA -- nft list ruleset | grep -cE 'dnat.*192\.168\.1\.2[: ]' || true; }
more_than() { [ "$(rules)" -gt "$1" ]; }
none_left() { [ "$(rules)" = 0 ]; }
direct_from_afar() {
  ask far b box demo@own-box -join "$1"
  code 0 && json far "$DIRECT"
}
DIRECT='.path.kind | IN("host", "srflx", "prflx", "mapped")'

visit() { # KIND of the miner's NAT, the coordinator's ARGS...
  local kind=$1 miner lan own rules tls=443
  [ $# = 1 ] || tls=4443
  rm -rf server box && mkdir server box
  must "$kind: the laboratory is up" "$NATLAB" up --a upnp --b "$kind" --rtt 20 --bind-pid $$
  must "$kind: with a neighbour" neighbour_up
  # shellcheck disable=SC2034 # of lib.sh
  PREFIX=("$NATLAB" exec a --)
  must "$kind: a coordinator starts at home" start_coordinator "$WORK/server" "${@:2}"
  must "$kind: the router forwards its ports" await 20 printed Internet
  LINK=$(printed Internet)
  check "$kind: the link leads to the router" eval '[[ $LINK = mintai://30.0.0.1:4433/* ]]'
  check "$kind: it knows no more than that" has coordinator.out "reachable: unknown: the router forwards"

  join box.toml far-box "$LINK"
  as "$WORK/box" "$MINTAI" -mode miner -config box.toml
  spawn miner "$NATLAB" exec b -- "${CMD[@]}"
  miner=$PID
  must "$kind: a miner elsewhere comes in" await 20 sees pub stranger demo "$LINK"
  must "$kind: it is reachable, and says so" await 5 has coordinator.out "reachable: yes"
  check "$kind: what is forwarded is said" await 10 has coordinator.out "  forwarded: UDP 3478-3479, 4433, 49160-49171"
  check "$kind: the link carries TCP $tls" eval '[[ $LINK = *[?\&]tls=$tls* ]]'
  if [ "$tls" = 443 ]; then
    check "$kind: TCP 443 is not forwarded, and that is said" has coordinator.out "not forwarded: TCP 443,"
  else
    check "$kind: TCP $tls is forwarded as well" has coordinator.out " and TCP $tls"
    ask blocked pub blocked demo@far-box -join "${LINK/:4433/:4444}"
    check "$kind: and leads to the coordinator where no UDP does" code 0
  fi

  ask direct pub stranger demo@far-box -join "$LINK"
  check "$kind: an answer, outside to outside" code 0
  check "$kind: direct" json direct "$DIRECT"
  ask relayed pub stranger demo@far-box -join "$LINK" -config "$WORK/always.toml"
  check "$kind: an answer by the relay at home" code 0
  check "$kind: relayed" json relayed '.path.kind == "relay-udp"'
  ask inside n guest demo@far-box -join "$(printed LAN)" -config "$WORK/always.toml"
  check "$kind: inside to outside by the relay" code 0
  check "$kind: relayed too" json inside '.path.kind | startswith("relay")'

  join lan.toml lan-box "$(printed LAN)"
  as "$WORK/neighbour" "$MINTAI" -mode miner -config lan.toml
  at n
  spawn lan "${AT[@]}" "${CMD[@]}"
  lan=$PID
  must "$kind: a miner in the LAN comes in" await 20 sees pub stranger lan-box "$LINK"
  ask home pub stranger demo@lan-box -join "$LINK" -config "$WORK/always.toml"
  check "$kind: outside to inside by the relay" code 0
  check "$kind: relayed as well" json home '.path.kind == "relay-udp"'

  printf '[miner]\nname = "own-box"\nmetrics = ""\n[[miner.backend]]\ntype = "demo"\ntokens_per_second = 2000\n' >own.toml
  as "$WORK/server" "$MINTAI" -mode miner -config own.toml
  rules=$(rules)
  spawn own "$NATLAB" exec a -- "${CMD[@]}"
  own=$PID
  must "$kind: a miner on the same machine comes in" await 20 sees pub stranger own-box "$LINK"
  ask same pub stranger demo@own-box -join "$LINK" -config "$WORK/always.toml"
  check "$kind: outside to the same machine by the relay" code 0
  check "$kind: that is relayed" json same '.path.kind == "relay-udp"'
  # A port takes a moment to be forwarded, and to be told of.
  check "$kind: the router forwards its port too" await 20 more_than "$rules"
  check "$kind: direct from behind the other NAT" await 5 direct_from_afar "$LINK"

  check "$kind: the router has rules for them" test "$(rules)" -ge 15
  stop "$own"
  stop "$lan"
  stop "$miner"
  stop "$COORDINATOR"
  check "$kind: the coordinator ends well" code 0
  check "$kind: the router has none left" await 10 none_left
  ip netns del "$NEIGHBOUR"
  "$NATLAB" down
}

trap leave EXIT
visit eim-apdf
printf '[coordinator.tls]\nlisten = ":4443"\n' >tls.toml
visit sym -config "$WORK/tls.toml"
finish
