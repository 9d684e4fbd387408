package node

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// An operator can see why a miner has its score.
func TestMinersPage(t *testing.T) {
	t.Parallel()
	l, m, _ := ready(t, says("ok"))
	if got := l.client().ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	get := func(target string) string {
		w := httptest.NewRecorder()
		l.co.serveMiners(w, httptest.NewRequest(http.MethodGet, target, http.NoBody))
		return w.Body.String()
	}
	waitUntil(t, "the receipt is counted", func() bool { return strings.Contains(get("/miners"), "counted: 1 answered") })
	var list []struct {
		Name       string `json:"name"`
		Reputation struct {
			Score struct{ Value float64 }
		} `json:"reputation"`
	}
	if err := json.Unmarshal([]byte(get("/miners?json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Name != m.cfg.Name || list[0].Reputation.Score.Value <= 0.5 {
		t.Errorf("%+v", list)
	}
}
