package identity

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func testID(t testing.TB, b byte) NodeID {
	t.Helper()
	var id NodeID
	for i := range id {
		id[i] = b
	}
	return id
}

func TestParseLink(t *testing.T) {
	id := testID(t, 7)
	text := id.String()
	tests := []struct {
		in   string
		want Link
	}{
		{"mintai://host", Link{Addrs: []string{"host:4433"}, STUNPort: 3478}},
		{" mintai://host.example-1.org:1/ \n", Link{Addrs: []string{"host.example-1.org:1"}, STUNPort: 3478}},
		{"mintai://192.0.2.1", Link{Addrs: []string{"192.0.2.1:4433"}, STUNPort: 3478}},
		{"mintai://[2001:db8::1]", Link{Addrs: []string{"[2001:db8::1]:4433"}, STUNPort: 3478}},
		{"mintai://[2001:db8:0:0:0:0:0:1]:99", Link{Addrs: []string{"[2001:db8::1]:99"}, STUNPort: 3478}},
		{"mintai://[::ffff:192.0.2.1]:99", Link{Addrs: []string{"192.0.2.1:99"}, STUNPort: 3478}},
		{"mintai://host/" + text, Link{Addrs: []string{"host:4433"}, STUNPort: 3478, ID: id}},
		{"mintai://host/" + text + "/", Link{Addrs: []string{"host:4433"}, STUNPort: 3478, ID: id}},
		{"mintai://host/" + text + "/s3cret-", Link{Addrs: []string{"host:4433"}, STUNPort: 3478, ID: id, Secret: "s3cret-"}},
		{"mintai://host/-/s3cret", Link{Addrs: []string{"host:4433"}, STUNPort: 3478, Secret: "s3cret"}},
		{"mintai://host?tls=443", Link{Addrs: []string{"host:4433"}, TLSPort: 443, STUNPort: 3478}},
		{
			"mintai://host:4433/" + text + "/s?addr=[::1]:4433&addr=10.0.0.1&tls=443&later=x",
			Link{Addrs: []string{"host:4433", "[::1]:4433", "10.0.0.1:4433"}, TLSPort: 443, STUNPort: 3478, ID: id, Secret: "s"},
		},
		{"mintai://host?stun=0", Link{Addrs: []string{"host:4433"}}},
		{"mintai://host?stun=3478", Link{Addrs: []string{"host:4433"}, STUNPort: 3478}},
		{"mintai://host?tls=4443&stun=99&stun=99", Link{Addrs: []string{"host:4433"}, TLSPort: 4443, STUNPort: 99}},
		{"mintai://host?addr=host:4433", Link{Addrs: []string{"host:4433"}, STUNPort: 3478}},
	}
	for _, tt := range tests {
		got, err := ParseLink(tt.in)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s:\ngot  %#v %v, %v\nwant %#v", tt.in, got, got.Addrs, err, tt.want)
			continue
		}
		again, err := ParseLink(got.String())
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s: %s does not read back: %v", tt.in, got.String(), err)
		}
	}
}

func TestParseLinkRefuses(t *testing.T) {
	const canary = "canarysecret"
	id := testID(t, 7).String()
	tests := []struct{ in, want string }{
		{"", "must start with mintai://"},
		{"http://host/" + canary, "must start with mintai://"},
		{"mintai://", "the host is missing"},
		{"mintai:///" + id, "the host is missing"},
		{"mintai://:4433", "the host is missing"},
		{"mintai://host:", "1 to 65535"},
		{"mintai://host:0", "1 to 65535"},
		{"mintai://host:065", "1 to 65535"},
		{"mintai://host:65536", "1 to 65535"},
		{"mintai://host:-1", "1 to 65535"},
		{"mintai://::1:4433", "in brackets"},
		{"mintai://[::1", "in brackets"},
		{"mintai://[host]:1", "no IPv6 address"},
		{"mintai://[192.0.2.1]:1", "no IPv6 address"},
		{"mintai://192.0.2.400", "neither a host name"},
		{"mintai://-host", "neither a host name"},
		{"mintai://a..b", "neither a host name"},
		{"mintai://host.", "neither a host name"},
		{"mintai://a=b", "neither a host name"},
		{"mintai://" + strings.Repeat("a", 64), "neither a host name"},
		{"mintai://" + strings.Repeat("a.", 130) + "a", "longer than 253"},
		{"mintai://Host/-/" + canary, "upper case"},
		{"mintai://host/-/" + canary + "%20", "none of a-z"},
		{"mintai://host/-/" + canary + "\x1b[31m", "none of a-z"},
		{"mintai://user@host", "none of a-z"},
		{"mintai://host/" + canary, "NodeID"},
		{"mintai://host//" + canary, "NodeID is missing"},
		{"mintai://host/" + NodeID{}.String(), "all zero"},
		{"mintai://host/" + id + "/" + canary + "/x", "outside a-z 0-9 -"},
		{"mintai://host/" + id + "/" + canary + ".x", "outside a-z 0-9 -"},
		{"mintai://host/-/" + strings.Repeat(canary, 11), "longer than 128"},
		{"mintai://host/-/" + strings.Repeat(canary, 200), "longer than 2048"},
		{"mintai://host/-/" + canary + "?tls=0", "tls="},
		{"mintai://host/-/" + canary + "?tls=1&tls=2", "twice"},
		{"mintai://host/-/" + canary + "?stun=", "stun="},
		{"mintai://host/-/" + canary + "?stun=00", "stun="},
		{"mintai://host/-/" + canary + "?stun=65535", "stun="},
		{"mintai://host/-/" + canary + "?stun=1&stun=2", "twice"},
		{"mintai://host/-/" + canary + "?addr=", "addr="},
		{"mintai://host/-/" + canary + "?addr=::1", "addr="},
		{"mintai://host?" + manyAddrs(17), "more than 16 addresses"},
	}
	for _, tt := range tests {
		got, err := ParseLink(tt.in)
		if !errors.Is(err, ErrBadLink) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.60s: got %v, want …%s…", tt.in, err, tt.want)
			continue
		}
		if !reflect.DeepEqual(got, Link{}) {
			t.Errorf("%.60s: half a link comes with the error", tt.in)
		}
		if strings.Contains(err.Error(), canary) || strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("%.60s: the error repeats what it must not: %q", tt.in, err)
		}
	}
}

func manyAddrs(n int) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprintf("addr=b:%d", i+1)
	}
	return strings.Join(parts, "&")
}

func TestLinkIsPrintedWithoutItsSecret(t *testing.T) {
	l := Link{Addrs: []string{"host:1"}, STUNPort: DefaultSTUNPort, ID: testID(t, 1), Secret: "canary"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if text := fmt.Sprintf(verb, l) + fmt.Sprintf(verb, &l) + fmt.Sprintf(verb, []Link{l}); strings.Contains(text, "canary") {
			t.Errorf("%s prints %s", verb, text)
		}
	}
	if b, _ := l.MarshalText(); strings.Contains(string(b), "canary") || string(b) != l.Redacted() {
		t.Errorf("MarshalText writes %s", b)
	}
	if want := "mintai://host:1/" + l.ID.String() + "/canary"; l.String() != want {
		t.Errorf("String is %s, want %s", l.String(), want)
	}
	if l.IsZero() || !(Link{}).IsZero() {
		t.Error("IsZero")
	}
}

func TestNewSecretFitsIntoALink(t *testing.T) {
	l := Link{Addrs: []string{"h:1"}, Secret: NewSecret()}
	again, err := ParseLink(l.String())
	if err != nil || again.Secret != l.Secret || len(l.Secret) < 26 || NewSecret() == l.Secret {
		t.Errorf("%v, %d characters", err, len(l.Secret))
	}
}

func FuzzParseLink(f *testing.F) {
	id := testID(f, 7).String()
	f.Add("mintai://host:4433/" + id + "/secret?addr=[::1]:4433&tls=443&stun=0")
	f.Add("mintai://[::ffff:1.2.3.4]/-/a?addr=h&addr=h&x")
	f.Add("mintai://1.2.3.4:1//?")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLink(s)
		if err != nil {
			if !errors.Is(err, ErrBadLink) || !reflect.DeepEqual(l, Link{}) {
				t.Fatalf("%q: %v %v", s, l, err)
			}
			return
		}
		text := l.String()
		again, err := ParseLink(text)
		if err != nil || !reflect.DeepEqual(again, l) || again.String() != text {
			t.Fatalf("%q reads as %q, which reads as %q: %v", s, text, again.String(), err)
		}
	})
}
