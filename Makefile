# The commands of this project; `make help` lists them. Missing Debian packages are installed only if make runs as root.
SHELL := /usr/bin/env bash
ifeq ($(RUSTUP_TOOLCHAIN),)
RUSTUP_TOOLCHAIN := $(shell tests/tools/toolchain)
ifneq ($(RUSTUP_TOOLCHAIN),)
export RUSTUP_TOOLCHAIN
endif
endif
# The image is linked with musl, whose allocator costs more time than glibc's.
STATIC := x86_64-unknown-linux-musl
CLUSTER_DIR ?= $(or $(IDLECONN_CLUSTER_DIR),$(HOME)/.cache/idleconn-operator/cluster)

.PHONY: waves needs-static scale-fleets arm64 image-all attack upgrade explore fuzz advisories scale image plugin chart e2e mutants probe needs-faketime needs-page needs-prometheus needs-readers help demo test soak bench lint generate tools cluster-up cluster-down needs

help: ## List the commands
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

needs:
	@for tool in cargo go curl openssl; do command -v $$tool >/dev/null || { echo "$$tool is missing. Install it and run make again" >&2; exit 1; }; done

needs-faketime:
	@ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || tests/tools/packages faketime

needs-prometheus:
	@command -v prometheus >/dev/null || tests/tools/packages prometheus

needs-readers:
	@command -v nginx >/dev/null || tests/tools/packages nginx-light
	@command -v haproxy >/dev/null || tests/tools/packages haproxy
	@command -v node >/dev/null || { echo "node is missing. Install Node 20 or newer and run make again" >&2; exit 1; }
	@cd examples/node-service && [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --silent --no-audit --no-fund

needs-static:
	@command -v musl-gcc >/dev/null || tests/tools/packages musl-tools
	@rustup target list --installed 2>/dev/null | grep -qx $(STATIC) || rustup target add $(STATIC)

needs-page: needs-readers
	@command -v chromium >/dev/null || tests/tools/packages chromium
	@python3 -c 'import venv, ensurepip' 2>/dev/null || tests/tools/packages python3-venv
	@cd tests/page && [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --silent --no-audit --no-fund
	@tests/schemathesis/build >/dev/null

demo: needs tools ## Run the operator against three real Caddy servers; HOLD=1 keeps it running at the end
	@cargo build --quiet --locked --bins
	@demo/run

test: needs needs-prometheus needs-readers needs-page needs-faketime tools ## Run all tests
	cargo test --locked
	@cd tests/gitops && go test ./...

image: needs ## Build target/image/idleconn-operator.tar without Docker, and its SBOM (CycloneDX)
	@image/build
	@image/sbom

image-all: needs ## Build images and SBOMs for amd64 and arm64
	@image/build amd64
	@image/build arm64
	@image/sbom amd64 arm64

arm64: needs ## Build both programs for arm64 and start them under an emulator
	@image/arm64-starts

plugin: needs ## Package the kubectl plugin and its Krew manifest, target/image/idleconn.yaml
	@image/plugin

chart: needs needs-prometheus ## Test the chart with every set of values against a real API server
	@tests/chart/run

e2e: needs needs-prometheus ## Install, upgrade, use and uninstall the operator on a real node with pods; needs root
	@tests/e2e/run

probe: needs needs-readers tools ## Measure idle timeouts of up to a minute on real servers, twenty times each
	cargo test --locked --test it -- --ignored long_idle_timeout

soak: needs tools ## Check for two minutes that a steady state writes nothing, and kill the leader 20 times
	IDLECONN_STEADY_SECONDS=120 cargo test --locked --test it -- --nocapture steady soak

bench: needs needs-readers needs-static tools ## Measure edit latency, the connection pool, metrics parsing, a fleet of 5,000 nodes and the whole controller
	cargo bench --locked --bench latency
	@cd tests/agentkeepalive && npm ci --silent --no-audit --no-fund
	cargo bench --locked --bench pool
	cargo bench --locked --bench signals
	cargo bench --locked --target $(STATIC) --bench farm
	@$(MAKE) --no-print-directory scale-fleets

attack: needs tools ## Attack the static release binary as a tenant, a node, and a client that reaches the pod
	@binary=$$(image/static idleconn-operator | tail -n 1) && IDLECONN_BINARY="$$PWD/$$binary" cargo test --locked --test attack -- --test-threads=2

upgrade: needs tools ## Upgrade a former operator with live policies to this one; FORMER=COMMIT (default 49ea740, before the last security changes)
	@git worktree add --quiet --force target/former $(or $(FORMER),49ea740) && trap 'git worktree remove --force target/former' EXIT && \
		cargo build --quiet --locked --bin idleconn-operator --manifest-path target/former/Cargo.toml --target-dir target/former-build && \
		IDLECONN_FORMER="$$PWD/target/former-build/debug/idleconn-operator" cargo test --locked --test attack -- --ignored upgrade

fuzz: needs ## Fuzz every parser of foreign input, a hundred million inputs each; half an hour
	IDLECONN_FUZZ=$(or $(FUZZ),100000000) cargo test --locked --profile bench --test fuzz -- --nocapture

advisories: ## Check the dependencies for RustSec and npm advisories; needs network
	cargo deny check advisories
	@for module in examples/node-service tests/page tests/agentkeepalive; do (cd $$module && npm audit --omit=dev) || exit 1; done

scale: needs tools ## Measure the release build with up to 10,000 nodes and 3,000 policies; half an hour after the build
	@$(MAKE) --no-print-directory scale-fleets IDLECONN_SCALE=full

scale-fleets:
	@binary=$$(image/static idleconn-operator | tail -n 1) && cargo build --quiet --locked --profile bench --target $(STATIC) --bench scale && ulimit -n "$$(ulimit -Hn)" && \
		IDLECONN_BINARY="$$PWD/$$binary" IDLECONN_SCALE=$(IDLECONN_SCALE) cargo bench --quiet --locked --target $(STATIC) --bench scale

waves: needs tools ## Draw docs/waves.svg: the connections that an edit closes on 20 Caddy servers
	IDLECONN_PICTURE="$$PWD/docs/waves.svg" cargo test --locked --test it -- --nocapture one_change_closes_a_quarter

explore: ## Explore all lives of a policy with two faults, then find planted defects; an hour
	cd tests/pure && IDLECONN_FAULTS=2 IDLECONN_MINUTES=$(or $(MINUTES),30) cargo test --locked --profile bench --test model -- --nocapture
	tests/model/defects

mutants: ## Mutation tests of src/decide; takes hours; FILE=order tests src/decide/order.rs only
	@cargo mutants --version >/dev/null 2>&1 || { echo "Installing cargo-mutants 25.3.1 with cargo" >&2; cargo install --locked cargo-mutants@25.3.1; }
	rm -rf target/mutants && mkdir -p target/mutants/tree
	git ls-files -co --exclude-standard | tar cf - -T - | tar xf - -C target/mutants/tree
	cd target/mutants/tree/tests/pure && CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR="$(CURDIR)/target/mutants/build" \
		cargo mutants --in-place --output "$(CURDIR)/target/mutants" --timeout 60 --file '**/decide/$(or $(FILE),**/*).rs' -- --locked --lib

lint: ## Check format, clippy, links in comments, dependencies, workflows, scripts and words
	cargo fmt --check
	@rustfmt --check src/api/formats/*.rs # named by a macro, which cargo fmt does not follow
	@grep -qF "FROM rust:$$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)-" Containerfile || { echo "Containerfile and rust-toolchain.toml name different versions" >&2; exit 1; }
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D rustdoc::broken_intra_doc_links" cargo doc --quiet --locked --no-deps --document-private-items --lib
	cargo deny --offline check bans licenses sources
	@for module in examples/go-service tests/gitops tests/readers/objstore tests/textparse; do (cd $$module && test -z "$$(gofmt -l .)" && go vet ./...) || exit 1; done
	@bin=$$(tests/tools/build lint | tail -n 1) && "$$bin/actionlint" -shellcheck= -pyflakes= .github/workflows/*.yaml
	@tests/words
	@tests/model/defects --check
	@for script in demo/run .ci/run deploy/generate image/arm64-starts image/build image/kubectl_complete-idleconn image/pack image/plugin image/sbom image/static tests/chart/run tests/e2e/node tests/e2e/run tests/schemathesis/build tests/tools/build tests/tools/cluster tests/tools/packages tests/tools/toolchain tests/tools/venv; do bash -n $$script || exit 1; done

generate: needs needs-readers tools ## Write all generated files: CRD, chart README, manifests, docs tables, OpenAPI, tests/golden
	IDLECONN_GENERATE=1 cargo test --locked --test it -- --test-threads=1 generated the_document_says every_route_says
	IDLECONN_GENERATE=1 cargo test --locked --test simulation --test decisions --test said
	@bin=$$(tests/tools/build charts | tail -n 1) && cp crds/idleconn.io_idleconnectionpolicies.yaml charts/idleconn-operator/files/crd.yaml && \
		"$$bin/helm-docs" --log-level error --chart-search-root charts
	@deploy/generate

tools: ## Build the pinned test programs into a cache outside the tree
	@tests/tools/build

cluster-up: tools ## Start a control plane and print the path of its kubeconfig as the last line
	@tests/tools/cluster up "$(CLUSTER_DIR)"

cluster-down: ## Stop the control plane
	@tests/tools/cluster down "$(CLUSTER_DIR)"
