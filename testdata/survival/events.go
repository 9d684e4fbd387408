package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// event is something that happens to the path of a running answer.
type event struct {
	name  string
	what  string   // in words, for the report
	lab   []string // arguments of `natlab up`
	limit time.Duration
	// turn says that a TURN server of its own runs at pub2, and relays is the
	// coordinator's setting of that name.
	turn   bool
	relays string
	// size fills each token up to so many bytes; 0: the words as they are.
	size   int
	before func(context.Context, *trial) error // before the client starts; nil: nothing
	happen func(context.Context, *trial) error // in the answer
	after  func(context.Context, *trial) error // while the rest of the answer runs; nil: nothing
	// path is what the tunnel's must be at the end, "direct" or "relay".
	path string
	// lost says that the answer cannot go on: it must end with an error in time.
	lost bool
}

// cadence is between two tokens.
const cadence = 33 * time.Millisecond

// The limits. That of an upgrade is on top of the cadence.
const (
	rescueLimit  = 3 * time.Second
	upgradeLimit = 50 * time.Millisecond
)

const usualNAT = "eim-apdf"

var usual = []string{"--a", usualNAT, "--b", usualNAT}

// natlab makes a step of one command to the laboratory.
func natlab(args ...string) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		_, err := t.lab.Control(ctx, append([]string{args[0], "--lab", t.lab.ID}, args[1:]...)...)
		return err
	}
}

const (
	ownFirst    = `relays = ["own", "turn:20.0.2.1:3478?transport=udp"]`
	othersFirst = `relays = ["turn:20.0.2.1:3478?transport=udp", "own"]`
)

var events = []event{
	{name: "rebind-client", what: "the client's NAT forgets its mappings", lab: usual, limit: rescueLimit, happen: natlab("rebind", "natA"), path: "direct"},
	{name: "rebind-miner", what: "the miner's NAT forgets its mappings", lab: usual, limit: rescueLimit, happen: natlab("rebind", "natB"), path: "direct"},
	{name: "roam-client", what: "the client moves to another network", lab: usual, limit: rescueLimit, happen: natlab("roam", "a", usualNAT), path: "direct"},
	{name: "roam-miner", what: "the miner moves to another network", lab: usual, limit: rescueLimit, happen: natlab("roam", "b", usualNAT), path: "direct"},
	{name: "blackhole-direct", what: "nothing passes between the two any more", lab: usual, limit: rescueLimit, happen: natlab("block", "a", "b", "on"), path: "relay"},
	{
		name: "relay-killed", what: "the relay's process is killed, and another takes over", lab: append([]string{"--pub2"}, usual...), limit: rescueLimit,
		turn: true, relays: othersFirst, before: natlab("block", "a", "b", "on"), happen: killTURN, path: "relay",
	},
	{
		name: "coordinator-dead-then-blackhole", what: "the coordinator, with its relay, is killed; 5 s later nothing passes between the two any more",
		lab: append([]string{"--pub2"}, usual...), limit: rescueLimit, turn: true, relays: ownFirst, happen: killThenBlock, path: "relay",
	},
	{name: "burst-loss", what: "5 % of the packets are lost, in bursts of 5", lab: usual, limit: rescueLimit, happen: natlab("set", "--loss", "5", "--loss-burst", "5"), path: ""},
	{
		name: "mtu-blackhole", what: "packets over 1,280 bytes are lost without a word; tokens of 4,000 bytes", lab: usual, limit: rescueLimit, size: 4000,
		happen: natlab("set", "--mtu-blackhole", "1280"), path: "direct",
	},
	{name: "payload-loss", what: "packets over 300 bytes are lost between the two, short ones pass", lab: usual, limit: rescueLimit, happen: natlab("maxlen", "a", "b", "300"), path: "relay"},
	{name: "sleep", what: "the client's process sleeps for 20 s; counted from its waking", lab: usual, limit: rescueLimit, happen: sleep(nil), path: "direct"},
	{name: "sleep-forgotten", what: "the same, and meanwhile the client's NAT forgets its mappings", lab: usual, limit: rescueLimit, happen: sleep(natlab("rebind", "natA")), path: "direct"},
	{
		name: "upgrade", what: "a direct path becomes possible where there was none; short requests beside it", lab: usual, limit: upgradeLimit,
		before: natlab("block", "a", "b", "on"), happen: natlab("block", "a", "b", "off"), after: relayReleased, path: "direct",
	},
	{name: "rebind-client-relayed", what: "the same on a relayed path: the client's NAT forgets its mappings", lab: usual, limit: rescueLimit, before: natlab("block", "a", "b", "on"), happen: natlab("rebind", "natA"), path: "relay"},
	{name: "roam-client-relayed", what: "the same on a relayed path: the client moves", lab: usual, limit: rescueLimit, before: natlab("block", "a", "b", "on"), happen: natlab("roam", "a", usualNAT), path: ""},
	{name: "rebind-miner-relayed", what: "the same on a relayed path: the miner's NAT forgets its mappings", lab: usual, limit: rescueLimit, before: natlab("block", "a", "b", "on"), happen: natlab("rebind", "natB"), path: "relay"},
	{name: "roam-miner-relayed", what: "the same on a relayed path: the miner moves", lab: usual, limit: rescueLimit, before: natlab("block", "a", "b", "on"), happen: natlab("roam", "b", usualNAT), path: ""},
	{
		name: "rebind-client-relayed-twice", what: "on a relayed path: the client's NAT forgets its mappings, and again 4 s later", lab: usual, limit: rescueLimit,
		before: natlab("block", "a", "b", "on"), happen: natlab("rebind", "natA"), after: again(natlab("rebind", "natA")), path: "relay",
	},
	{
		name: "roam-client-miner-blocked", what: "the miner's network blocks UDP; the client moves to another network, and back 4 s later",
		lab: []string{"--a", usualNAT, "--b", "udp-blocked"}, limit: rescueLimit,
		happen: natlab("roam", "a", usualNAT), after: again(natlab("roam", "a", "home")), path: "relay",
	},
	{name: "miner-killed", what: "the miner's process is killed: the answer ends with an error", lab: usual, limit: rescueLimit, happen: killMiner, lost: true},
}

func kill(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }

func killTURN(_ context.Context, t *trial) error { return kill(t.turn.PID()) }

func killMiner(_ context.Context, t *trial) error { return kill(t.miner.PID()) }

// killThenBlock is the one event of two steps: what counts begins with the second.
func killThenBlock(ctx context.Context, t *trial) error {
	if err := kill(t.coordinator.PID()); err != nil {
		return err
	}
	if err := wait(ctx, 5*time.Second); err != nil {
		return err
	}
	t.happened = time.Now()
	return natlab("block", "a", "b", "on")(ctx, t)
}

// untilAgain is after an event, when its answer goes on, and within the shortest
// answer.
const untilAgain = 4 * time.Second

// again lets a step happen once more, while the answer runs.
func again(step func(context.Context, *trial) error) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		if err := wait(ctx, untilAgain); err != nil {
			return err
		}
		if t.client.hasEnded() {
			return errors.New("the answer ended before it happened again")
		}
		return step(ctx, t)
	}
}

const asleep = 20 * time.Second

// sleep stops the client's process for a while, in which something else may happen.
func sleep(meanwhile func(context.Context, *trial) error) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		pid := t.client.cmd.Process.Pid
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return err
		}
		err := wait(ctx, asleep/2)
		if err == nil && meanwhile != nil {
			err = meanwhile(ctx, t)
		}
		if err == nil {
			err = wait(ctx, asleep/2)
		}
		t.woke = time.Now()
		return errors.Join(err, syscall.Kill(pid, syscall.SIGCONT))
	}
}

// relayReleased waits until the coordinator has no relayed address in use, while
// the answer still runs.
func relayReleased(ctx context.Context, t *trial) error {
	const gauge = "mintai_coordinator_relay_allocations 0"
	for {
		out, problem, code, err := t.lab.Run(ctx, "pub", t.lab.Dir, t.self, fetchWord, "http://127.0.0.1:9464/metrics", gauge)
		switch {
		case err != nil || code != 0:
			return fmt.Errorf("the coordinator's metrics: exit code %d: %w %s", code, err, problem)
		case out == "true\n":
			t.released = time.Now()
			return nil
		case t.client.hasEnded():
			return fmt.Errorf("the answer ended, and the relay was in use")
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// writeConfigs writes what the roles need to know.
func (t *trial) writeConfigs(e event) error {
	coordinator := "[coordinator]\npublic = [\"20.0.0.1\", \"20.0.0.2\"]\n"
	if e.relays != "" {
		secret := filepath.Join(t.lab.Dir, "turn.secret")
		coordinator += e.relays + "\n[coordinator.turn]\nsecret_file = " + strconv.Quote(secret) + "\n"
		if err := os.WriteFile(secret, []byte(turnSecret), 0o600); err != nil {
			return err
		}
	}
	miner := "[miner]\nname = \"box\"\n[[miner.backend]]\ntype = \"openai\"\nurl = \"http://127.0.0.1:8000\"\n"
	for name, text := range map[string]string{"coordinator.toml": coordinator, "miner.toml": miner} {
		if err := os.WriteFile(filepath.Join(t.lab.Dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}
