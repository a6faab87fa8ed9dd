// Textparse reads a page with Prometheus' own text parser, labels included, again and again, and prints bytes a second: the
// median of seven. With a second argument it prints the samples instead, one a line: name, labels, the value's bits and the timestamp.
package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sort"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
)

func main() {
	page, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	if len(os.Args) > 2 {
		show(page)
		return
	}
	var rates []float64
	for range 7 {
		began, rounds := time.Now(), 0
		for time.Since(began) < 600*time.Millisecond {
			read(page)
			rounds++
		}
		rates = append(rates, float64(rounds*len(page))/time.Since(began).Seconds())
	}
	sort.Float64s(rates)
	fmt.Printf("%.0f\n", rates[3])
}

func read(page []byte) {
	parser := textparse.NewPromParser(page, labels.NewSymbolTable(), false)
	var lset labels.Labels
	for {
		entry, err := parser.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			panic(err)
		}
		if entry == textparse.EntrySeries {
			_, _, _ = parser.Series()
			parser.Labels(&lset)
		}
	}
}

func show(page []byte) {
	parser := textparse.NewPromParser(page, labels.NewSymbolTable(), false)
	var lset labels.Labels
	for {
		entry, err := parser.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			panic(err)
		}
		if entry != textparse.EntrySeries {
			continue
		}
		_, timestamp, value := parser.Series()
		parser.Labels(&lset)
		fmt.Printf("%s", lset.Get(labels.MetricName))
		lset.Range(func(label labels.Label) {
			if label.Name != labels.MetricName {
				fmt.Printf(" %s=%q", label.Name, label.Value)
			}
		})
		fmt.Printf(" %016x", math.Float64bits(value))
		if timestamp != nil {
			fmt.Printf(" @%d", *timestamp)
		}
		fmt.Println()
	}
}
