package settings

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// Watcher polls a file and applies its settings.
type Watcher struct {
	// File is the path, below a mounted ConfigMap.
	File string
	// Apply is called with the settings of the file and their hash, or with zero values if the file does not exist.
	Apply func(Settings, string)

	last []byte
	seen bool
	hash atomic.Pointer[string]
}

// Hash returns the hash of the settings in use, or an empty string if no file is in use.
func (w *Watcher) Hash() string {
	if hash := w.hash.Load(); hash != nil {
		return *hash
	}
	return ""
}

// Run polls the file at the given interval until ctx is done.
func (w *Watcher) Run(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			w.Look()
		}
	}
}

// Look applies the file if it has changed. A file that cannot be read changes nothing and is logged once.
func (w *Watcher) Look() {
	text, err := os.ReadFile(w.File)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = nil, nil
	}
	if err == nil && w.seen && bytes.Equal(text, w.last) {
		return
	}
	var read Settings
	if err == nil && text != nil {
		read, err = Parse(w.File, text)
	}
	if err != nil {
		if !w.seen || !bytes.Equal(text, w.last) {
			slog.Error("cannot read the settings; the current ones stay in use", "error", err)
		}
		w.last, w.seen = text, true
		return
	}
	hash := ""
	if text != nil {
		sum := sha256.Sum256(text)
		hash = hex.EncodeToString(sum[:8])
	}
	w.last, w.seen = text, true
	w.Apply(read, hash)
	w.hash.Store(&hash)
}
