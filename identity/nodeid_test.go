package identity

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestNodeIDText(t *testing.T) {
	id := testID(t, 0xa5)
	text := id.String()
	if len(text) != 52 || text != strings.ToLower(text) || id.Short() != text[:8] {
		t.Errorf("%s, short %s", text, id.Short())
	}
	if got, err := ParseNodeID(text); err != nil || got != id {
		t.Errorf("got %v, %v", got, err)
	}
	for name, in := range map[string]string{
		"empty": "", "short": text[:51], "long": text + "a", "upper case": strings.ToUpper(text),
		"a digit outside": "1" + text[1:], "spare bits": text[:51] + "b", "padding": text[:51] + "=", "line ends": "\n" + text[1:51] + "\n",
	} {
		if got, err := ParseNodeID(in); !errors.Is(err, ErrBadNodeID) || !got.IsZero() {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, n := range []int{0, 31, 33} {
		if got, err := NodeIDFromBytes(make([]byte, n)); !errors.Is(err, ErrBadNodeID) || !got.IsZero() {
			t.Errorf("%d bytes: %v, %v", n, got, err)
		}
	}
	var doc struct{ ID NodeID }
	if err := json.Unmarshal([]byte(`{"ID":"`+text+`"}`), &doc); err != nil || doc.ID != id {
		t.Errorf("JSON: %v, %v", doc, err)
	}
	if b, err := json.Marshal(doc); err != nil || string(b) != `{"ID":"`+text+`"}` {
		t.Errorf("JSON: %s, %v", b, err)
	}
}

func FuzzParseNodeID(f *testing.F) {
	f.Add(testID(f, 1).String())
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseNodeID(s); err == nil && id.String() != s {
			t.Errorf("%q reads as %q", s, id)
		}
	})
}

func TestSessionIDText(t *testing.T) {
	id := NewSessionID()
	if got, err := ParseSessionID(id.String()); err != nil || got != id || id.IsZero() || id == NewSessionID() {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := SessionIDFromBytes(id[:]); err != nil || got != id {
		t.Errorf("got %v, %v", got, err)
	}
	for _, s := range []string{"", id.String()[1:], id.String() + "0", strings.Repeat("g", 32), strings.Repeat("A", 32)} {
		if got, err := ParseSessionID(s); !errors.Is(err, ErrBadSessionID) || !got.IsZero() {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	if _, err := SessionIDFromBytes(id[1:]); !errors.Is(err, ErrBadSessionID) {
		t.Errorf("got %v", err)
	}
}
