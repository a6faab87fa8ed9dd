# The commands of this project. `make demo` and `make test` are the README's two.
SHELL := /usr/bin/env bash
CLUSTER_DIR ?= $(or $(IDLECONN_CLUSTER_DIR),$(HOME)/.cache/idleconn-operator/cluster)

.PHONY: arm64 image-all attack upgrade fuzz advisories scale image plugin chart e2e mutants probe needs-faketime needs-page needs-prometheus needs-readers help demo test soak bench lint generate tools cluster-up cluster-down needs

help: ## Lists the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

needs:
	@for tool in cargo go curl openssl; do command -v $$tool >/dev/null || { echo "$$tool is missing: install it and run make again" >&2; exit 1; }; done

needs-faketime:
	@ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && apt-get install -qq --yes faketime >/dev/null; } || { echo "faketime is missing: install it (Debian: apt install faketime) and run make again" >&2; exit 1; }

needs-prometheus:
	@command -v prometheus >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -qq --yes prometheus >/dev/null; } || { echo "prometheus is missing: install it (Debian: apt install prometheus) and run make again" >&2; exit 1; }

needs-readers:
	@for tool in nginx haproxy; do command -v $$tool >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -qq --yes nginx-light haproxy >/dev/null; } || { echo "$$tool is missing: install it (Debian: apt install nginx-light haproxy) and run make again" >&2; exit 1; }; done
	@command -v node >/dev/null || { echo "node is missing: install Node 20 or newer and run make again" >&2; exit 1; }
	@cd examples/node-service && [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --silent --no-audit --no-fund

needs-page: needs-readers
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -qq --yes --no-install-recommends chromium >/dev/null; } || { echo "chromium is missing: install it (Debian: apt install chromium) and run make again" >&2; exit 1; }
	@python3 -c 'import venv, ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -qq --yes python3-venv >/dev/null; } || { echo "Python's venv is missing: install it (Debian: apt install python3-venv) and run make again" >&2; exit 1; }
	@cd tests/page && [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --silent --no-audit --no-fund
	@tests/schemathesis/build >/dev/null

demo: needs tools ## Shows the operator at work on three real Caddy servers; HOLD=1 stays up
	@cargo build --quiet --locked --bins
	@demo/run

test: needs needs-prometheus needs-readers needs-page needs-faketime tools ## Runs every test there is
	cargo test --locked
	@cd tests/gitops && go test ./...

image: needs ## Makes the image without an engine, target/image/idleconn-operator.tar, and lists what is in it (CycloneDX)
	@image/build
	@image/sbom

image-all: needs ## The same for amd64 and for arm64
	@image/build amd64
	@image/build arm64
	@image/sbom amd64 arm64

arm64: needs ## Builds both programs for arm64 and lets them say their version under an emulator
	@image/arm64-starts

plugin: needs ## Packs kubectl's plugin and its Krew manifest: target/image/idleconn.yaml
	@image/plugin

chart: needs needs-prometheus ## Renders the chart under every set of values and holds it against a real API server
	@tests/chart/run

e2e: needs needs-prometheus ## The whole story on a real node with real pods; needs root
	@tests/e2e/run

probe: needs needs-readers tools ## Measures idle timeouts of up to a minute of real servers, twenty times each
	cargo test --locked --test it -- --ignored long_idle_timeout

soak: needs tools ## Looks for two minutes whether a steady state costs anything, and kills the replica that acts 20 times
	IDLECONN_STEADY_SECONDS=120 cargo test --locked --test it -- --nocapture steady soak

bench: needs needs-readers tools ## Measures how fast an edit reaches the nodes, what the pool saves, how fast pages are read, what a fleet of 5,000 costs
	cargo bench --locked --bench latency
	@cd tests/agentkeepalive && npm ci --silent --no-audit --no-fund
	cargo bench --locked --bench pool
	cargo bench --locked --bench signals
	cargo bench --locked --bench farm

attack: needs tools ## Lets loose on the static release binary what a tenant, a node or anyone who reaches the pod may try
	@binary=$$(image/static idleconn-operator | tail -n 1) && IDLECONN_BINARY="$$PWD/$$binary" cargo test --locked --test attack -- --test-threads=2

upgrade: needs tools ## Lets this operator take over live policies from a former one: FORMER=COMMIT, by default the one before the newest security work
	@git worktree add --quiet --force target/former $(or $(FORMER),49ea740) && trap 'git worktree remove --force target/former' EXIT && \
		cargo build --quiet --locked --bin idleconn-operator --manifest-path target/former/Cargo.toml --target-dir target/former-build && \
		IDLECONN_FORMER="$$PWD/target/former-build/debug/idleconn-operator" cargo test --locked --test attack -- --ignored upgrade

fuzz: needs ## Gives every reader of what somebody else wrote a hundred million inputs: about half an hour
	IDLECONN_FUZZ=$(or $(FUZZ),100000000) cargo test --locked --profile bench --test fuzz -- --nocapture

advisories: ## Holds the dependencies against the RustSec and npm advisories; needs network
	cargo deny check advisories
	@for module in examples/node-service tests/page tests/agentkeepalive; do (cd $$module && npm audit --omit=dev) || exit 1; done

scale: needs tools ## The whole controller, as it ships, with 5,000 nodes and 1,000 policies: about ten minutes once everything is built
	@binary=$$(image/static idleconn-operator | tail -n 1) && cargo build --quiet --locked --profile bench --bench scale && ulimit -n 65536 && \
		for fleet in "500 20" "1000 200" "5000 1000"; do set -- $$fleet; \
		IDLECONN_BINARY="$$PWD/$$binary" IDLECONN_NODES=$$1 IDLECONN_POLICIES=$$2 cargo bench --quiet --locked --bench scale || exit 1; done

mutants: ## Changes the rules one by one and looks whether a test notices: hours; FILE=order for src/decide/order.rs alone
	@cargo mutants --version >/dev/null 2>&1 || cargo install --locked cargo-mutants@25.3.1
	rm -rf target/mutants && mkdir -p target/mutants/tree
	git ls-files -co --exclude-standard | tar cf - -T - | tar xf - -C target/mutants/tree
	cd target/mutants/tree/tests/pure && CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR="$(CURDIR)/target/mutants/build" \
		cargo mutants --in-place --output "$(CURDIR)/target/mutants" --timeout 60 --file '**/decide/$(or $(FILE),*).rs' -- --locked --lib

lint: ## Format, clippy, dependencies, shell scripts' syntax
	cargo fmt --check
	@rustfmt --check src/api/formats/*.rs # named by a macro, which cargo fmt does not follow
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo deny --offline check bans licenses sources
	@for module in examples/go-service tests/gitops tests/readers/objstore tests/textparse; do (cd $$module && test -z "$$(gofmt -l .)" && go vet ./...) || exit 1; done
	@for script in demo/run .ci/run deploy/generate image/arm64-starts image/build image/pack image/plugin image/sbom image/static tests/chart/run tests/e2e/node tests/e2e/run tests/schemathesis/build tests/tools/build tests/tools/cluster tests/tools/venv; do bash -n $$script || exit 1; done

generate: needs needs-readers tools ## Writes what is generated: crds/, docs/reference.md, docs/openapi.json, the tables in docs/, tests/golden/
	IDLECONN_GENERATE=1 cargo test --locked --test it -- --test-threads=1 generated the_document_says every_route_says
	IDLECONN_GENERATE=1 cargo test --locked --test simulation --test decisions --test said
	@bin=$$(tests/tools/build charts | tail -n 1) && cp crds/idleconn.io_idleconnectionpolicies.yaml charts/idleconn-operator/files/crd.yaml && \
		"$$bin/helm-docs" --log-level error --chart-search-root charts
	@deploy/generate

tools: ## Builds the pinned test programs into a cache outside the tree
	@tests/tools/build

cluster-up: tools ## Starts a control plane and prints its kubeconfig's path as the last line
	@tests/tools/cluster up "$(CLUSTER_DIR)"

cluster-down: ## Ends it
	@tests/tools/cluster down "$(CLUSTER_DIR)"
