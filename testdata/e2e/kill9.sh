#!/usr/bin/env bash
# The coordinator steps out: it is killed (-9) after the first token of an answer.
# The answer completes, byte for byte; a further request through `client proxy` on
# its warm tunnel works; and when the coordinator is back, so is everything else,
# without a restart of the miner. In a network namespace of its own.
# Root or unprivileged user namespaces; jq, curl, iproute2.
. "$(dirname "$0")/lib.sh"

[ -n "${E2E_NETWORK:-}" ] || { need jq curl && prepare mintai; }
own_network "$@"

HOME1=$WORK/home
mkdir -p "$HOME1"
cd "$WORK"
cat >miner.toml <<'T'
[miner]
name = "demo-box"
[[miner.backend]]
type = "demo"
first_token = "100ms"
tokens_per_second = 50
tokens = 150
T
must "a coordinator starts" start_coordinator "$HOME1"
start_miner "$HOME1" miner.toml
must "the demo model is seen" await 20 offers "$HOME1" demo

as "$HOME1" "$MINTAI" -mode client ask -m demo -q "tell me"
ASK=("${CMD[@]}")
run reference "${ASK[@]}"
must "an answer to compare with" eval 'code 0 && [ -s reference.out ]'

as "$HOME1" "$MINTAI" -mode client proxy
spawn proxy "${CMD[@]}"
PROXY=$PID
API=http://127.0.0.1:11500
jq -nc '{model: "demo", stream: true, messages: [{role: "user", content: "tell me"}]}' >q.json
through_proxy() { # NAME: the text of a whole stream in NAME.txt
  curl -fsSN --max-time 60 -H 'Content-Type: application/json' -d @q.json "$API/v1/chat/completions" >"$1.sse" &&
    grep -q '^data: \[DONE\]' "$1.sse" &&
    sed -n 's/^data: {/{/p' "$1.sse" | jq -j '.choices[0].delta.content // empty' >"$1.txt"
}
must "the local endpoint opens" await 10 curl -fsS "$API/v1/models"
must "its tunnel is warm" through_proxy warm

spawn running "${ASK[@]}"
RUNNING=$PID
spawn streaming curl -fsSN --max-time 60 -H 'Content-Type: application/json' -d @q.json "$API/v1/chat/completions"
STREAMING=$PID
must "the first token has come" await 20 test -s running.out
must "and through the proxy" await 20 grep -q '"content":"[^"]' streaming.out
{ # the shell would say "Killed"
  kill -KILL "$COORDINATOR"
  ended "$COORDINATOR"
} 2>/dev/null
check "the coordinator is dead" code 137
check "the answer was still running" eval '! gone "$RUNNING" && [ "$(wc -c <running.out)" -lt "$(wc -c <reference.out)" ]'
ended "$RUNNING"
check "the answer completes: exit 0" code 0
check "the answer is byte-exact" cmp reference.out running.out
ended "$STREAMING"
check "so does the one through the proxy" eval 'code 0 && grep -q "^data: \[DONE\]" streaming.out && sed -n "s/^data: {/{/p" streaming.out | jq -j ".choices[0].delta.content // empty" | cmp - warm.txt'
check "a further request on the warm tunnel works" through_proxy further
check "byte-exact too" cmp warm.txt further.txt
run lost "${ASK[@]}"
check "a new client says that there is no coordinator: exit 5" code 5

must "the coordinator comes back" start_coordinator "$HOME1"
check "the miner finds it by itself" await 60 offers "$HOME1" demo
run again "${ASK[@]}"
check "and a new client is answered" eval 'code 0 && cmp reference.out again.out'
check "the miner was never restarted" eval '! gone "$MINER"'
stop "$PROXY"
stop "$MINER"
stop "$COORDINATOR"
finish
