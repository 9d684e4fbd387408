package reputation

import (
	"math"
	"time"
)

// Half-lives of what is remembered. A report counts half after one half-life.
const (
	// LongHalfLife is that of the long record, from which the score is made.
	LongHalfLife = 72 * time.Hour
	// RecentHalfLife is that of the recent record, which lowers the score of a
	// miner that has just begun to fail.
	RecentHalfLife = time.Hour
	// speedHalfLife is that of the number of speed measurements: a miner that
	// nobody measured for days counts as unmeasured and is tried again.
	speedHalfLife = 24 * time.Hour
)

const (
	// recentPrior is the strength of the long record inside the recent one: it
	// takes about this many fresh failures to halve a good score.
	recentPrior = 8.0
	// recentMargin is how far the recent record must fall below the long one
	// before it decides.
	recentMargin = 0.05
	// minSpeedWeight is the number of remembered measurements below which a
	// speed counts as unknown.
	minSpeedWeight = 0.25
	// speedGain is the weight of a new speed measurement in the moving average,
	// once there were enough to average.
	speedGain = 0.2
)

// Neutral is the score of a miner about which nothing is known: the mean of a
// Beta(1, 1) distribution.
const Neutral = 0.5

// weight is how much an outcome counts, and for which side. An outcome that is
// not the miner's doing weighs nothing. A path that was never found may be the
// fault of either NAT, so it counts less than a miner that vanished midway.
func weight(o Outcome) (good, bad float64) {
	switch o {
	case OK:
		return 1, 0
	case Lost, BackendError:
		return 0, 1
	case Timeout:
		return 0, 0.75
	case NoPath:
		return 0, 0.25
	case Busy:
		return 0, 0.1
	case Refused, Cancelled:
		return 0, 0
	}
	return 0, 0
}

// decay is the factor by which evidence shrinks over an age. An age below zero
// (clocks that step back) leaves it as it is.
func decay(age, halfLife time.Duration) float64 {
	if age <= 0 {
		return 1
	}
	return math.Exp2(-float64(age) / float64(halfLife))
}

// Score is the trust in a miner at one moment.
type Score struct {
	// Value is between 0 and 1, and Neutral when nothing is known.
	Value float64 `json:"value"`
	// Alpha and Beta are the parameters of the long record's Beta
	// distribution: forgotten good and bad evidence, each plus one
	// (A. Jøsang, R. Ismail: The Beta Reputation System, 2002).
	Alpha float64 `json:"alpha"`
	Beta  float64 `json:"beta"`
	// Recent is the mean of the last hours; it is the Value when it has fallen
	// well below the long record.
	Recent float64 `json:"recent"`
	// Falling says that the recent record decided.
	Falling bool `json:"falling,omitempty"`
}

// Evidence is how many reports the score rests on, after forgetting.
func (s Score) Evidence() float64 { return s.Alpha + s.Beta - 2 }

// score reads a record at a moment. It is the one place where remembered
// evidence becomes trust.
func score(r *record, now time.Time) Score {
	age := now.Sub(r.at)
	long, recent := decay(age, LongHalfLife), decay(age, RecentHalfLife)
	s := Score{Alpha: 1 + r.good*long, Beta: 1 + r.bad*long}
	mean := s.Alpha / (s.Alpha + s.Beta)
	good, bad := r.recentGood*recent, r.recentBad*recent
	s.Recent = (good + recentPrior*mean) / (good + bad + recentPrior)
	s.Value = mean
	if s.Recent < mean-recentMargin {
		s.Value, s.Falling = s.Recent, true
	}
	return s
}
