package identity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

func TestKeyIsMadeOnceAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "miner", "key.pem")
	made, err := LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadOrCreateKey(path)
	if err != nil || again.ID() != made.ID() {
		t.Errorf("another key the second time: %v", err)
	}
	if sig := made.Sign([]byte("mintai/test/v1")); !Verify(again.ID(), []byte("mintai/test/v1"), sig) || Verify(again.ID(), []byte("x"), sig) {
		t.Error("signatures")
	}
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", made, made, made, made); !strings.Contains(text, made.ID().Short()) || strings.Contains(string(pem), text) {
		t.Errorf("printed as %s", text)
	}
}

func TestKeyOfManyProcessesAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	ids := make(chan NodeID, 16)
	var wg sync.WaitGroup
	for range cap(ids) {
		wg.Go(func() {
			key, err := LoadOrCreateKey(path)
			if err != nil {
				t.Error(err)
				return
			}
			ids <- key.ID()
		})
	}
	wg.Wait()
	close(ids)
	first := <-ids
	for id := range ids {
		if id != first {
			t.Fatal("two processes have different keys")
		}
	}
}

func TestKeyFilesThatAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	if _, err := LoadOrCreateKey(path); err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" {
		for _, mode := range []os.FileMode{0o640, 0o604, 0o660} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadOrCreateKey(path); !errors.Is(err, ErrKeyExposed) || !strings.Contains(err.Error(), "chmod 600") {
				t.Errorf("mode %#o: got %v", mode, err)
			}
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"empty":     "",
		"nonsense":  "canary",
		"other PEM": "-----BEGIN CERTIFICATE-----\nY2FuYXJ5\n-----END CERTIFICATE-----\n",
		"bad key":   "-----BEGIN PRIVATE KEY-----\nY2FuYXJ5\n-----END PRIVATE KEY-----\n",
		"an X25519 key": "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VuBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n" +
			"-----END PRIVATE KEY-----\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := LoadOrCreateKey(path)
		if err == nil || key != nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v, %v", name, key, err)
		}
		if got, _ := os.ReadFile(path); string(got) != text {
			t.Errorf("%s: the file was overwritten", name)
		}
	}
}
