package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strconv"
	"strings"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// origin says where a node learnt of its coordinator.
type origin string

const (
	originFlag    origin = "-join"
	originEnv     origin = "MINTAI_JOIN"
	originConfig  origin = "the configuration"
	originStored  origin = "client join"
	originRuntime origin = "a coordinator of this user on this machine"
)

// membership is how a node reaches its coordinator and shows that it may.
type membership struct {
	addrs  []string        // host:port, best first
	tls    uint16          // where it answers over TLS, at the same hosts; 0: nowhere
	stun   uint16          // where it answers address probes; 0: nowhere
	id     identity.NodeID // zero: trust on first use
	join   identity.Secret // of a join link
	local  identity.Secret // of the runtime file: same user, same machine
	origin origin
	// runtime reads the runtime file again, at each connection; nil: none.
	runtime func() (identity.Runtime, error)
}

// tlsAddrs are the coordinator's addresses for networks that block UDP.
func (m membership) tlsAddrs() []string {
	if m.tls == 0 {
		return nil
	}
	var out []string
	for _, addr := range m.addrs {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			continue
		}
		if at := net.JoinHostPort(host, strconv.Itoa(int(m.tls))); !slices.Contains(out, at) {
			out = append(out, at)
		}
	}
	return out
}

// linkMembership is the membership that a join link gives.
func linkMembership(text string, from origin) (membership, error) {
	link, err := identity.ParseLink(strings.TrimSpace(text))
	if err != nil {
		return membership{}, &Error{Exit: ExitUsage, Code: "bad_link", Message: fmt.Sprintf("the join link of %s: %v", from, err), Hint: "copy it whole, as the coordinator printed it", Err: err}
	}
	return fromLink(link, from), nil
}

// orLocal lets a node that came by a link also show that it runs as the
// coordinator's own user, when the link leads to that very coordinator.
func (m membership) orLocal(paths Paths) membership {
	m.runtime = paths.ReadRuntime
	return m
}

func fromLink(link identity.Link, from origin) membership {
	return membership{addrs: link.Addrs, tls: link.TLSPort, stun: link.STUNPort, id: link.ID, join: link.Secret, origin: from}
}

// runtimeMembership is the membership of processes of the coordinator's own
// user on its machine, as its runtime file says while it runs.
func runtimeMembership(read func() (identity.Runtime, error)) (membership, error) {
	r, err := read()
	if err != nil {
		return membership{}, err
	}
	if !processAlive(r.PID) {
		return membership{}, fmt.Errorf("its process %d is gone: %w", r.PID, fs.ErrNotExist)
	}
	return membership{addrs: []string{r.Addr}, id: r.ID, local: r.Secret, origin: originRuntime, runtime: read}, nil
}

// findMembership returns the first coordinator that is given: by -join, by
// MINTAI_JOIN, in the configuration, by an earlier `client join`, or by the
// runtime file. That nobody is known is an *Error that wraps fs.ErrNotExist.
func findMembership(flag, env string, config identity.Link, paths Paths) (membership, error) {
	switch {
	case flag != "":
		m, err := linkMembership(flag, originFlag)
		return m.orLocal(paths), err
	case env != "":
		m, err := linkMembership(env, originEnv)
		return m.orLocal(paths), err
	case !config.IsZero():
		return fromLink(config, originConfig).orLocal(paths), nil
	}
	stored, err := paths.LoadJoin()
	if err == nil {
		return fromLink(stored, originStored).orLocal(paths), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return membership{}, &Error{Exit: ExitUsage, Code: "stored_link", Message: "the stored join link: " + err.Error(), Hint: "store it anew: mintai -mode client join LINK", Err: err}
	}
	m, err := runtimeMembership(paths.ReadRuntime)
	switch {
	case err == nil:
		return m, nil
	case errors.Is(err, fs.ErrNotExist):
		return membership{}, &Error{
			Exit: ExitNoPath, Code: "no_coordinator", Message: "no coordinator is known, and none of yours runs on this machine", Err: err,
			Hint: "start one: mintai -mode coordinator; or join one: mintai -mode client join LINK",
		}
	default:
		return membership{}, &Error{Exit: ExitUsage, Code: "runtime_file", Message: err.Error(), Err: err}
	}
}

// hello is the node's introduction to that coordinator. The secrets stay here:
// what travels is a proof that is worth nothing to anyone else. Of its network it
// says what it knows by now; net may be nil.
func (m membership) hello(role signalpb.Role, self, coordinator identity.NodeID, name string, net *network) *signalpb.Hello {
	local := m.local
	if m.runtime != nil { // the coordinator may have been restarted, with another secret
		if r, err := m.runtime(); err == nil && r.ID == coordinator {
			local = r.Secret
		}
	}
	h := &signalpb.Hello{Role: role, Name: name, Version: Version}
	if net != nil {
		h.Candidates, h.Network = writeCandidates(net.candidates()), net.message()
	}
	if m.join.Reveal() != "" {
		h.JoinProof = identity.JoinProof(m.join, self, coordinator)
	}
	if local.Reveal() != "" {
		h.LocalProof = identity.LocalProof(local, self, coordinator)
	}
	return h
}

// trust decides about a coordinator whose NodeID the link does not name: it is
// trusted on first use, which is said, and remembered.
func (m membership) trust(pins *identity.Pins, notice func(string)) func(string, identity.NodeID) error {
	return func(addr string, id identity.NodeID) error {
		if !m.id.IsZero() || pins == nil {
			return nil
		}
		first, err := pins.Check(addr, id)
		if err != nil {
			return err
		}
		if first && notice != nil {
			notice(fmt.Sprintf("the link names no key: trusting the coordinator at %s as %s from now on", addr, id))
		}
		return nil
	}
}
