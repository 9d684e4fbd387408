package terminal

import (
	"testing"
	"time"
)

func TestFormatFooter(t *testing.T) {
	tests := []struct {
		footer Footer
		want   string
	}{
		{
			Footer{
				Model: "qwen3:8b", Miner: "gpu-box", Path: "direct", Reason: "NAT\ntraversed", RTT: 14 * time.Millisecond,
				FirstToken: 400 * time.Millisecond, TokensPerSecond: 62.3,
			},
			"qwen3:8b on gpu-box · direct 14 ms (NAT traversed) · first token 0.4 s · 62 tok/s",
		},
		{
			Footer{Model: "builtin", Miner: "laptop", Path: "direct", RTT: 310 * time.Microsecond, FirstToken: 21 * time.Millisecond, Note: "not a language model"},
			"builtin on laptop · direct 0.3 ms · first token 21 ms · not a language model",
		},
		{Footer{}, ""},
		{Footer{Model: "m"}, "m"},
		{Footer{Miner: "box"}, "on box"},
		{Footer{Path: "relay"}, "relay"},
		{Footer{RTT: time.Second}, ""},
		{
			Footer{Model: "\x1b[31m\nm", Miner: "a\u202eb", Path: "direct"},
			"␛[31m m on a<U+202E>b · direct",
		},
	}
	for _, tt := range tests {
		if got := FormatFooter(tt.footer); got != tt.want {
			t.Errorf("FormatFooter(%+v) = %q, want %q", tt.footer, got, tt.want)
		}
	}
}

func TestFormatTimes(t *testing.T) {
	tests := []struct {
		d            time.Duration
		rtt, seconds string
	}{
		{0, "<0.1 ms", "<0.1 ms"},
		{50 * time.Microsecond, "<0.1 ms", "<0.1 ms"},
		{310 * time.Microsecond, "0.3 ms", "0.3 ms"},
		{time.Millisecond, "1 ms", "1 ms"},
		{9940 * time.Microsecond, "9.9 ms", "9.9 ms"},
		{9960 * time.Microsecond, "10 ms", "10 ms"},
		{94 * time.Millisecond, "94 ms", "94 ms"},
		{96 * time.Millisecond, "96 ms", "0.1 s"},
		{9900 * time.Millisecond, "9900 ms", "9.9 s"},
		{12 * time.Second, "12000 ms", "12 s"},
		{59*time.Second + 600*time.Millisecond, "59600 ms", "1 min 0 s"},
		{125 * time.Second, "125000 ms", "2 min 5 s"},
	}
	for _, tt := range tests {
		if got := FormatRTT(tt.d); got != tt.rtt {
			t.Errorf("FormatRTT(%v) = %q, want %q", tt.d, got, tt.rtt)
		}
		if got := FormatSeconds(tt.d); got != tt.seconds {
			t.Errorf("FormatSeconds(%v) = %q, want %q", tt.d, got, tt.seconds)
		}
	}
	for rate, want := range map[float64]string{0.26: "0.3", 2: "2", 9.94: "9.9", 9.96: "10", 62.3: "62", 1234.5: "1234"} {
		if got := formatRate(rate); got != want {
			t.Errorf("formatRate(%v) = %q, want %q", rate, got, want)
		}
	}
}
