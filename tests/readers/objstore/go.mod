module idleconn.io/tests/readers/objstore

go 1.25.0

require (
	github.com/thanos-io/objstore v0.0.0-20250804093838-71d60dfee488
	go.yaml.in/yaml/v2 v2.4.5
)

require (
	github.com/pkg/errors v0.9.1 // indirect
	github.com/prometheus/common v0.44.0 // indirect
)
