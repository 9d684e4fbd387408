package node

import "time"

// How a tunnel is kept.
const (
	// suspectAfter is how long nothing may be heard of a miner in a request before
	// another path is looked for: two of its heartbeats, and some more.
	suspectAfter = 1250 * time.Millisecond
	// recentlyHeard says that the miner is well: less than two heartbeats ago.
	recentlyHeard = 800 * time.Millisecond
	// wakeGap between two looks means that this machine, or process, slept.
	wakeGap = 1500 * time.Millisecond
	// wakeGrace is for the packets that wait after a sleep to be read.
	wakeGrace = 500 * time.Millisecond
	// offlinePatience takes the place of the patience while this machine has no
	// network at all: it is on its way from one to another.
	offlinePatience = 15 * time.Second
	// rescueAgain is the pause after a search that failed at once.
	rescueAgain = 150 * time.Millisecond
	// oneSearch is how long a search takes that fails because the miner does not
	// answer: when there is no time for another one, nobody need wait for the end.
	oneSearch = 700 * time.Millisecond
	// leastSearch is what a search may take, beside the round trips of its path, on
	// a path that is so long that the patience would not suffice for one.
	leastSearch = 1200 * time.Millisecond
	// restartAfter is how soon a change of the network begins a search anew.
	restartAfter = 300 * time.Millisecond
	// firstUpgrade is when a relayed tunnel first looks for a direct path: most
	// answers that are over by then need none.
	firstUpgrade = 300 * time.Millisecond
)

// upgradePauses are between the searches of a relayed tunnel for a direct path;
// the last one repeats.
var upgradePauses = []time.Duration{3, 5, 5, 10, 20, 30, 60}

// step is what is to be done about a tunnel.
type step int

const (
	stay    step = iota
	rescue       // look for any path, at once; a search under way is to be ended
	upgrade      // look for a direct path
	take         // the tunnel that was found takes over
	discard      // it is not needed
	giveUp       // what this tunnel carries ends with an error
)

func (s step) String() string {
	return [...]string{"stay", "rescue", "upgrade", "take", "discard", "give up"}[s]
}

// keeper decides when the path of one tunnel is left for another, when a better
// one is looked for, and when there is nothing more to hope for:
//
//	          ┌────────── upgrade: relayed, and its time has come ─┐
//	          │                                                    ▼
//	well ─────┴─ silence in a request, a lost connection, ─▶ searching ──found──▶ well
//	  ▲          another network                                │   │
//	  └──────── failed, and heard again meanwhile ──────────────┘   └─patience over─▶ given up
//
// It takes the time from its caller and does nothing by itself. It judges by what
// is as long as an answer's packets: the miner's heartbeats fill the path's.
type keeper struct {
	patience time.Duration // for the miner to come back, from when it was last heard

	relayed bool      // the present path
	dead    bool      // the connection has ended
	busy    bool      // a request runs
	online  bool      // this machine has a network
	heard   time.Time // of the miner, in a request
	waited  time.Time // from when somebody waits for the answer
	since   time.Time // from when patience counts, if that is later
	changed time.Time // when this machine was last seen in another network
	looked  time.Time // the last tick

	searching step      // rescue or upgrade; stay: nothing
	began     time.Time // of the search
	granted   bool      // the coordinator has introduced the two anew
	failures  int       // of rescues in a row
	next      time.Time // no rescue before

	upgrades    int // tries
	nextUpgrade time.Time
}

// seen is what a tick shows.
type seen struct {
	busy   bool      // a request runs
	waits  bool      // and somebody waits for what comes next
	online bool      // this machine has a network
	heard  time.Time // of the miner
}

func newKeeper(patience time.Duration, relayed bool, now time.Time) *keeper {
	return &keeper{patience: patience, relayed: relayed, online: true, heard: now, waited: now, since: now, looked: now, nextUpgrade: now.Add(firstUpgrade)}
}

// silent reports whether the present tunnel is of no use, as far as is known. A
// miner that has said everything is silent too, and a slow reader may not have
// come to the end: silence counts while somebody waits.
func (k *keeper) silent(now time.Time) bool {
	return k.dead || k.busy && now.Sub(k.heard) >= suspectAfter && now.Sub(k.waited) >= suspectAfter
}

// hopeless reports whether there was time enough.
func (k *keeper) hopeless(now time.Time) bool { return k.patienceEnds(now) <= 0 }

// missed is from when somebody misses the miner: it was heard last, or the reader
// has come to the end of what is here, if the tunnel may still bring more.
func (k *keeper) missed() time.Time {
	if !k.dead && k.waited.After(k.heard) {
		return k.waited
	}
	return k.heard
}

// patienceEnds is how long the patience lasts from now on.
func (k *keeper) patienceEnds(now time.Time) time.Duration {
	limit := k.patience
	if !k.online {
		limit = max(limit, offlinePatience)
	}
	return k.patientFrom().Add(limit).Sub(now)
}

func (k *keeper) patientFrom() time.Time {
	if from := k.missed(); from.After(k.since) {
		return from
	}
	return k.since
}

// searchEnds is by when a search that begins now must have found any path, over
// one of this round trip. Only the first may outlast the patience, and one of a
// machine without a network, which finds none.
func (k *keeper) searchEnds(now time.Time, rtt time.Duration) time.Time {
	ends := k.patientFrom().Add(k.patience)
	if least := now.Add(leastSearch + 4*rtt); (k.failures == 0 || !k.online) && least.After(ends) {
		return least
	}
	return ends
}

// tick looks at the tunnel. It is to come several times within suspectAfter.
func (k *keeper) tick(now time.Time, s seen) step {
	if now.Sub(k.looked) > wakeGap { // asleep: what was not heard says nothing
		if floor := now.Add(wakeGrace - suspectAfter); k.heard.Before(floor) {
			k.heard = floor
		}
		k.since = now
	}
	if !s.waits {
		k.waited = now
	}
	k.looked = now
	if s.heard.After(k.heard) {
		k.heard = s.heard
	}
	if s.busy && !k.busy && k.heard.Before(now) { // it was silent because nothing was asked
		k.heard = now
	}
	if s.online && !k.online {
		k.since = now
	}
	k.busy, k.online = s.busy, s.online
	switch {
	case k.searching == rescue:
		if k.silent(now) && !k.granted && k.hopeless(now) {
			return giveUp
		}
	case k.silent(now):
		if now.Before(k.next) {
			return stay
		}
		return k.search(rescue, now)
	case k.searching == stay && k.relayed && k.busy && !now.Before(k.nextUpgrade):
		return k.search(upgrade, now)
	}
	return stay
}

func (k *keeper) search(what step, now time.Time) step {
	k.searching, k.began, k.granted = what, now, false
	return what
}

// ended is told that the connection has ended: by the miner on purpose, or
// because nothing came any more.
func (k *keeper) ended(now time.Time, onPurpose bool) step {
	k.dead = true
	switch {
	case onPurpose || !k.busy:
		return giveUp
	case k.searching == rescue || now.Before(k.next):
		return stay
	}
	return k.search(rescue, now)
}

// moved is told that this machine is in another network.
func (k *keeper) moved(now time.Time) step {
	k.nextUpgrade, k.changed = now, now
	if k.searching == rescue && now.Sub(k.began) < restartAfter {
		return stay
	}
	if k.since.Before(now) && k.silent(now) {
		k.since = now
	}
	return k.search(rescue, now)
}

// news is told that a direct path may have become possible.
func (k *keeper) news(now time.Time) {
	k.upgrades = 0
	k.nextUpgrade = now
}

// introduced is told that the coordinator has granted the search a path.
func (k *keeper) introduced() { k.granted = true }

// found is told of a tunnel that the search has opened.
func (k *keeper) found(now time.Time, relayed bool) step {
	what := k.searching
	k.searching = stay
	better := k.relayed && !relayed
	// What was heard in another network says nothing of this one.
	stale := !k.heard.After(k.changed) && (k.relayed || !relayed)
	if better || what == rescue && (stale || k.silent(now) || !k.busy || now.Sub(k.heard) >= recentlyHeard) {
		k.relayed, k.dead, k.failures = relayed, false, 0
		k.heard, k.since = now, now
		k.upgrades, k.nextUpgrade = 0, now.Add(firstUpgrade)
		return take
	}
	k.later(now)
	return discard
}

// failed is told that the search found nothing.
func (k *keeper) failed(now time.Time) step {
	what := k.searching
	k.searching, k.granted = stay, false
	if what == upgrade {
		k.later(now)
	}
	switch {
	case !k.silent(now):
		k.failures = 0
		return stay
	case k.patienceEnds(now) < oneSearch:
		return giveUp
	}
	k.failures++
	k.next = now.Add(rescueAgain << min(k.failures-1, 4))
	return stay
}

// later puts the next search for a direct path off.
func (k *keeper) later(now time.Time) {
	k.nextUpgrade = now.Add(upgradePauses[min(k.upgrades, len(upgradePauses)-1)] * time.Second)
	k.upgrades++
}

// unlikely puts it off further: the coordinator foresees none.
func (k *keeper) unlikely() { k.upgrades = max(k.upgrades, len(upgradePauses)-2) }
