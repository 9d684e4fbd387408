package node

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"mintai/identity"
	"mintai/match"
	"mintai/signal"
	"mintai/signal/signalpb"
)

const (
	// listingLife is how long a list of models is given to whoever asks: making
	// one takes a look at every lease.
	listingLife = 200 * time.Millisecond
	// listingBytes leaves room in a message for its envelope and nonce.
	listingBytes = signal.MaxMessage - 256
	// maxEmptyMiners is how many miners without an AI server are named.
	maxEmptyMiners = 32
)

// listing is a list of models as it was a moment ago.
type listing struct {
	at     time.Time
	models *signalpb.Models // without a nonce; never changed
}

// models lists what this node could be granted. A peer that reads too slowly for
// its own questions gets no answer.
func (c *coordinator) models(p *signal.Peer, req *signalpb.ModelsRequest, now time.Time) {
	list := c.listing(p.AdmittedAs() == admittedLocal, now)
	_ = p.TrySend(&signalpb.Envelope{Message: &signalpb.Envelope_Models{Models: &signalpb.Models{
		Nonce: req.GetNonce(), Offers: list.GetOffers(), EmptyMiners: list.GetEmptyMiners(),
	}}})
}

func (c *coordinator) listing(local bool, now time.Time) *signalpb.Models {
	c.listingsMu.Lock()
	defer c.listingsMu.Unlock()
	l := &c.listings[0]
	if local {
		l = &c.listings[1]
	}
	if l.models == nil || now.Sub(l.at) >= listingLife {
		*l = listing{at: now, models: writeListing(c.board.Offers(local, now), c.board.NoServer(local, now))}
	}
	return l.models
}

// writeListing makes a list that fits a message. When not everything does, each
// miner has one model after the other listed, so that a miner with many or with
// long names takes no other's place.
func writeListing(offers []match.Offer, empty []string) *signalpb.Models {
	out := &signalpb.Models{EmptyMiners: empty[:min(len(empty), maxEmptyMiners)]}
	room := listingBytes - proto.Size(out)
	type place struct {
		of    int // in offers
		round int // how many of its miner's come before
	}
	places := make([]place, len(offers))
	before := make(map[identity.NodeID]int)
	for i := range offers {
		places[i] = place{of: i, round: before[offers[i].Miner]}
		before[offers[i].Miner]++
	}
	slices.SortStableFunc(places, func(a, b place) int { return cmp.Compare(a.round, b.round) })
	written := make(map[int]*signalpb.ModelOffer)
	for _, p := range places {
		o := &offers[p.of]
		entry := &signalpb.ModelOffer{
			Model: writeModel(o.Model), Miner: o.Miner[:], MinerName: o.Name, Reputation: o.Reputation,
			Slots: uint32(o.Slots), InFlight: uint32(o.InFlight),
		}
		const tagAndLength = 4 // of a field of less than 16 KiB, or somewhat more
		size := proto.Size(entry) + tagAndLength
		if len(written) == signal.MaxOffers {
			break
		}
		if size <= room {
			written[p.of] = entry
			room -= size
		}
	}
	for i := range offers { // in their own order again
		if entry := written[i]; entry != nil {
			out.Offers = append(out.Offers, entry)
		}
	}
	return out
}
