#!/usr/bin/env bash
# `netcheck` tells every network apart: on each of natlab's kinds, against a
# coordinator at pub with two addresses of each family, its report must say what
# natlab's own labels say (natlab kinds, natlab check). Two kinds a laboratory, at
# hosts a and b. The time it takes is checked too. Then `ping` must tell a direct
# path from a relayed one, and why.
# Root on Linux; jq, iproute2, nftables; miniupnpd for kind upnp.
#
#   netcheck.sh [KIND...]     default: all of them, and ping
#   R=150 netcheck.sh         with another round trip, in milliseconds
. "$(dirname "$0")/lib.sh"

[ "$(id -u)" = 0 ] || die "needs root for network namespaces"
need jq ip nft
R=${R:-20}
prepare mintai natlab
cd "$WORK"

# What natlab's labels come to. The router's IPv4: NAT, mapping, filtering by the
# first letters of RFC 4787's words (- none, ei, ad, apd); the hairpin; IPv6; the
# ways out: UDP, TLS, a proxy; and netcheck's one word for it.
truth() {
  grep -v '^ *#' <<'T' | awk -v kind="$1" '$1 == kind {$1 = ""; print}'
# kind       nat  mapping filtering hairpin ipv6 udp  tls proxy upnp  verdict
none         no   ei      ei        -       no   yes  yes no    no    open
none-fw      no   ei      apd       -       no   yes  yes no    no    direct
eim-eif      yes  ei      ei        yes     no   yes  yes no    no    open
eim-adf      yes  ei      ad        yes     no   yes  yes no    no    direct
eim-apdf     yes  ei      apd       yes     no   yes  yes no    no    direct
adm-apdf     yes  ad      apd       no      no   yes  yes no    no    hard
sym          yes  apd     apd       no      no   yes  yes no    no    hard
sym-seq      yes  apd     apd       no      no   yes  yes no    no    hard
sym-pp       yes  apd     apd       no      no   yes  yes no    no    hard
cgnat        yes  ei      apd       yes     no   yes  yes no    no    direct
cgnat-eif    yes  ei      apd       yes     no   yes  yes no    no    direct
cgnat-sym    yes  apd     apd       no      no   yes  yes no    no    hard
nf           yes  ei      apd       no      no   yes  yes no    no    direct
nf-open      yes  ei      apd       no      no   yes  yes no    no    direct
nf-random    yes  apd     apd       no      no   yes  yes no    no    hard
upnp         yes  ei      apd       no      no   yes  yes no    yes   open
short        yes  ei      apd       yes     no   yes  yes no    no    direct
udp-blocked  -    -       -         -       no   no   yes no    no    relayed
proxy-only   -    -       -         -       no   no   yes yes   no    relayed
dual         yes  ei      apd       yes     yes  yes  yes no    no    direct
dual-sym     yes  apd     apd       no      yes  yes  yes no    no    direct
ipv6-only    -    -       -         -       yes  yes  yes no    no    direct
T
}
KINDS=("$@")
if [ ${#KINDS[@]} = 0 ]; then mapfile -t KINDS < <("$NATLAB" kinds | awk '{print $1}'); fi
for kind in "${KINDS[@]}"; do [ -n "$(truth "$kind")" ] || die "nothing is written here about kind $kind"; done

# start_there HOST KIND: netcheck at that host, in the background; PID.
start_there() {
  local env=() router=192.168.1.1
  [ "$1" = a ] || router=192.168.2.1
  [ "$2" != proxy-only ] || env=("HTTPS_PROXY=http://$router:3128")
  mkdir -p "$WORK/home-$2"
  as "$WORK/home-$2" "${env[@]}" "$MINTAI" -mode client netcheck -json -join "$LINK"
  spawn "$2" "$NATLAB" exec "$1" -- timeout --kill-after=5 30 "${CMD[@]}"
}

# verify KIND: what it said is what is labelled.
verify() {
  local kind=$1 nat mapping filtering hairpin v6 udp tls proxy upnp verdict words
  read -r nat mapping filtering hairpin v6 udp tls proxy upnp verdict <<<"$(truth "$kind")"
  words='{"-": "", "ei": "endpoint-independent", "ad": "address-dependent", "apd": "address-and-port-dependent"}'
  said() { # WHAT FILTER WANTED
    check "$kind: $1 $3" eval "[ \"\$(jq -rs '$2' $kind.out)\" = '$3' ] || { jq -rs '$2' $kind.out; false; }"
  }
  check "$kind: one object, exit code 0" eval 'code 0 && json "$kind" ".v == 1 and .mode == \"client\""'
  local yesno='if . == null then "-" elif . then "yes" else "no" end'
  said UDP ".[0].udp | $yesno" "$udp"
  said "IPv4 NAT" ".[0].ipv4.nat | $yesno" "$nat"
  said mapping "($words | to_entries[] | select(.key == \"$mapping\").value) as \$want | if .[0].ipv4.mapping == \$want then \"$mapping\" else .[0].ipv4.mapping end" "$mapping"
  said filtering "($words | to_entries[] | select(.key == \"$filtering\").value) as \$want | if .[0].ipv4.filtering == \$want then \"$filtering\" else .[0].ipv4.filtering end" "$filtering"
  said doubtful '.[0] | [.ipv4.doubtful, .ipv6.doubtful] | any | if . then "yes" else "no" end' no
  said hairpin ".[0].hairpin | $yesno" "$hairpin"
  said IPv6 ".[0].ipv6.works | $yesno" "$v6"
  [ "$v6" = no ] || check "$kind: IPv6: own address behind a firewall" json "$kind" \
    '.ipv6.nat == false and .ipv6.mapping == "endpoint-independent" and .ipv6.filtering == "address-and-port-dependent"'
  said TLS ".[0].tls | map(.works) | any | $yesno" "$tls"
  said proxy ".[0].proxy | if . == null then \"no\" else .works | $yesno end" "$proxy"
  said "port mapping" '.[0].port_mapping | [.upnp, .nat_pmp, .pcp] | if all then "yes" elif any then "some" else "no" end' "$upnp"
  [ "$upnp" = no ] || check "$kind: a mapped port would be of use" json "$kind" '.port_mapping.usable and .double_nat == false'
  said "relay by UDP" ".[0].relay.udp | $yesno" "$udp"
  said "relay by TLS" ".[0].relay.tls | $yesno" "$tls"
  said "captive portal" ".[0].captive_portal | $yesno" no
  [ "$udp" = no ] || check "$kind: an MTU of 1500" json "$kind" '.mtu.path == 1500'
  said verdict '.[0].verdict' "$verdict"
  check "$kind: one line of advice" json "$kind" '.advice | length > 20 and (contains("\n") | not)'
  check "$kind: in 5 seconds" json "$kind" '.elapsed_ms < 5000'
}

# visit KIND KIND: a laboratory with both.
visit() {
  export NATLAB_LAB=nc$$
  rm -rf server && mkdir server
  printf '[coordinator]\npublic = ["20.0.0.1", "2a00:20::1"]\n' >coordinator.toml
  must "$1/$2: the laboratory is up" "$NATLAB" up --a "$1" --b "$2" --rtt "$R" --bind-pid $$
  PREFIX=("$NATLAB" exec pub --)
  must "$1/$2: a coordinator starts" start_coordinator "$WORK/server" -config "$WORK/coordinator.toml"
  LINK=$(sed -E 's#^mintai://[^/]*/#mintai://20.0.0.1:4433/#; s/[?].*//' <<<"$LINK")'?addr=[2a00:20::1]:4433&tls=443'
  local first second
  start_there a "$1"
  first=$PID
  start_there b "$2"
  second=$PID
  ended "$first"
  verify "$1"
  ended "$second"
  [ "$1" = "$2" ] || verify "$2"
  stop "$COORDINATOR"
  "$NATLAB" down
}

for ((i = 0; i < ${#KINDS[@]}; i += 2)); do
  visit "${KINDS[i]}" "${KINDS[i + 1]:-none}"
done
[ $# = 0 ] || finish

cat >miner.toml <<'T'
[miner]
name = "demo-box"
[[miner.backend]]
type = "demo"
T
ping() { # NAME ARGS...
  mkdir -p home-ping
  as "$WORK/home-ping" "$MINTAI" -mode client ping -join "$LINK" "${@:2}"
  run "$1" "$NATLAB" exec a -- "${CMD[@]}"
}
# says WORD WHY COUNT: that is what ping prints, so many times.
says() { [ "$(grep -c "^demo-box: $1 ($2, .*) [0-9.]* ms$" told.out)" = "$3" ] && [ "$(wc -l <told.out)" = "$3" ]; }
first_says() {
  ping told demo-box -c 1
  code 0 && says "$1" "$2" 1
}
for pair in "eim-apdf direct nat-traversed" "sym relayed both-nats-hard"; do
  read -r kind word why <<<"$pair"
  lab "$kind" "$kind" "$R"
  # The miner has measured its NAT a moment after it started.
  must "ping, $kind: $word, $why" await 20 first_says "$word" "$why"
  ping told demo-box -c 2
  check "ping, $kind: answered twice" code 0
  check "ping, $kind: two lines" says "$word" "$why" 2
  ping report demo-box -c 5 -json
  check "ping, $kind: -json says $why" json report ".answered == 5 and .path.code == \"$why\""
  check "ping, $kind: the round trip" json report "[.pings[].rtt_ms] | min | . > 0.9 * $R and . < 3.5 * $R"
  ping nobody nobody
  check "ping, $kind: nobody answers: exit code 5" code 5
  lab_down
done
finish
