package identity

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestSecretIsNeverPrinted(t *testing.T) {
	const canary = "canary-7f3a"
	s := Secret(canary)
	nested := struct {
		A Secret
		B *Secret
		M map[string]Secret
	}{s, &s, map[string]Secret{"k": s}}
	asJSON, err := json.Marshal(nested)
	if err != nil {
		t.Fatal(err)
	}
	printed := []string{string(asJSON), fmt.Sprint(s), fmt.Sprint([]Secret{s}), fmt.Errorf("x: %v", s).Error()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10.3s", "%T %[1]v"} {
		printed = append(printed, fmt.Sprintf(verb, s), fmt.Sprintf(verb, nested.M), fmt.Sprintf(verb, nested.A))
	}
	for _, p := range printed {
		if strings.Contains(p, "canary") || strings.Contains(strings.ToLower(p), fmt.Sprintf("%x", canary[:6])) {
			t.Errorf("printed: %s", p)
		}
	}
	if s.Reveal() != canary || s.String() != "[secret]" || s.IsZero() {
		t.Errorf("Reveal %q, String %q", s.Reveal(), s.String())
	}
	if e := Secret(""); e.String() != "" || !e.IsZero() {
		t.Errorf("an empty secret prints %q", e.String())
	}
}
