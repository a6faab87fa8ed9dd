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

// Watcher looks at a file and applies what it says.
type Watcher struct {
	// File is the path, below a mounted ConfigMap.
	File string
	// Apply is called with what the file says, and with nothing at all when it has gone.
	Apply func(Settings, string)

	last []byte
	seen bool
	hash atomic.Pointer[string]
}

// Hash is that of the settings in use; empty where there are none.
func (w *Watcher) Hash() string {
	if hash := w.hash.Load(); hash != nil {
		return *hash
	}
	return ""
}

// Run looks every so often, until ctx ends.
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

// Look applies the file if it is not what it was. One that cannot be read leaves everything as it is, and says so once.
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
			slog.Error("the settings stay as they are", "error", err)
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
