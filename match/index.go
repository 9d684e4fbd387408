package match

import (
	"slices"

	"mintai/api"
)

// index is a set of miners that can be walked from any place in a fixed order.
type index struct {
	entries []*entry
	place   map[*entry]int
}

// add puts a miner at the end, unless it is there already.
func (x *index) add(e *entry) {
	if _, have := x.place[e]; have {
		return
	}
	if x.place == nil {
		x.place = make(map[*entry]int)
	}
	x.place[e] = len(x.entries)
	x.entries = append(x.entries, e)
}

// remove takes a miner out; the last one takes its place.
func (x *index) remove(e *entry) {
	i, have := x.place[e]
	if !have {
		return
	}
	last := len(x.entries) - 1
	x.entries[i] = x.entries[last]
	x.place[x.entries[i]] = i
	x.entries[last] = nil
	x.entries = x.entries[:last]
	delete(x.place, e)
}

// walk visits the miners from a place on, all around, until visit returns
// false.
func (x *index) walk(from uint64, visit func(*entry) bool) {
	n := uint64(len(x.entries))
	for i := range n {
		if !visit(x.entries[(from+i)%n]) {
			return
		}
	}
}

// indexLocked makes a miner findable by the models of its lease.
func (b *Board) indexLocked(e *entry) {
	for i := range e.lease.Models {
		name := canonical(e.lease.Models[i].Name)
		if b.byModel[name] == nil {
			b.byModel[name] = &index{}
		}
		b.byModel[name].add(e)
	}
}

// unindexLocked undoes indexLocked.
func (b *Board) unindexLocked(e *entry) {
	for i := range e.lease.Models {
		name := canonical(e.lease.Models[i].Name)
		if x := b.byModel[name]; x != nil {
			x.remove(e)
			if len(x.entries) == 0 {
				delete(b.byModel, name)
			}
		}
	}
}

// sameNames reports whether two leases are indexed alike.
func sameNames(a, b []Model) bool {
	return slices.EqualFunc(a, b, func(x, y Model) bool { return x.Name == y.Name })
}

// enough is how many miners with a free slot a decision looks at: more make it
// slower and hardly better, and with a place that moves on, each is looked at
// in turn.
const enough = 256

// walkLocked visits the miners that can pass the pin and model filters, until
// visit returns false. Each decision begins where the one before may have
// stopped.
func (b *Board) walkLocked(n *Needs, p *pin, visit func(*entry) bool) {
	switch {
	case !p.id.IsZero():
		if e := b.entries[p.id]; e != nil {
			visit(e)
		}
	case n.Model != "":
		if x := b.byModel[canonical(n.Model)]; x != nil {
			x.walk(b.turn*enough, visit)
		}
	default:
		b.all.walk(b.turn*enough, visit)
	}
}

// canonical is the spelling by which models are indexed and compared: Ollama's
// tag "latest" is the one that need not be written.
func canonical(m api.Model) api.Model {
	const latest = ":latest"
	if len(m) > len(latest) && m[len(m)-len(latest):] == latest {
		return m[:len(m)-len(latest)]
	}
	return m
}

// names reports whether a model offered as have is the one asked for as want.
func names(want, have api.Model) bool {
	return want == have || canonical(want) == canonical(have)
}
