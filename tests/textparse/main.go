// Textparse parses a metrics page with Prometheus' text parser and prints one sample a line: name, labels, the bits of the value and the
// timestamp.
package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
)

func main() {
	page, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	show(page)
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
