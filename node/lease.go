package node

import (
	"errors"
	"strings"

	"google.golang.org/protobuf/proto"

	"mintai/backend"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// The most that a lease may say of a miner: see signal.Validate.
const (
	mostSlots  = 1 << 16
	mostQueued = 1 << 20
	mostTokens = 1 << 30
	// leaseBytes leaves room in a message for what a lease holds beside models.
	leaseBytes = signal.MaxMessage - 2<<10
)

// sendLease states what this miner is ready for. While the coordinator is away
// it is not sent; the next connection begins with one.
func (m *miner) sendLease() {
	m.leaseMu.Lock() // what was said last must be the newest
	defer m.leaseMu.Unlock()
	lease := writeLease(m.cfg.Backends.Snapshot())
	m.sequence++
	lease.Sequence, lease.Candidates, lease.Network = m.sequence, writeCandidates(m.network.candidates()), m.network.message()
	m.mu.Lock()
	lease.Draining = m.draining
	m.mu.Unlock()
	if err := m.sig.Send(&signalpb.Envelope{Message: &signalpb.Envelope_Lease{Lease: lease}}); err != nil && !errors.Is(err, signal.ErrNotConnected) {
		m.log.Warn().Err(err).Msg("lease not sent")
	}
}

// writeLease makes a lease that fits a message and that the coordinator accepts.
// It leaves out models that cannot be said, and the last ones of too many.
func writeLease(snap backend.Snapshot) *signalpb.Lease {
	lease := &signalpb.Lease{
		Slots: upTo(snap.Slots, mostSlots), InFlight: upTo(snap.InFlight, mostQueued), Queued: upTo(snap.Queued, mostQueued),
		QueueLimit: upTo(snap.QueueLimit, mostQueued),
	}
	room := leaseBytes
	for _, info := range snap.Models {
		model := writeModelInfo(info)
		alone := &signalpb.Lease{Models: []*signalpb.OfferedModel{model}}
		if signal.Validate(&signalpb.Envelope{Message: &signalpb.Envelope_Lease{Lease: alone}}) != nil {
			continue
		}
		size := proto.Size(alone)
		if len(lease.Models) == signal.MaxModels || size > room {
			break
		}
		lease.Models = append(lease.Models, model)
		room -= size
	}
	return lease
}

func upTo(n, most int) uint32 { return uint32(min(max(n, 0), most)) }

func writeModelInfo(info backend.ModelInfo) *signalpb.OfferedModel {
	out := &signalpb.OfferedModel{
		Name: string(info.Name), ContextTokens: upTo(info.ContextTokens, mostTokens), Tools: info.Tools, Vision: info.Vision, Json: info.JSON,
		SameUserOnly: info.SameUserOnly, Quantization: word(info.Quantization), Family: word(info.Family), Backend: info.Backend,
	}
	if info.SizeBytes > 0 && info.SizeBytes < 1<<42 { // 4 TiB; what is more is a mistake
		out.SizeBytes = info.SizeBytes
	}
	for _, call := range info.Calls {
		out.Calls = append(out.Calls, string(call))
	}
	return out
}

// word shortens what an AI server says about a model to what may be passed on.
func word(s string) string {
	if len(s) > signal.MaxWord {
		s = s[:signal.MaxWord]
	}
	return strings.ToValidUTF8(s, "")
}
