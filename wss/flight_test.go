package wss

import (
	"bytes"
	"strings"
	"testing"
)

func TestFlight(t *testing.T) {
	for name, c := range map[string]struct {
		sizes []int
		taken int
	}{
		"none":      {nil, 0},
		"one":       {[]int{1200}, 1},
		"a flight":  {[]int{1200, 1200, 900}, 3},
		"five":      {[]int{1, 2, 3, 4, 5}, maxFlight},
		"too large": {[]int{1500, 1500, 1500, 1500}, 3},
	} {
		var flight []*datagram
		for i, n := range c.sizes {
			flight = append(flight, newDatagram(bytes.Repeat([]byte{byte(i)}, n)))
		}
		header, taken := encodeFlight(flight)
		if taken != c.taken || len(header) > 6600 {
			t.Errorf("%s: %d taken in %d bytes", name, taken, len(header))
		}
		got, err := decodeFlight(header)
		if err != nil || len(got) != taken {
			t.Fatalf("%s: %d, %v", name, len(got), err)
		}
		for i := range got {
			if !bytes.Equal(got[i].bytes(), flight[i].bytes()) {
				t.Errorf("%s: datagram %d differs", name, i)
			}
		}
	}
	for _, bad := range []string{",", "b25l,,b25l", "b25", "b2 5l", "b25l\n", "b25l=", "b25l,!", strings.Repeat("A", 2004), "b25l,b25l,b25l,b25l,b25l"} {
		if got, err := decodeFlight(bad); err == nil || got != nil {
			t.Errorf("%.20q: %d, %v", bad, len(got), err)
		}
	}
}

func FuzzFlight(f *testing.F) {
	f.Add("")
	f.Add("b25l,dHdv")
	f.Add(strings.Repeat("AAAA", 400))
	f.Fuzz(func(t *testing.T, header string) {
		flight, err := decodeFlight(header)
		if err != nil {
			if flight != nil {
				t.Fatal("half a flight")
			}
			return
		}
		total := 0
		for _, d := range flight {
			total += d.n
			if d.n == 0 || d.n > MaxDatagram {
				t.Fatalf("%d bytes", d.n)
			}
		}
		if len(flight) > maxFlight {
			t.Fatalf("%d datagrams", len(flight))
		}
		if total > maxFlightBytes {
			t.Fatalf("%d bytes", total)
		}
		again, taken := encodeFlight(flight)
		if taken != len(flight) || again != header {
			t.Fatalf("%q became %q", header, again)
		}
	})
}
