package portmap

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Protocol names the way in which a router was asked.
type Protocol string

// The protocols, in the order of preference among those that answer at once.
const (
	PCP    Protocol = "pcp"     // RFC 6887
	NATPMP Protocol = "nat-pmp" // RFC 6886
	UPnP   Protocol = "upnp"    // UPnP Internet Gateway Device 1 and 2
)

// Protocols are all that the package speaks.
func Protocols() []Protocol { return []Protocol{PCP, NATPMP, UPnP} }

// Errors to branch on.
var (
	// ErrNoGateway is returned when the machine has no IPv4 router to ask.
	ErrNoGateway = errors.New("no IPv4 gateway")
	// ErrSilent is returned when nothing answered at the gateway's address.
	ErrSilent = errors.New("no answer from the gateway")
	// ErrRefused is returned when the router answered, and it was no.
	ErrRefused = errors.New("refused by the gateway")
	// ErrNoExternal is returned when the router has no address of its own outside.
	ErrNoExternal = errors.New("the gateway has no external address")
	// ErrMalformed is returned for an answer that its protocol does not allow.
	ErrMalformed = errors.New("malformed answer")
)

// Mapping is one port that the router forwards.
type Mapping struct {
	// Internal is the port of this machine.
	Internal uint16
	// TCP says that the mapping is for TCP; otherwise it is for UDP.
	TCP bool
	// External is where the router listens, in its own words. It may well be a
	// private address, see Public.
	External netip.AddrPort
	// Protocol is how the mapping was made.
	Protocol Protocol
	// Expires is when the router forgets the mapping unless it is renewed. Zero
	// means never: some routers know only permanent mappings.
	Expires time.Time
}

// Public reports whether the mapping's external address is one of the public
// Internet. Otherwise another NAT lies beyond this router (two routers in a row,
// or a provider's): the mapping then helps only peers between the two.
func (m Mapping) Public() bool { return Public(m.External.Addr()) }

// Port is a port to be mapped.
type Port struct {
	// Number is the port of this machine.
	Number uint16
	// TCP maps the TCP port; otherwise the UDP port is mapped.
	TCP bool
	// External is the external port that is wanted; 0 wants the same as Number.
	// The router may give another one.
	External uint16
}

// wanted is the external port to ask for.
func (p Port) wanted() uint16 {
	if p.External != 0 {
		return p.External
	}
	return p.Number
}

// Config says what to map.
type Config struct {
	// Ports to map, at most 16; more, and those with the number 0, are ignored.
	Ports []Port
	// Lifetime is what is asked for, in whole seconds. The router may grant less
	// or more. A mapping is renewed when half of it is over, and at least every
	// ten minutes, because a router that restarted has forgotten it. Zero and
	// negative mean 2 h, as RFC 6886 §3.3 recommends; below 2 min is raised to it.
	Lifetime time.Duration
	// Description is what the router's web page shows. Empty means "MintAI".
	Description string
	// Only limits the protocols. Empty means all.
	Only []Protocol
	// Toward is the address whose route names the gateway, say the coordinator's.
	// Zero means some address of the public Internet. No packet is sent to it.
	Toward netip.Addr
	// Log gets one line for each mapping that came or went.
	Log zerolog.Logger

	net network // how the world is reached; tests replace it
}

const (
	maxPorts        = 16
	defaultLifetime = 2 * time.Hour
	minLifetime     = 2 * time.Minute // what common routers grant at least
	maxLifetime     = 7 * 24 * time.Hour
)

// Mapper keeps the mappings of a Config alive while Run runs.
type Mapper struct {
	cfg     Config
	changed chan struct{}
	hint    chan struct{}
	nonces  []nonce // one for each port, for good

	mu       sync.Mutex // guards what follows
	mappings []Mapping
}

// New makes a Mapper that does nothing before Run.
func New(cfg Config) *Mapper {
	var ports []Port
	for _, p := range cfg.Ports {
		if p.Number != 0 && len(ports) < maxPorts && !slices.ContainsFunc(ports, func(q Port) bool { return q.Number == p.Number && q.TCP == p.TCP }) {
			ports = append(ports, p)
		}
	}
	cfg.Ports = ports
	if cfg.Lifetime <= 0 {
		cfg.Lifetime = defaultLifetime
	}
	cfg.Lifetime = min(max(cfg.Lifetime, minLifetime), maxLifetime).Truncate(time.Second)
	if cfg.Description == "" {
		cfg.Description = "MintAI"
	}
	if len(cfg.Only) == 0 {
		cfg.Only = Protocols()
	}
	m := &Mapper{cfg: cfg, changed: make(chan struct{}, 1), hint: make(chan struct{}, 1)}
	for range ports {
		m.nonces = append(m.nonces, newNonce())
	}
	return m
}

// Mappings are the mappings that the router holds now, in the order of
// Config.Ports. None before the first answer.
func (m *Mapper) Mappings() []Mapping {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.mappings)
}

// Changed receives something after Mappings changed, other than in Expires. It
// holds one: a reader that was slow learns of several changes at once.
func (m *Mapper) Changed() <-chan struct{} { return m.changed }

// NetworkChanged tells the Mapper that the machine's network may be another one
// now. It looks at once instead of within seconds. It never blocks.
func (m *Mapper) NetworkChanged() {
	select {
	case m.hint <- struct{}{}:
	default:
	}
}

// publish makes known what is mapped now.
func (m *Mapper) publish(now []Mapping) {
	m.mu.Lock()
	same := slices.EqualFunc(m.mappings, now, func(a, b Mapping) bool {
		a.Expires, b.Expires = time.Time{}, time.Time{}
		return a == b
	})
	m.mappings = now
	m.mu.Unlock()
	if same {
		return
	}
	select {
	case m.changed <- struct{}{}:
	default:
	}
}
