package node

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// keeperAt drives a keeper by milliseconds since its tunnel was up.
type keeperAt struct {
	*keeper
	t    *testing.T
	from time.Time
}

func newKeeperAt(t *testing.T, relayed bool) *keeperAt {
	from := time.Unix(1000, 0)
	return &keeperAt{keeper: newKeeper(3*time.Second, relayed, from), t: t, from: from}
}

func (k *keeperAt) at(ms int) time.Time { return k.from.Add(time.Duration(ms) * time.Millisecond) }

// ticks looks each 100 ms from one time to another, and returns the first step
// that is not stay, and when. The miner is heard each 500 ms until heardUntil.
func (k *keeperAt) ticks(from, to, heardUntil int) (step, int) {
	for ms := from; ms <= to; ms += 100 {
		heard := min(ms, heardUntil) / 500 * 500
		if s := k.tick(k.at(ms), seen{busy: true, waits: true, online: true, heard: k.at(heard)}); s != stay {
			return s, ms
		}
	}
	return stay, to
}

func (k *keeperAt) want(what string, got, want step) {
	k.t.Helper()
	if got != want {
		k.t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

func TestKeeperLeavesASilentPath(t *testing.T) {
	k := newKeeperAt(t, false)
	s, ms := k.ticks(0, 10000, 5000)
	if s != rescue || ms < 6250 || ms > 6400 {
		t.Fatalf("%v after %d ms", s, ms)
	}
	k.introduced()
	k.want("found", k.found(k.at(6600), true), take)
	if s, ms := k.ticks(6700, 9000, 9000); s != upgrade || ms > 7000 { // it is relayed now
		t.Fatalf("%v after %d ms", s, ms)
	}
	k.want("found a direct one", k.found(k.at(9100), false), take)
	if s, _ := k.ticks(9200, 60000, 60000); s != stay {
		t.Fatalf("%v on a direct path that is well", s)
	}
}

func TestKeeperKeepsAPathThatRecovers(t *testing.T) {
	k := newKeeperAt(t, false)
	s, ms := k.ticks(0, 10000, 5000)
	k.want("silence", s, rescue)
	if s, _ := k.ticks(ms+100, ms+1000, 100000); s != stay {
		t.Fatalf("%v while one search runs", s)
	}
	k.want("found", k.found(k.at(ms+1000), true), discard)
	if s, _ := k.ticks(ms+1100, ms+30000, 100000); s != stay {
		t.Fatalf("%v afterwards", s)
	}
}

func TestKeeperGivesUpInTime(t *testing.T) {
	t.Run("nobody introduces", func(t *testing.T) {
		k := newKeeperAt(t, false)
		s, ms := k.ticks(0, 10000, 5000)
		k.want("silence", s, rescue)
		if s, ms := k.ticks(ms+100, 20000, 5000); s != giveUp || ms > 8100 {
			t.Fatalf("%v after %d ms", s, ms)
		}
	})
	t.Run("the miner does not answer", func(t *testing.T) {
		k := newKeeperAt(t, false)
		s, ms := k.ticks(0, 10000, 5000)
		k.want("silence", s, rescue)
		k.introduced()
		k.want("the first search", k.failed(k.at(ms+750)), stay)
		s, ms = k.ticks(ms+800, ms+2000, 5000)
		k.want("again", s, rescue)
		k.introduced()
		k.want("the second search", k.failed(k.at(ms+800)), giveUp)
	})
	t.Run("this machine has no network", func(t *testing.T) {
		k := newKeeperAt(t, false)
		off := func(ms int) step { return k.tick(k.at(ms), seen{busy: true, waits: true, heard: k.at(0)}) }
		k.ticks(0, 1200, 0)
		k.want("silence", off(1300), rescue)
		for ms := 1400; ms < 9000; ms += 100 {
			k.want("offline", off(ms), stay)
		}
		k.want("a new network", k.moved(k.at(9000)), rescue)
		if s, ms := k.ticks(9000, 20000, 0); s != giveUp || ms < 11500 || ms > 12200 { // the patience begins anew
			t.Fatalf("%v after %d ms", s, ms)
		}
	})
}

func TestKeeperAfterSleep(t *testing.T) {
	k := newKeeperAt(t, false)
	k.ticks(0, 5000, 5000)
	woke := 25000
	if s, ms := k.ticks(woke, woke+300, 5000); s != stay {
		t.Fatalf("%v %d ms after waking: what waits to be read was not looked at", s, ms-woke)
	}
	if s, ms := k.ticks(woke+400, woke+2000, 5000); s != rescue || ms-woke > 700 {
		t.Fatalf("%v %d ms after waking", s, ms-woke)
	}
}

func TestKeeperOfAnIdleTunnel(t *testing.T) {
	k := newKeeperAt(t, true)
	for ms := 0; ms < 100000; ms += 1000 {
		k.want("idle", k.tick(k.at(ms), seen{online: true, heard: k.at(0)}), stay)
	}
	if s, ms := k.ticks(100000, 110000, 100000); s != upgrade || ms != 100000 {
		t.Fatalf("%v after %d ms: its time had come long ago", s, ms)
	}
	k.want("unlikely", func() step { k.unlikely(); return k.failed(k.at(100100)) }(), stay)
	if s, ms := k.ticks(100200, 200000, 200000); s != upgrade || ms < 119000 {
		t.Fatalf("%v after %d ms", s, ms)
	}
	k.want("ended idle", newKeeperAt(t, false).ended(time.Now(), false), giveUp)
}

func TestKeeperWhenTheConnectionEnds(t *testing.T) {
	k := newKeeperAt(t, false)
	k.ticks(0, 1000, 1000)
	k.want("lost", k.ended(k.at(1100), false), rescue)
	k.want("found", k.found(k.at(1400), false), take)
	k.ticks(1500, 2000, 2000)
	k.want("closed by the miner", k.ended(k.at(2100), true), giveUp)
}

func TestKeeperInAnotherNetwork(t *testing.T) {
	k := newKeeperAt(t, false)
	k.ticks(0, 5000, 5000)
	k.want("moved", k.moved(k.at(5100)), rescue)
	k.want("at once again", k.moved(k.at(5200)), stay)
	k.want("once more", k.moved(k.at(6000)), rescue)
	k.ticks(5300, 6200, 5000)
	k.want("found", k.found(k.at(6300), false), take)
}

// What was heard before a move does not keep the old path, unless the new one is worse.
func TestKeeperSoonAfterAMove(t *testing.T) {
	for _, c := range []struct {
		name          string
		heard         int // the last time, in ms; the move is seen at 5100
		relayed, next bool
		want          step
	}{
		{"not since", 5000, false, false, take},
		{"not since, relayed", 5000, true, true, take},
		{"since", 5500, false, false, discard},
		{"not since, and the new path is relayed", 5000, false, true, discard},
	} {
		k := newKeeperAt(t, c.relayed)
		k.ticks(0, 5000, 5000)
		k.want("moved", k.moved(k.at(5100)), rescue)
		k.ticks(5200, 5600, c.heard)
		k.want(c.name, k.found(k.at(5600), c.next), c.want)
	}
}

// A miner that has said everything is silent, and a reader may be slow to read it:
// nothing is wrong until somebody waits.
func TestKeeperOfASlowReader(t *testing.T) {
	k := newKeeperAt(t, false)
	k.ticks(0, 1000, 1000)
	look := func(ms int, waits bool) step {
		return k.tick(k.at(ms), seen{busy: true, waits: waits, online: true, heard: k.at(1000)})
	}
	for ms := 1100; ms < 60000; ms += 100 {
		k.want("reading what is here", look(ms, false), stay)
	}
	for ms := 60000; ms < 61100; ms += 100 {
		k.want("waiting", look(ms, true), stay)
	}
	k.want("waiting for long", look(61200, true), rescue)
	for ms := 61300; ms < 62800; ms += 100 {
		k.want("looking for another path", look(ms, true), stay)
	}
	k.want("nobody introduces", look(63000, true), giveUp)
	dead := newKeeperAt(t, false)
	dead.ticks(0, 1000, 1000)
	dead.want("lost", dead.ended(dead.at(1100), false), rescue)
	for ms := 1200; ms < 4000; ms += 100 {
		dead.want("looking", dead.tick(dead.at(ms), seen{busy: true, online: true, heard: dead.at(1000)}), stay)
	}
	dead.want("whoever reads or not", dead.tick(dead.at(4000), seen{busy: true, online: true, heard: dead.at(1000)}), giveUp)
}

// FuzzKeeper drives a keeper through events in any order. Whatever comes: a
// silent path with a request on it is never just looked at, no two searches run
// at a time, nothing is given up while the miner is heard, nobody is left waiting
// beyond the patience, and the steps fit.
func FuzzKeeper(f *testing.F) {
	for i := range 16 {
		r := rand.New(rand.NewPCG(uint64(i), 1))
		b := make([]byte, 64)
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		f.Add(b)
	}
	silence := bytes.Repeat([]byte{2}, 40)
	for _, begin := range [][]byte{{6}, {6, 0, 13}, {6, 11}, {6, 0, 8}, {6, 14, 0}} {
		f.Add(append(slices.Clone(begin), silence...))
		f.Add(slices.Concat(begin, silence[:13], []byte{12}, silence)) // granted, and nothing comes of it
		f.Add(slices.Concat(begin, silence[:22], []byte{10}, silence[:2], []byte{12}, silence))
	}
	const rtt = 100 * time.Millisecond
	// limit is how long anybody waits for a miner that is not heard, with a tick and
	// a pause between two searches.
	const limit = 3*time.Second + 200*time.Millisecond
	f.Fuzz(func(t *testing.T, events []byte) {
		now := time.Unix(1000, 0)
		k := newKeeper(3*time.Second, len(events)%2 == 0, now)
		searching, ends := stay, now
		heard, busy, reads, online := now, false, true, true
		alone := now              // since when nothing is heard or changed, and somebody waits
		waits := time.Duration(0) // of a silent path without a search
		for _, e := range events {
			var got step
			switch e % 15 {
			case 0, 1, 2, 3, 4, 5: // the usual: time passes
				pass := 100 * time.Millisecond
				if e >= 250 {
					pass = time.Duration(e-249) * 4 * time.Second // asleep
					alone, waits = now.Add(pass), -pass
				}
				now = now.Add(pass)
				if e%15 < 2 && !k.dead {
					heard, alone = now, now
				}
				got = k.tick(now, seen{busy: busy, waits: busy && reads, online: online, heard: heard})
				if searching == rescue && now.After(ends) && got == stay {
					got = k.failed(now)
					searching = stay
				}
				if k.silent(now) && k.searching == stay && got == stay {
					waits += pass
				} else {
					waits = 0
				}
				if waits > 3*time.Second {
					t.Fatalf("a silent path waits for %v", waits)
				}
			case 6:
				busy, alone = !busy, now
			case 7:
				alone = now
				if e > 128 {
					reads = !reads
				} else {
					online = !online
				}
			case 8:
				got, alone = k.moved(now), now
			case 9:
				if searching == stay {
					continue
				}
				got = k.found(now, e > 128)
				if got != take && got != discard {
					t.Fatalf("found: %v", got)
				}
				searching = stay
				if got == take {
					heard, alone = now, now
				}
			case 10:
				if searching == stay {
					continue
				}
				got = k.failed(now)
				if got != stay && got != giveUp {
					t.Fatalf("failed: %v", got)
				}
				searching = stay
			case 11:
				if k.dead {
					continue
				}
				got = k.ended(now, e > 200)
			case 12:
				if searching != stay {
					k.introduced()
				}
			case 13:
				k.news(now)
			case 14:
				k.unlikely()
			}
			switch got {
			case rescue:
				searching, ends = rescue, k.searchEnds(now, rtt)
			case upgrade:
				if searching != stay || !k.relayed {
					t.Fatalf("an upgrade while %v, relayed %v", searching, k.relayed)
				}
				searching = upgrade
			case giveUp:
				if !k.dead && now.Sub(heard) < suspectAfter-wakeGrace {
					t.Fatalf("given up %v after the miner was heard", now.Sub(heard))
				}
				return
			case stay, take, discard:
			}
			if k.searching != searching {
				t.Fatalf("it believes in %v, and %v runs", k.searching, searching)
			}
			if busy && reads && online && now.Sub(alone) > limit {
				t.Fatalf("nothing was heard for %v, and nothing is given up", now.Sub(alone))
			}
		}
	})
}
