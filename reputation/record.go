package reputation

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"mintai/api"
)

// maxModels bounds the models remembered for one miner: the one that was
// measured longest ago makes room.
const maxModels = 64

// recordVersion is written with every record; a newer one is not understood.
const recordVersion = 1

// record is what is remembered about one miner. All evidence is as of at.
type record struct {
	at                    time.Time // zero: nothing is remembered
	good, bad             float64   // long record, LongHalfLife
	recentGood, recentBad float64   // recent record, RecentHalfLife
	counts                [outcomes]uint64
	direct, relayed       uint64 // requests that had a path, by its kind
	lastFault             Outcome
	lastFaultAt           time.Time
	speeds                map[api.Model]speed
}

// speed is the moving average of one model's measured speed on one miner.
type speed struct {
	at              time.Time
	weight          float64 // measurements remembered, speedHalfLife
	firstToken      time.Duration
	tokensPerSecond float64 // 0: never measured
}

// known reports whether the measurement is fresh enough to be used at now.
func (s speed) known(now time.Time) bool {
	return s.weight*decay(now.Sub(s.at), speedHalfLife) >= minSpeedWeight
}

// clockSlack is how far reports may lie behind each other. A record from
// further ahead was written while the clock was wrong, and is taken as of now.
const clockSlack = time.Hour

// moveTo ages the evidence to a later moment. Time runs backwards only when
// the clock was set right.
func (r *record) moveTo(at time.Time) {
	if r.at.IsZero() {
		r.at = at
		return
	}
	age := at.Sub(r.at)
	if age <= 0 {
		if age < -clockSlack {
			r.at = at
		}
		return
	}
	long, recent := decay(age, LongHalfLife), decay(age, RecentHalfLife)
	r.good, r.bad = r.good*long, r.bad*long
	r.recentGood, r.recentBad = r.recentGood*recent, r.recentBad*recent
	r.at = at
}

// count adds one outcome that happened at a moment, with its weight.
func (r *record) count(o Outcome, at time.Time) {
	r.moveTo(at)
	r.counts[o]++
	good, bad := weight(o)
	r.add(good, bad, at)
	if bad > 0 && !at.Before(r.lastFaultAt) {
		r.lastFault, r.lastFaultAt = o, at
	}
}

// uncount takes back an outcome that was counted earlier.
func (r *record) uncount(o Outcome, at time.Time) {
	if r.counts[o] > 0 {
		r.counts[o]--
	}
	good, bad := weight(o)
	r.add(-good, -bad, at)
	if r.lastFault == o && r.lastFaultAt.Equal(at) {
		r.lastFault, r.lastFaultAt = 0, time.Time{}
	}
}

// add puts evidence of a moment into both records, aged when it comes late.
func (r *record) add(good, bad float64, at time.Time) {
	late := r.at.Sub(at)
	long, recent := decay(late, LongHalfLife), decay(late, RecentHalfLife)
	r.good, r.bad = max(0, r.good+good*long), max(0, r.bad+bad*long)
	r.recentGood, r.recentBad = max(0, r.recentGood+good*recent), max(0, r.recentBad+bad*recent)
}

// measure takes the speeds out of a client's account. An answer that never
// began counts as slow, so that a miner cannot look fast by failing fast.
func (r *record) measure(c *Receipt) {
	if c.Model == "" {
		return
	}
	s := r.speeds[c.Model]
	first, rate := c.FirstToken, c.speed()
	switch c.Outcome {
	case OK:
	case Timeout:
		first, rate = max(c.Total, 2*s.firstToken), 0
	default:
		return
	}
	if first <= 0 {
		return
	}
	s.weight *= decay(c.At.Sub(s.at), speedHalfLife)
	gain := max(speedGain, 1/(1+s.weight))
	s.firstToken += time.Duration(gain * float64(first-s.firstToken)).Round(time.Microsecond) // as it is stored
	if rate > 0 {
		if s.tokensPerSecond == 0 {
			gain = 1
		}
		s.tokensPerSecond += gain * (rate - s.tokensPerSecond)
	}
	s.weight++
	if c.At.After(s.at) || s.at.Sub(c.At) > clockSlack {
		s.at = c.At
	}
	r.remember(c.Model, s)
}

// remember stores a speed and keeps the number of models bounded.
func (r *record) remember(model api.Model, s speed) {
	if r.speeds == nil {
		r.speeds = make(map[api.Model]speed)
	}
	if _, have := r.speeds[model]; !have && len(r.speeds) >= maxModels {
		var oldest api.Model
		first := true
		for m, v := range r.speeds {
			if first || v.at.Before(r.speeds[oldest].at) {
				oldest, first = m, false
			}
		}
		delete(r.speeds, oldest)
	}
	// The name arrived inside a larger message: do not keep all of it alive.
	r.speeds[api.Model(strings.Clone(string(model)))] = s
}

// travelled notes the kind of path of a request that had one.
func (r *record) travelled(c *Receipt) {
	switch {
	case c.PathKind == "" || c.Outcome == NoPath || c.Outcome == Busy:
	case strings.HasPrefix(c.PathKind, "relay"):
		r.relayed++
	default:
		r.direct++
	}
}

// storedRecord is the JSON form of a record in the store. Fields are only ever
// added; times are Unix milliseconds.
type storedRecord struct {
	V           int                    `json:"v"`
	At          int64                  `json:"at"`
	Good        float64                `json:"good,omitempty"`
	Bad         float64                `json:"bad,omitempty"`
	RecentGood  float64                `json:"recent_good,omitempty"`
	RecentBad   float64                `json:"recent_bad,omitempty"`
	Counts      []uint64               `json:"counts,omitempty"`
	Direct      uint64                 `json:"direct,omitempty"`
	Relayed     uint64                 `json:"relayed,omitempty"`
	LastFault   Outcome                `json:"last_fault,omitempty"`
	LastFaultAt int64                  `json:"last_fault_at,omitempty"`
	Speeds      map[string]storedSpeed `json:"speeds,omitempty"`
}

type storedSpeed struct {
	At              int64   `json:"at"`
	Weight          float64 `json:"weight"`
	FirstTokenUS    int64   `json:"first_token_us"`
	TokensPerSecond float64 `json:"tokens_per_second,omitempty"`
}

// encode writes the stored form.
func (r *record) encode() ([]byte, error) {
	s := storedRecord{
		V: recordVersion, At: toMillis(r.at),
		Good: r.good, Bad: r.bad, RecentGood: r.recentGood, RecentBad: r.recentBad,
		Counts: r.counts[:], Direct: r.direct, Relayed: r.relayed,
		LastFault: r.lastFault, LastFaultAt: toMillis(r.lastFaultAt),
	}
	if len(r.speeds) > 0 {
		s.Speeds = make(map[string]storedSpeed, len(r.speeds))
	}
	for m, v := range r.speeds {
		s.Speeds[string(m)] = storedSpeed{
			At: toMillis(v.at), Weight: v.weight,
			FirstTokenUS: v.firstToken.Microseconds(), TokensPerSecond: v.tokensPerSecond,
		}
	}
	return json.Marshal(s)
}

// errBadRecord says that a stored value is not a record.
var errBadRecord = errors.New("not a reputation record")

// decodeRecord reads the stored form. A value that this program cannot have
// written is an error, never half a record.
func decodeRecord(b []byte) (*record, error) {
	var s storedRecord
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%w: %v", errBadRecord, err)
	}
	if s.V > recordVersion {
		return nil, fmt.Errorf("%w: record version %d, this program knows %d", ErrNewer, s.V, recordVersion)
	}
	if s.V < 1 {
		return nil, fmt.Errorf("%w: no version", errBadRecord)
	}
	for _, f := range []float64{s.Good, s.Bad, s.RecentGood, s.RecentBad} {
		if math.IsNaN(f) || f < 0 || math.IsInf(f, 0) {
			return nil, fmt.Errorf("%w: impossible evidence", errBadRecord)
		}
	}
	if len(s.Speeds) > maxModels {
		return nil, fmt.Errorf("%w: %d models", errBadRecord, len(s.Speeds))
	}
	if s.LastFault >= outcomes { // of a newer program: its counts are ignored likewise
		s.LastFault, s.LastFaultAt = 0, 0
	}
	r := &record{
		at: fromMillis(s.At), good: s.Good, bad: s.Bad, recentGood: s.RecentGood, recentBad: s.RecentBad,
		direct: s.Direct, relayed: s.Relayed, lastFault: s.LastFault, lastFaultAt: fromMillis(s.LastFaultAt),
	}
	copy(r.counts[:], s.Counts)
	for m, v := range s.Speeds {
		first := time.Duration(v.FirstTokenUS) * time.Microsecond
		if v.Weight < 0 || v.FirstTokenUS < 0 || v.FirstTokenUS > maxDuration.Microseconds() ||
			v.TokensPerSecond < 0 || v.TokensPerSecond > maxTokensPerSecond || len(m) > maxModelName {
			return nil, fmt.Errorf("%w: impossible speed", errBadRecord)
		}
		r.remember(api.Model(m), speed{at: fromMillis(v.At), weight: v.Weight, firstToken: first, tokensPerSecond: v.TokensPerSecond})
	}
	return r, nil
}

// clone returns a copy that shares nothing with the record.
func (r *record) clone() record {
	c := *r
	if r.speeds != nil {
		c.speeds = make(map[api.Model]speed, len(r.speeds))
		for m, s := range r.speeds {
			c.speeds[m] = s
		}
	}
	return c
}

func toMillis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
