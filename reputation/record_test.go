package reputation

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"mintai/api"
	"mintai/identity"
)

func model(i int) api.Model { return api.Model(fmt.Sprintf("model-%d", i)) }

func TestEncoding(t *testing.T) {
	var r record
	for o := OK; o < outcomes; o++ {
		c := receipt(int(o), o)
		c.At = t0.Add(time.Duration(o) * time.Minute)
		r.count(o, c.At)
		r.travelled(&c)
		r.measure(&c)
	}
	b, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(*got, r) {
		t.Errorf("read   %+v\nwrote %+v", *got, r)
	}
	empty, err := (&record{}).encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeRecord(empty); err != nil || !got.at.IsZero() || score(got, t0).Value != Neutral {
		t.Errorf("an empty record is read as %+v, %v", got, err)
	}
}

func TestDecodeBadRecords(t *testing.T) {
	tests := []struct {
		name, value string
		want        error
	}{
		{"nothing", "", errBadRecord},
		{"garbage", "\x00\xff", errBadRecord},
		{"half", `{"v":1,"at":12`, errBadRecord},
		{"no version", `{}`, errBadRecord},
		{"newer", `{"v":2}`, ErrNewer},
		{"negative evidence", `{"v":1,"good":-1}`, errBadRecord},
		{"endless evidence", `{"v":1,"bad":1e999}`, errBadRecord},
		{"negative speed", `{"v":1,"speeds":{"m":{"weight":1,"first_token_us":-1}}}`, errBadRecord},
		{"impossible speed", `{"v":1,"speeds":{"m":{"tokens_per_second":1e300}}}`, errBadRecord},
		{"overflowing speed", `{"v":1,"speeds":{"m":{"first_token_us":9223372036854775807}}}`, errBadRecord},
		{"long model", `{"v":1,"speeds":{"` + strings.Repeat("m", 300) + `":{}}}`, errBadRecord},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if r, err := decodeRecord([]byte(tt.value)); !errors.Is(err, tt.want) || r != nil {
				t.Errorf("decodeRecord = %v, %v; want %v", r, err, tt.want)
			}
		})
	}
	// Additions of a later version are ignored.
	r, err := decodeRecord([]byte(`{"v":1,"good":3,"new":true,"counts":[0,1,2,3,4,5,6,7,8,9,10,11],"last_fault":77,"last_fault_at":5}`))
	if err != nil || r.good != 3 || r.counts[Timeout] != 8 || r.lastFault != 0 {
		t.Errorf("with additions: %+v, %v", r, err)
	}
}

// FuzzDecodeRecord: whatever is in the file, reading it never panics, and what
// is accepted is written and read again as the same.
func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(`{"v":1,"at":1767322800000,"good":3.5,"bad":1,"counts":[0,4],"speeds":{"m":{"at":5,"weight":1,"first_token_us":5000,"tokens_per_second":50}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		one, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeRecord(one)
		if err != nil {
			t.Fatalf("own output %s: %v", one, err)
		}
		if two, err := again.encode(); err != nil || !bytes.Equal(one, two) {
			t.Fatalf("%s\nbecame %s (%v)", one, two, err)
		}
		if v := score(r, t0).Value; math.IsNaN(v) || v < 0 || v > 1 {
			t.Fatalf("score %v of %s", v, b)
		}
	})
}

func TestBadReceipts(t *testing.T) {
	tests := map[string]func(*Receipt){
		"no miner":               func(r *Receipt) { r.Miner = identity.NodeID{} },
		"no client":              func(r *Receipt) { r.Client = identity.NodeID{} },
		"about itself":           func(r *Receipt) { r.Client = r.Miner },
		"from nobody":            func(r *Receipt) { r.From = 0 },
		"from somebody else":     func(r *Receipt) { r.From = 3 },
		"no outcome":             func(r *Receipt) { r.Outcome = 0 },
		"unknown outcome":        func(r *Receipt) { r.Outcome = outcomes },
		"no time":                func(r *Receipt) { r.At = time.Time{} },
		"negative first token":   func(r *Receipt) { r.FirstToken = -1 },
		"endless first token":    func(r *Receipt) { r.FirstToken = math.MaxInt64 },
		"negative total":         func(r *Receipt) { r.Total = -1 },
		"endless total":          func(r *Receipt) { r.Total = maxDuration + 1 },
		"first after the end":    func(r *Receipt) { r.FirstToken, r.Total = 2, 1 },
		"not a number":           func(r *Receipt) { r.TokensPerSecond = math.NaN() },
		"endless speed":          func(r *Receipt) { r.TokensPerSecond = math.Inf(1) },
		"negative speed":         func(r *Receipt) { r.TokensPerSecond = -1 },
		"a long model name":      func(r *Receipt) { r.Model = api.Model(strings.Repeat("m", 257)) },
		"a long principal":       func(r *Receipt) { r.ClientPrincipal = strings.Repeat("p", 257) },
		"a speed beyond physics": func(r *Receipt) { r.TokensPerSecond = 1e7 },
	}
	l := open(t, Options{})
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			if err := l.Record(with(receipt(1, OK), change)); !errors.Is(err, ErrBadReceipt) {
				t.Errorf("Record = %v, want ErrBadReceipt", err)
			}
		})
	}
	if s := l.Score(node(1), t0); s.Evidence() != 0 {
		t.Errorf("a bad receipt counted: %+v", s)
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for o := OK; o < outcomes; o++ {
		if s := o.String(); strings.HasPrefix(s, "Outcome(") || seen[s] {
			t.Errorf("outcome %d is called %q", o, s)
		} else {
			seen[s] = true
		}
	}
	if Outcome(200).String() != "Outcome(200)" || From(9).String() != "From(9)" || FromClient.String() != "client" || FromMiner.String() != "miner" {
		t.Error("names are wrong")
	}
	if got := (RequestID{0xab}).String(); got != "ab"+strings.Repeat("0", 30) {
		t.Errorf("RequestID = %s", got)
	}
}
