#!/usr/bin/env bash
# The three commands as a user types them: coordinator, miner and client in
# processes of their own, with an empty HOME and the default ports, in a network
# namespace of its own. With the built-in engine, the load simulator, and an
# OpenAI-compatible server; then curl and the official OpenAI SDK through
# `client proxy`.
# Root or unprivileged user namespaces; jq, curl, iproute2.
. "$(dirname "$0")/lib.sh"

[ -n "${E2E_NETWORK:-}" ] || { need jq curl script && prepare mintai openaiserver openaisdk; }
own_network "$@"

HOME1=$WORK/home STRANGER=$WORK/stranger
mkdir -p "$HOME1" "$STRANGER"
cd "$WORK"
ask() { # NAME HOME ARGS...
  as "$2" "$MINTAI" -mode client ask "${@:3}"
  run "$1" "${CMD[@]}"
}

echo "# one user, one machine, nothing configured"

as "$HOME1" "$MINTAI" -mode client ask -json "anyone there?"
run nobody "${CMD[@]}"
check "without a coordinator the client says so" code 5
check "and its JSON has a code, a message and a hint" json nobody '.v == 1 and (.error | .code and .message and .hint)'

must "a coordinator starts and prints a join link" start_coordinator "$HOME1"
prints_ports() {
  local port
  [ -n "$(ports "$COORDINATOR")" ] || return
  for port in $(ports "$COORDINATOR"); do
    cat coordinator.out coordinator.err | found -E "[^0-9]$port([^0-9]|$)" || { echo "port $port is not printed" && return 1; }
  done
}
# Each port that stays: the one from which the router is searched for is open for
# some seconds at the start, and no number of it can be printed.
check "it prints every port that the system sees" eval 'await 10 prints_ports || prints_ports'
check "and says that it searches for the router from one more" has coordinator.out "any free port, for seconds, while the router is asked"
check "/healthz answers on loopback" curl -fsS http://127.0.0.1:9464/healthz
check "/metrics too, in Prometheus' form" eval 'curl -fsS http://127.0.0.1:9464/metrics | found "^# TYPE "'
SECRET=${LINK%%\?*} SECRET=${SECRET##*/}
cp "$ROOT/config.example.toml" miner.toml
start_miner "$HOME1" miner.toml
must "a miner with the untouched example configuration is seen" await 20 offers "$HOME1" builtin

ask tunnel "$HOME1" "What is a tunnel?"
must "ask answers" code 0
check "with a dictionary's words" has tunnel.out passage
check "and says that it is no language model" has tunnel.err "not a language model"
ask sum "$HOME1" -q "what is 12 * 7"
check "it calculates" has sum.out 84
ask json "$HOME1" -json "What is a tunnel?"
check "-json is one object with every field" json json '
  .v == 1 and .model == "builtin" and (.answer | length > 0) and (.miner | length > 0)
  and (.path.kind | IN("host", "srflx", "prflx", "mapped")) and (.path.reason | type == "string")
  and (.path.rtt_ms | type == "number") and has("path_first") and .match_ms >= 0 and .connect_ms >= 0
  and .ttft_ms > 0 and .total_ms >= .ttft_ms and (.tokens | type == "number")
  and (.tokens_per_second | type == "number") and .attempts >= 1'
check "stdout of -json is one line" eq 1 "$(wc -l <json.out)"
mkfifo silent
exec 9<>silent
as "$HOME1" "$MINTAI" -mode client ask -q "what is 12 * 7"
RC=0
timeout 30 "${CMD[@]}" <&9 >silence.out 2>silence.err || RC=$?
exec 9>&-
check "an open but silent standard input is left after a while" eval 'code 0 && has silence.out 84 && [ -s silence.err ]'
check "a miner takes no more than 40 MB" eval 'echo "$(rss "$MINER") MB" && [ "$(rss "$MINER")" -le 40 ]'
ask models "$HOME1" -m no-such-model "hello"
check "a model that nobody has: exit 4" code 4
check "the message names it" has models.err no-such-model
as "$HOME1" "$MINTAI" -mode client aks "hello"
run verb "${CMD[@]}"
check "an unknown verb: exit 2" code 2
check "the nearest one is named" has verb.err ask
as "$HOME1" "$MINTAI" -help
run help "${CMD[@]}"
check "-help is a screen that shows the three commands" eval 'code 0 && cat help.out help.err >h && grep -q "mode coordinator" h && grep -q "mode miner" h && grep -q "client ask" h && [ "$(wc -l <h)" -le 40 ]'
as "$HOME1" "$MINTAI" -version
run version "${CMD[@]}"
check "-version names the Go version" eval 'code 0 && cat version.out version.err | found "go1\."'

ask outsider "$STRANGER" -join "$LINK" "What is a tunnel?"
check "the built-in engine is not offered to others: exit 4" code 4
check "the message says that no AI server runs" has outsider.err "runs no AI server"
ask wrong "$STRANGER" -join "${LINK/$SECRET/$(tr a-y b-z <<<"$SECRET")}" "hello"
check "a link with a wrong secret is refused: exit 3" code 3
ask unlinked "$STRANGER" "hello"
check "another user without a link finds no coordinator: exit 5" code 5
stop "$MINER"
check "the miner ends when asked" code 0

echo "# the load simulator, and three ways to give a link"

cat >demo.toml <<'T'
[miner]
name = "demo-box"
[[miner.backend]]
type = "demo"
first_token = "20ms"
tokens_per_second = 500
tokens = 50
T
start_miner "$HOME1" demo.toml
must "the demo model is seen" await 20 offers "$HOME1" demo
ask demo "$HOME1" -json "hello"
check "demo answers on a direct path" json demo '.answer != "" and .miner == "demo-box" and .tokens == 50 and (.path.kind | startswith("relay") | not)'
ask bylink "$STRANGER" -q -join "$LINK" "hello"
check "-join LINK" eval 'code 0 && [ -s bylink.out ]'
CMD=(env -i PATH="$PATH" HOME="$STRANGER" MINTAI_JOIN="$LINK" "$MINTAI" -mode client ask -q "hello")
run byenv "${CMD[@]}"
check "MINTAI_JOIN" eval 'code 0 && cmp -s bylink.out byenv.out'
as "$STRANGER" "$MINTAI" -mode client join "$LINK"
run joined "${CMD[@]}"
check "client join LINK" code 0
ask byjoin "$STRANGER" -q "hello"
check "and from then on without it" eval 'code 0 && cmp -s bylink.out byjoin.out'
check "the secret is shown to nobody" lacks joined.err "$SECRET"
stop "$MINER"
sed 's/^tokens = 50/token = 50/' demo.toml >typo.toml
as "$HOME1" "$MINTAI" -mode miner -config typo.toml
run typo "${CMD[@]}"
check "a typo in the configuration: exit 2, the line, the nearest key" eval 'code 2 && has typo.err typo.toml:7 && has typo.err tokens'
find "$STRANGER" -type f -name '*key*' -exec chmod 644 {} +
ask exposed "$STRANGER" -q "hello"
check "a key that others can read is refused: exit 2" code 2
rm -rf "$STRANGER"
mkdir "$STRANGER"

echo "# an OpenAI-compatible server, with everything logged"

KEY=canary-key-5d1f0c CANARY=canary-prompt-93ab7e
spawn openai env TEST_KEY="$KEY" "$WORK/openaiserver" -addr-file "$WORK/openai.addr" -log "$WORK/openai.log" -key-env TEST_KEY
must "the test server runs" await 10 test -s "$WORK/openai.addr"
cat >openai.toml <<T
[miner]
name = "gpu-box"
[[miner.backend]]
type = "openai"
url = "http://$(cat openai.addr)"
api_key_file = "$WORK/openai.key"
models = ["test-*"]
T
(umask 077 && printf '%s\n' "$KEY" >openai.key)
stop "$COORDINATOR"
check "the coordinator ends when asked" code 0
must "it starts again" start_coordinator "$HOME1" -log-level trace
start_miner "$HOME1" openai.toml -log-level trace
must "the server's models are seen" await 20 offers "$HOME1" test-small

"$WORK/openaiserver" -print 60 >expected
ask exact "$HOME1" -m test-small -q "$CANARY [tokens=60]"
check "the answer is byte-exact through a pipe" cmp -s expected exact.out
ask usage "$HOME1" -m test-large -json "$CANARY [tokens=60] [delay=5ms]"
check "-json has the answer, the model and the tokens" eval 'jq -j .answer usage.out | cmp -s expected - && json usage ".model == \"test-large\" and .miner == \"gpu-box\" and .tokens == 60 and .tokens_per_second > 0"'
printf 'and the file says [tokens=60]\n' >file.txt
as "$HOME1" "$MINTAI" -mode client ask -m test-small -q "$CANARY"
RC=0
timeout 60 "${CMD[@]}" <file.txt >stdin.out 2>stdin.err || RC=$?
check "standard input is appended to the prompt" cmp -s expected stdin.out

ask status "$HOME1" -m test-small "$CANARY [status=422]"
check "a refusal of the AI server: exit 8" code 8
check "its own message is shown" has status.err "refused by the AI server, as the test asked"
ask cut "$HOME1" -m test-small "$CANARY [tokens=40] [delay=10ms] [abort=20]"
check "a server that dies midway: exit 6" code 6
"$WORK/openaiserver" -print 20 >half
check "what came before is kept" cmp -s half <(head -c "$(wc -c <half)" cut.out)
ask cutjson "$HOME1" -m test-small -json "$CANARY [tokens=40] [delay=10ms] [abort=20]"
check "its JSON is an error" json cutjson '.error.code and .error.message'
ask nonsense "$HOME1" -m test-small "$CANARY [nonsense]"
check "a server that answers nonsense is an error" eval '[ "$RC" != 0 ]'
ask late "$HOME1" -m test-small -timeout 1s "$CANARY [first=30s]"
check "-timeout: exit 7" code 7

as "$HOME1" "$MINTAI" -mode client ask -m test-small "$CANARY [tokens=5000] [delay=20ms]"
spawn ctrlc "${CMD[@]}"
must "a long answer begins" await 20 test -s ctrlc.out
before=$(grep -c '"event":"cancelled"' openai.log || true)
kill -INT "$PID"
ended "$PID"
check "Ctrl-C: exit 130" code 130
cancelled() { [ "$(grep -c '"event":"cancelled"' openai.log)" -gt "$before" ]; }
check "and the AI server stops working on it" await 5 cancelled

as "$HOME1" "$MINTAI" -mode client ask -m test-small "$CANARY [tokens=3] [evil]"
RC=0
timeout 60 script -qec "$(printf '%q ' "${CMD[@]}")" pty.out </dev/null >/dev/null 2>&1 || RC=$?
check "on a terminal an answer arrives" eval 'code 0 && grep -aq Light pty.out'
check "no control sequence of a stranger does" eval '! grep -aqF $'"'"'\e]0;'"'"' pty.out && ! grep -aqF $'"'"'\u202e'"'"' pty.out'
ask evil "$HOME1" -m test-small -q "$CANARY [tokens=3] [evil]"
check "a pipe gets it unchanged" grep -aqF $'\e]0;' evil.out

echo "# curl through client proxy"

as "$HOME1" "$MINTAI" -mode client proxy -log-level trace
spawn proxy "${CMD[@]}"
PROXY=$PID
API=http://127.0.0.1:11500
must "the local endpoint opens" await 10 curl -fsS "$API/v1/models"
check "an idle client takes no more than 40 MB" eval 'echo "$(rss "$PROXY") MB" && [ "$(rss "$PROXY")" -le 40 ]'
check "it lists the models" eval 'curl -fsS "$API/v1/models" | jq -e ".data | map(.id) | index(\"test-small\")"'
body() { jq -nc --arg p "$CANARY $1" --argjson s "$2" '{model: "test-small", stream: $s, stream_options: (if $s then {include_usage: true} else null end), messages: [{role: "user", content: $p}]} | del(..|nulls)'; }
body '[tokens=60]' true >q.json
check "a stream through it is byte-exact and ends properly" eval 'curl -fsSN -H "Content-Type: application/json" -d @q.json "$API/v1/chat/completions" >sse &&
  grep -q "^data: \[DONE\]" sse && sed -n "s/^data: {/{/p" sse | jq -j ".choices[0].delta.content // empty" | cmp -s expected -'
body '[tokens=60]' false >q.json
check "so is a whole answer" eval 'curl -fsS -H "Content-Type: application/json" -d @q.json "$API/v1/chat/completions" | jq -j ".choices[0].message.content" | cmp -s expected -'
body '[tokens=40] [delay=10ms] [abort=20]' true >q.json
check "a stream that is cut ends with an error" eval '! curl -fsSN -H "Content-Type: application/json" -d @q.json "$API/v1/chat/completions" >cut.sse || grep -q "\"error\"" cut.sse'
check "and not as if it were complete" eval '! grep -q "^data: \[DONE\]" cut.sse'
check "embeddings pass" eval 'curl -fsS -H "Content-Type: application/json" -d "{\"model\":\"test-embed\",\"input\":[\"a\",\"b\"]}" "$API/v1/embeddings" | jq -e ".data | length == 2"'

check "the official SDK lists the models" eval '"$WORK/openaisdk" -url "$API/v1" -list | found -x test-small'
check "and streams, byte-exact" eval '"$WORK/openaisdk" -url "$API/v1" -model test-small "$CANARY [tokens=60]" | cmp -s expected -'
check "and learns that a stream was cut" eval '! "$WORK/openaisdk" -url "$API/v1" -model test-small "$CANARY [delay=5ms] [abort=6]"'

# asked: how often the server was asked for something with a model named.
asked() { grep -cE '"event":"(start|refused)".*"model":"' openai.log || true; }
before=$(asked)
shut() { # METHOD PATH: refused, and the server sees nothing
  local status
  status=$(curl -sS --path-as-is -o /dev/null -w '%{http_code}' -X "$1" -H 'Content-Type: application/json' -d '{"model":"test-small"}' "$API$2") || status=000
  [[ $status == [45]* || $status == 000 ]]
}
for path in /api/pull /api/delete /api/create /slots /pause /v1/../api/delete /v1/%2e%2e/api/delete //v1/chat/completions /v1//chat/completions /v1/chat%2fcompletions /v1/chat/completions/ /V1/chat/completions; do
  check "POST $path is shut" shut POST "$path"
done
check "so is PUT" shut PUT /v1/chat/completions
check "so is CONNECT" shut CONNECT /v1/chat/completions
check "the AI server saw none of these" eval 'eq "$before" "$(asked)"'
check "and nobody's browser or address" eval '! jq -e "select(.event == \"start\") | select((.origin // \"\") != \"\" or (.forwarded_for // \"\") != \"\" or (.user_agent // \"\" | test(\"curl\")))" openai.log'
check "a web page of another site is refused" eval '[ "$(curl -sS -o /dev/null -w "%{http_code}" -H "Host: evil.example" "$API/v1/models")" != 200 ] && [ "$(curl -sS -o /dev/null -w "%{http_code}" -H "Origin: https://evil.example" "$API/v1/models")" != 200 ]'
stop "$PROXY"
check "the proxy ends when asked" code 0
stop "$MINER"
stop "$COORDINATOR"

echo "# nothing leaked, one process"

shut_in() { ! grep -aqF -- "$1" miner.err miner.out proxy.err proxy.out openai.log; }
check "no log of a role holds a prompt" shut_in "$CANARY"
check "nor the API key" shut_in "$KEY"
check "nor the join secret" shut_in "$SECRET"
check "nor the coordinator's, but for the link it prints" eval '! grep -aqF -- "$CANARY" coordinator.out coordinator.err && ! grep -aqF -- "$KEY" coordinator.out coordinator.err'
check "no file of the state folder holds a prompt or an API key" eval '! grep -raqF -e "$CANARY" -e "$KEY" "$HOME1"'

as "$WORK/dev" "$MINTAI" -mode dev ask "What is a tunnel?"
mkdir dev
run dev "${CMD[@]}"
check "-mode dev ask answers in one process" eval 'code 0 && has dev.out passage'
finish
