package identity

import (
	"encoding/hex"
	"testing"
)

func TestProofs(t *testing.T) {
	node, coordinator := testID(t, 1), testID(t, 2)
	proof := JoinProof("secret", node, coordinator)
	// Computed with: printf 'mintai/join/v1' + 32 × 01 + 32 × 02 | openssl dgst -sha256 -hmac secret
	const want = "f4a68d447c7655f32bf174f6aac4d76829e39a52f8461c94c4e269b642aa9803"
	if hex.EncodeToString(proof) != want {
		t.Errorf("JoinProof is %x, want %s", proof, want)
	}
	if !CheckProof(proof, JoinProof("secret", node, coordinator)) {
		t.Error("the right proof is refused")
	}
	for name, other := range map[string][]byte{
		"another secret":      JoinProof("secrets", node, coordinator),
		"another node":        JoinProof("secret", testID(t, 3), coordinator),
		"another coordinator": JoinProof("secret", node, testID(t, 3)),
		"swapped":             JoinProof("secret", coordinator, node),
		"another kind":        LocalProof("secret", node, coordinator),
		"short":               proof[:31],
		"none":                nil,
	} {
		if CheckProof(other, proof) {
			t.Errorf("accepted: %s", name)
		}
	}
	if JoinProof("", node, coordinator) != nil || LocalProof("", node, coordinator) != nil {
		t.Error("there is a proof without a secret")
	}
	if CheckProof(nil, nil) || CheckProof([]byte{}, []byte{}) {
		t.Error("nothing proves nothing")
	}
}
