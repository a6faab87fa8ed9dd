// Go-service is a service whose HTTP connections are governed by an IdleConnectionPolicy through a mounted file.
//
// It serves / (?after=DURATION delays the response), requests its upstream on /upstream and another instance on /peer, and reports its
// connections on /metrics and its settings on /config-hash. With -once it reads its file only at start, as most servers do.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"idleconn.io/examples/go-service/client"
	"idleconn.io/examples/go-service/server"
	"idleconn.io/examples/go-service/settings"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "address of the service")
	admin := flag.String("admin", "127.0.0.1:8081", "address of /metrics and /config-hash; separate, so that a scrape does not count as a connection of the service")
	upstream := flag.String("upstream", "", "URL that /upstream requests")
	peer := flag.String("peer", "", "URL that /peer requests")
	file := flag.String("config", "/etc/idleconn/http.yaml", "file with the settings: .yaml, .json or .env")
	every := flag.Duration("every", 2*time.Second, "how often the file is read; polling also sees the symbolic link that the kubelet replaces")
	once := flag.Bool("once", false, "read the file only at start")
	show := flag.Bool("print", false, "print the settings of the file as JSON and exit")
	flag.Parse()

	if *show {
		text, err := os.ReadFile(*file)
		if err == nil {
			var read settings.Settings
			if read, err = settings.Parse(*file, text); err == nil {
				err = json.NewEncoder(os.Stdout).Encode(read)
			}
		}
		fail(err)
		return
	}
	fail(run(*listen, *admin, map[string]string{"/upstream": *upstream, "/peer": *peer}, *file, *every, *once))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "go-service:", err)
		os.Exit(1)
	}
}

func run(listen, admin string, asks map[string]string, file string, every time.Duration, once bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "idleconn_config_info",
		Help: "1 for the settings in use: the first 16 hexadecimal digits of the SHA-256 of their file.",
	}, []string{"hash"})
	registry.MustRegister(info)

	pools := map[string]*client.Client{
		"/upstream": client.New(registry, "backend"),
		"/peer":     client.New(registry, "intraCluster"),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		if after, err := time.ParseDuration(r.URL.Query().Get("after")); err == nil {
			select {
			case <-time.After(after):
			case <-r.Context().Done():
			}
		}
		fmt.Fprintln(w, "ok")
	})
	for path, pool := range pools {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			answer, err := pool.Do(r.Context(), r.Method, asks[path])
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
			defer answer.Body.Close()
			w.WriteHeader(answer.StatusCode)
			_, _ = io.Copy(w, answer.Body)
		})
	}
	front := server.New(mux, registry)

	watcher := settings.Watcher{File: file, Apply: func(read settings.Settings, hash string) {
		front.Apply(read.Server)
		pools["/upstream"].Apply(read.Backend)
		pools["/peer"].Apply(read.IntraCluster)
		info.Reset()
		if hash != "" {
			info.WithLabelValues(hash).Set(1)
		}
		slog.Info("settings in use", "file", file, "hash", hash)
	}}
	watcher.Look()
	if !once {
		go watcher.Run(ctx, every)
	}

	pages := http.NewServeMux()
	pages.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	pages.HandleFunc("/config-hash", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, watcher.Hash()) })
	side := &http.Server{Addr: admin, Handler: pages, ReadHeaderTimeout: 10 * time.Second}

	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- side.ListenAndServe() }()
	go func() { ended <- front.Serve(listener) }()
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(err, front.Shutdown(grace), side.Shutdown(grace))
}
