package ice

// maxPortStep is how far apart the ports of consecutive mappings are at most
// when a NAT is taken to hand them out in turn.
const maxPortStep = 16

// mappedPort is what one socket's mapping was.
type mappedPort struct{ local, mapped uint16 }

// foretellPorts says which ports a NAT gives to sockets that send in this order
// next, likeliest first, given what it gave to others just before, in the order
// in which those sent. Nil: nothing can be foretold.
//
// A NAT either keeps the port, or counts in steps of one size and sign, or
// cannot be foretold (RFC 4787 §4.2 calls the first "port preservation").
func foretellPorts(measured []mappedPort, locals []uint16) []uint16 {
	if len(measured) < 3 {
		return nil
	}
	preserves := true
	for _, m := range measured {
		preserves = preserves && m.mapped == m.local
	}
	if preserves {
		return append([]uint16(nil), locals...)
	}
	step := int(measured[1].mapped) - int(measured[0].mapped)
	for i := 2; i < len(measured); i++ {
		if int(measured[i].mapped)-int(measured[i-1].mapped) != step {
			return nil
		}
	}
	if step == 0 || step > maxPortStep || step < -maxPortStep {
		return nil
	}
	var ports []uint16
	for i, port := 0, int(measured[len(measured)-1].mapped)+step; i < len(locals); i, port = i+1, port+step {
		if port < leastPort || port > 1<<16-1 {
			break // where it goes on is the NAT's own affair
		}
		ports = append(ports, uint16(port))
	}
	return ports
}
