package node

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"mintai/identity"
	"mintai/signal"
)

func TestTroubleLine(t *testing.T) {
	member := membership{addrs: []string{"192.0.2.1:4433"}, origin: originConfig}
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{
			"wrong secret", &signal.RefusedError{Close: signal.CloseNotAdmitted, Message: "the join link's secret is not the coordinator's"},
			"the coordinator refuses this node: the join link's secret is not the coordinator's; ask its owner for the current join link",
		},
		{
			"started twice", fmt.Errorf("ended: %w", &signal.RefusedError{Close: signal.CloseReplaced, Message: "the same key connected again"}),
			"give each its own -state",
		},
		{
			"another key", fmt.Errorf("192.0.2.1:4433: %w: answered as aaaa, expected bbbb", identity.ErrPeer),
			"not the coordinator that is named by the configuration: 192.0.2.1:4433",
		},
		{
			"a remembered key", fmt.Errorf("%w: %w", signal.ErrUntrusted, &identity.KeyChangedError{Addr: "c.example", Path: "/pins"}),
			"delete the line of c.example from /pins",
		},
		{
			"nobody answers", errors.New("no answer in time"),
			"no coordinator answers at 192.0.2.1:4433 (no answer in time); is it running",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := troubleLine(member, tt.err)
			if !strings.Contains(got, tt.want) {
				t.Errorf("%q lacks %q", got, tt.want)
			}
			if strings.Contains(got, "\n") {
				t.Errorf("more than one line: %q", got)
			}
		})
	}
}
