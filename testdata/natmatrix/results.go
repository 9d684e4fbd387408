package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// readResults returns what an interrupted run left in file, by cell: what holds,
// and was measured with the same binary, the same numbers of clients and of long
// answers, and the same round trip. All else is measured again.
func readResults(file string, s settings) (map[string]*measurement, error) {
	known := map[string]*measurement{}
	if file == "" {
		return known, nil
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return known, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		m := &measurement{}
		if err := json.Unmarshal(lines.Bytes(), m); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, n, err)
		}
		delete(known, m.Cell.String()) // the last word counts
		if len(m.Metrics) > 0 {        // measured to its end: the rules may have changed since
			m.Faults = append(expect(m.Cell).faults(m), m.laterFaults()...)
		}
		if len(m.Faults) == 0 && m.Binary == s.binary && m.N == s.n && m.rtt() == s.rtt && len(m.Later) == s.laterIn(m.Cell) {
			known[m.Cell.String()] = m
		}
	}
	return known, lines.Err()
}

// appendResult adds one line to file.
func appendResult(file string, m *measurement) error {
	if file == "" {
		return nil
	}
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}
