package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"mintai/identity"
	"mintai/signal"
	"mintai/wss"
)

// tlsSettings says how networks that let no UDP through get in.
type tlsSettings struct {
	Listen            string // TCP host:port; empty: not at all
	Otherwise         string // taken when Listen cannot be had; empty: that is an error
	CertFile, KeyFile string // PEM; empty: self-signed
	ACME              []string
	ACMECache         string // a folder
}

// otherTLSListen is for coordinators that may not have defaultTLSListen.
const otherTLSListen = ":4443"

func tlsOf(t TLSConfig, cache string) tlsSettings {
	out := tlsSettings{Listen: t.Listen, CertFile: t.CertFile, KeyFile: t.KeyFile, ACME: t.ACME, ACMECache: cache}
	if t.Listen == defaultTLSListen {
		out.Otherwise = otherTLSListen
	}
	return out
}

// acmePort is where certificate authorities look whether a name leads to whoever
// asks for its certificate (RFC 8737 §3).
const acmePort = 443

// startTLS opens the TCP port for signaling and relay, and says what is not as
// it should be there.
func (c *coordinator) startTLS() error {
	if c.cfg.TLS.Listen == "" {
		return nil
	}
	if err := c.listenTLS(); err != nil {
		return err
	}
	if port, names := c.tlsPort(), c.cfg.TLS.ACME; port != 0 && port != acmePort && len(names) > 0 {
		c.tlsNotes = append(c.tlsNotes, fmt.Sprintf("ACME: no certificate for %s is issued or renewed unless TCP %d at that name leads to TCP %d here; "+
			"nodes accept the self-signed one", strings.Join(names, ", "), acmePort, port))
		c.log.Warn().Strs("names", names).Uint16("port", port).Msg("ACME: authorities ask at TCP 443 only, which is not ours: no certificate unless it leads here")
	}
	return nil
}

// listenTLS does without a default port that cannot be had: that is no reason not
// to start.
func (c *coordinator) listenTLS() error {
	t := c.cfg.TLS
	cfg := wss.ServerConfig{
		Listen: t.Listen, CertFile: t.CertFile, KeyFile: t.KeyFile, ACMEDomains: t.ACME, ACMECache: t.ACMECache, Log: c.log,
	}
	var err error
	if c.tls, err = wss.Listen(cfg); err == nil {
		return nil
	}
	c.tls = nil
	var taken *net.OpError
	if !errors.As(err, &taken) || t.Otherwise == "" {
		return &Error{
			Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("cannot listen on TCP %s: %v", t.Listen, err), Err: err,
			Hint: "choose another port with [coordinator.tls] listen, or set it to \"\"",
		}
	}
	cfg.Listen = t.Otherwise
	if c.tls, err = wss.Listen(cfg); err != nil {
		c.tls = nil
		c.tlsNotes = append(c.tlsNotes, fmt.Sprintf("TCP %s and %s cannot be had here: nodes whose network blocks UDP stay out", t.Listen, t.Otherwise))
	} else {
		c.tlsNotes = append(c.tlsNotes, fmt.Sprintf("TCP %s cannot be had here (%v): strict networks may let nothing out to %s", t.Listen, taken.Err, t.Otherwise))
	}
	c.log.Warn().Err(taken).Str("listen", t.Listen).Str("instead", t.Otherwise).Bool("open", c.tls != nil).Msg("TLS: the default port cannot be had")
	return nil
}

// overTLS adds what comes over TLS to signaling.
func (c *coordinator) overTLS(cfg *signal.ServerConfig) {
	if c.tls == nil {
		return
	}
	transport := signal.NewTransport(c.tls.Packets(), c.cfg.Key)
	c.streams = transport
	cfg.Streams = append(cfg.Streams, transport)
	if c.turn == nil { // nobody takes these
		_ = c.tls.TURN().Close()
	}
}

// serveTLS accepts connections until ctx ends.
func (c *coordinator) serveTLS(ctx context.Context) {
	if c.tls == nil {
		return
	}
	if err := c.tls.Serve(ctx); err != nil {
		c.log.Error().Err(err).Msg("TLS: nodes whose network blocks UDP stay out")
	}
}

// tlsPort is the TCP port for signaling and relay; 0: none.
func (c *coordinator) tlsPort() uint16 {
	if c.tls == nil {
		return 0
	}
	return c.tls.Addr().Port()
}

// stunPort is the first of the two ports for probes; 0: none.
func (c *coordinator) stunPort() uint16 {
	if c.probes == nil {
		return 0
	}
	addrs := c.probes.Addrs()
	if len(addrs) == 0 {
		return 0
	}
	return addrs[0].Port()
}

// link is a join link to addresses of one group, the best first.
func (c *coordinator) link(addrs []string, secret identity.Secret) identity.Link {
	const most = 16 // that a link holds
	return identity.Link{
		Addrs: addrs[:min(len(addrs), most)], ID: c.cfg.Key.ID(), Secret: secret, TLSPort: c.tlsPort(), STUNPort: c.stunPort(),
	}
}

// keepPlace says whether the connection over TLS that a peer came by is one that
// makes room for others when all are taken.
func keepPlace(p *signal.Peer, yes bool) {
	if a, ok := p.RemoteAddr().(*wss.Addr); ok {
		a.Admit(yes)
	}
}
