package reputation

import (
	"fmt"
	"time"

	"mintai/identity"
)

// flushLoop writes what is dirty, FlushEvery after the first change, until
// Close. A write that fails is tried again with the next one.
func (l *Ledger) flushLoop() {
	defer close(l.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	failing := false
	for {
		select {
		case <-l.stop:
			return
		case <-l.wake:
		}
		timer.Reset(l.opts.FlushEvery)
		select {
		case <-l.stop:
			return
		case <-timer.C:
		}
		err := l.flush()
		switch {
		case err != nil && !failing:
			l.opts.Log.Error().Err(err).Msg("reputation is not being saved; trying again")
		case err == nil && failing:
			l.opts.Log.Info().Msg("reputation is being saved again")
		}
		failing = err != nil
		if failing {
			select {
			case l.wake <- struct{}{}:
			default:
			}
		}
	}
}

// Flush writes what is only in memory and returns once it is on disk.
func (l *Ledger) Flush() error {
	l.mu.RLock()
	closed := l.closed
	l.mu.RUnlock()
	if closed {
		return ErrClosed
	}
	return l.flush()
}

// flush writes the dirty records in one transaction. Records that change
// meanwhile stay dirty, and none leaves memory before it is on disk.
func (l *Ledger) flush() error {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()

	l.mu.RLock()
	values := make(map[identity.NodeID][]byte, len(l.dirty))
	versions := make(map[identity.NodeID]uint64, len(l.dirty))
	var err error
	for miner, c := range l.dirty {
		if values[miner], err = c.record.encode(); err != nil {
			break
		}
		versions[miner] = c.version
	}
	l.mu.RUnlock()
	if err != nil {
		return fmt.Errorf("encoding reputation: %w", err)
	}
	if len(values) == 0 {
		return nil
	}
	if err := l.store.write(values); err != nil {
		return fmt.Errorf("writing reputation: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for miner, version := range versions {
		if c := l.dirty[miner]; c != nil && c.version == version {
			delete(l.dirty, miner)
		}
	}
	return nil
}

// Close writes what is only in memory, ends the flusher and closes the
// database. Score, Judge and Explain keep answering from memory. A second
// Close does nothing.
func (l *Ledger) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		<-l.done
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	close(l.stop)
	<-l.done
	err := l.flush()
	if closeErr := l.store.close(); err == nil && closeErr != nil {
		err = fmt.Errorf("closing the reputation database: %w", closeErr)
	}
	return err
}
