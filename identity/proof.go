package identity

import (
	"crypto/hmac"
	"crypto/sha256"
)

// The labels that keep one kind of proof from being used as another.
const (
	joinLabel  = "mintai/join/v1"
	localLabel = "mintai/local/v1"
)

// JoinProof shows that node knows the secret of coordinator's join link:
//
//	HMAC-SHA256(secret, "mintai/join/v1" || node || coordinator)
//
// The secret itself never travels, and a proof is worth nothing to another
// node or at another coordinator. Without a secret there is no proof: nil.
func JoinProof(secret Secret, node, coordinator NodeID) []byte {
	return proof(joinLabel, secret, node, coordinator)
}

// LocalProof is JoinProof with the secret of a coordinator's runtime file and
// the label "mintai/local/v1": it shows that node runs as the coordinator's
// own user on the coordinator's machine.
func LocalProof(secret Secret, node, coordinator NodeID) []byte {
	return proof(localLabel, secret, node, coordinator)
}

func proof(label string, secret Secret, node, coordinator NodeID) []byte {
	if secret.IsZero() {
		return nil
	}
	mac := hmac.New(sha256.New, []byte(secret.Reveal()))
	_, _ = mac.Write([]byte(label)) // a hash never fails
	_, _ = mac.Write(node[:])
	_, _ = mac.Write(coordinator[:])
	return mac.Sum(nil)
}

// CheckProof compares a proof that arrived with the one that was expected, in
// constant time. An empty expectation admits nobody.
func CheckProof(got, want []byte) bool {
	return len(want) == sha256.Size && hmac.Equal(got, want)
}
