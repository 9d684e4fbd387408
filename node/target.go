package node

import (
	"strings"

	"mintai/api"
)

// splitTarget reads "model", "model@miner" and "@miner". A model's own name may
// hold an @ only before the last one. "auto" is any model.
func splitTarget(m api.Model) (api.Model, string) {
	name, miner := string(m), ""
	if i := strings.LastIndexByte(name, '@'); i >= 0 {
		name, miner = name[:i], name[i+1:]
	}
	if name == "auto" {
		name = ""
	}
	return api.Model(name), miner
}
