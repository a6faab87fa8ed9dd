// Package server is an http.Server whose idle timeout can be changed while it runs, and whose connections and requests are counted.
//
// The fields of an http.Server must not change once it serves. This package therefore enforces the idle timeout itself, from the states that
// the server reports. ReadHeaderTimeout applies to new connections only, so a change creates a new http.Server behind the same listener.
package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"idleconn.io/examples/go-service/settings"
)

// Defaults of this service. Without them, net/http has no timeouts.
const (
	idleTimeout       = 5 * time.Minute
	readHeaderTimeout = 10 * time.Second
)

// Server serves one listener.
type Server struct {
	handler http.Handler
	opened  prometheus.Counter

	mu       sync.Mutex
	current  *generation
	all      []*http.Server
	idle     time.Duration
	idles    map[net.Conn]*idling
	conns    int
	stopping bool
}

// generation is an http.Server and the listener that passes connections to it.
type generation struct {
	server *http.Server
	gate   *gate
}

// idling describes a connection that waits for its next request.
type idling struct {
	since time.Time
	timer *time.Timer
}

// New returns a Server with the defaults. Call Serve to start it.
func New(handler http.Handler, registry *prometheus.Registry) *Server {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	requests := counter("idleconn_server_requests_total", "Requests that clients sent to this server.")
	counted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Inc()
		handler.ServeHTTP(w, r)
	})
	s := &Server{
		handler: counted,
		opened:  counter("idleconn_server_connections_opened_total", "Connections that clients opened to this server. More of them for each request mean that connections are closed too early."),
		idles:   map[net.Conn]*idling{},
		idle:    idleTimeout,
	}
	s.current = s.generation(readHeaderTimeout)
	gauge := func(state string, value func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "idleconn_server_connections",
			Help:        "Connections that clients hold open to this server, by whether a request is being answered on them.",
			ConstLabels: prometheus.Labels{"state": state},
		}, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return float64(value())
		})
	}
	registry.MustRegister(
		s.opened,
		requests,
		gauge("idle", func() int { return len(s.idles) }),
		gauge("active", func() int { return s.conns - len(s.idles) }),
	)
	return s
}

// Serve accepts connections until the listener is closed.
func (s *Server) Serve(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.stopping {
				return nil
			}
			return err
		}
		s.mu.Lock()
		gate := s.current.gate
		s.mu.Unlock()
		gate.give(conn)
	}
}

// Apply changes the settings. The idle timeout also applies to connections that are already idle.
func (s *Server) Apply(wanted settings.Server) {
	header, idle := readHeaderTimeout, idleTimeout
	if wanted.ReadHeaderTimeout != nil {
		header = time.Duration(*wanted.ReadHeaderTimeout)
	}
	if wanted.IdleTimeout != nil {
		idle = time.Duration(*wanted.IdleTimeout)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return
	}
	if header != s.current.server.ReadHeaderTimeout {
		old := s.current
		s.current = s.generation(header)
		old.gate.Close()
	}
	s.idle = idle
	for conn, waiting := range s.idles {
		waiting.timer.Stop()
		waiting.timer = s.closeAt(conn, waiting.since)
	}
}

// Shutdown waits for requests in flight, not for idle connections.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.stopping = true
	all := s.all
	s.mu.Unlock()
	var errs []error
	for _, server := range all {
		errs = append(errs, server.Shutdown(ctx))
	}
	return errors.Join(errs...)
}

// generation must be called with the lock held, or before the Server is shared.
func (s *Server) generation(header time.Duration) *generation {
	g := &generation{gate: newGate()}
	g.server = &http.Server{Handler: s.handler, ReadHeaderTimeout: header, ConnState: s.state}
	s.all = append(s.all, g.server)
	go func() { _ = g.server.Serve(g.gate) }()
	return g
}

// state is the ConnState callback of the http.Server.
func (s *Server) state(conn net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if waiting, found := s.idles[conn]; found {
		waiting.timer.Stop()
		delete(s.idles, conn)
	}
	switch state {
	case http.StateNew:
		s.conns++
		s.opened.Inc()
	case http.StateClosed, http.StateHijacked:
		s.conns--
	case http.StateIdle:
		now := time.Now()
		s.idles[conn] = &idling{since: now, timer: s.closeAt(conn, now)}
	}
}

// closeAt must be called with the lock held. An idle timeout of 0 means none.
func (s *Server) closeAt(conn net.Conn, since time.Time) *time.Timer {
	if s.idle == 0 {
		return time.AfterFunc(time.Duration(1<<63-1), func() {})
	}
	return time.AfterFunc(time.Until(since.Add(s.idle)), func() { _ = conn.Close() })
}

// gate is a net.Listener whose connections come from give.
type gate struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newGate() *gate { return &gate{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (g *gate) give(conn net.Conn) {
	select {
	case g.conns <- conn:
	case <-g.closed:
		// The server was replaced in the meantime.
		_ = conn.Close()
	}
}

// Accept waits for a connection.
func (g *gate) Accept() (net.Conn, error) {
	select {
	case conn := <-g.conns:
		return conn, nil
	case <-g.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept. Accepted connections stay open.
func (g *gate) Close() error {
	g.once.Do(func() { close(g.closed) })
	return nil
}

// Addr returns an empty address; the gate listens on none.
func (g *gate) Addr() net.Addr { return &net.TCPAddr{} }
