package terminal

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Footer holds what the line below an answer tells. Zero values are left out.
type Footer struct {
	Model string // as the miner calls it
	Miner string // the miner's name
	// Path is the kind of path the answer took: "direct" or "relay".
	Path string
	// Reason says why it is that one, in a few words.
	Reason string
	// RTT is the round-trip time of that path.
	RTT time.Duration
	// FirstToken is the time from the start to the first piece of the answer.
	FirstToken time.Duration
	// TokensPerSecond is the speed of the answer after its first token.
	TokensPerSecond float64
	// Note is a last remark, such as "not a language model".
	Note string
}

// Limits for what strangers chose, in columns.
const (
	maxModel = 60
	maxName  = 40
	maxNote  = 120
)

// FormatFooter returns the line below an answer, without a line break:
//
//	qwen3:8b on gpu-box · direct 14 ms (NAT traversed) · first token 0.4 s · 62 tok/s
func FormatFooter(f Footer) string {
	var parts []string
	who := OneLine(f.Model, maxModel)
	if name := OneLine(f.Miner, maxName); name != "" {
		who = strings.TrimSpace(who + " on " + name)
	}
	if who != "" {
		parts = append(parts, who)
	}
	if path := OneLine(f.Path, maxName); path != "" {
		if f.RTT > 0 {
			path += " " + FormatRTT(f.RTT)
		}
		if reason := OneLine(f.Reason, maxNote); reason != "" {
			path += " (" + reason + ")"
		}
		parts = append(parts, path)
	}
	if f.FirstToken > 0 {
		parts = append(parts, "first token "+FormatSeconds(f.FirstToken))
	}
	if f.TokensPerSecond > 0 {
		parts = append(parts, formatRate(f.TokensPerSecond)+" tok/s")
	}
	if note := OneLine(f.Note, maxNote); note != "" {
		parts = append(parts, note)
	}
	return strings.Join(parts, " · ")
}

// FormatRTT writes a round-trip time in milliseconds: "0.3 ms", "14 ms".
func FormatRTT(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 0.1:
		return "<0.1 ms"
	case ms < 9.95:
		return strings.TrimSuffix(strconv.FormatFloat(ms, 'f', 1, 64), ".0") + " ms"
	}
	return strconv.FormatFloat(ms, 'f', 0, 64) + " ms"
}

// FormatSeconds writes a waiting time as people read it: "40 ms", "0.4 s",
// "12 s", "2 min 5 s".
func FormatSeconds(d time.Duration) string {
	switch {
	case d < 95*time.Millisecond:
		return FormatRTT(d)
	case d < 9950*time.Millisecond:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
	case d < time.Minute-500*time.Millisecond:
		return strconv.FormatFloat(d.Seconds(), 'f', 0, 64) + " s"
	}
	s := int64(d.Round(time.Second) / time.Second)
	return fmt.Sprintf("%d min %d s", s/60, s%60)
}

func formatRate(r float64) string {
	if r < 9.95 {
		return strings.TrimSuffix(strconv.FormatFloat(r, 'f', 1, 64), ".0")
	}
	return strconv.FormatFloat(r, 'f', 0, 64)
}
