# Millstream: the commands that people use. Each says what it does; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test matrix test-systemd soak fuzz bench bench-quick lint install deps

QUEUE ?= embedded
SOAK_SECONDS ?= 600
FUZZ_SECONDS ?= 30
VERSIONS ?= 14 15 16 17 18

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## two throw-away servers, a live workload, the daemon killed again and again, both sides compared (QUEUE=kafka)
	@tests/tools/install-deps $(if $(filter kafka,$(QUEUE)),kafka)
	@$(if $(filter kafka,$(QUEUE)),tests/tools/install-kafka)
	@echo "Building (the first time some minutes)"
	@cargo build --locked --quiet --profile demo --bin millstream --example demo
	@target/demo/examples/demo --queue $(QUEUE)

test: ## format, lints, unit, property, conformance, integration and crash tests
	@tests/tools/test

matrix: ## the integration tests against PostgreSQL 14, 15, 16, 17 and 18 (VERSIONS="17 18"), servers from Maven Central
	@tests/tools/install-deps kafka
	@for major in $(VERSIONS); do echo "PostgreSQL $$major"; tests/tools/test-on-postgres $$major || exit 1; done
	@echo "PostgreSQL 14 to 18, and 18 to 14"
	@REPLICA_MAJOR=18 tests/tools/test-on-postgres 14 scenarios:: copy:: apply::
	@REPLICA_MAJOR=14 tests/tools/test-on-postgres 18 scenarios:: copy:: apply::

test-systemd: ## the installed unit under a systemd of its own (root): start, credentials, kill, watchdog, stop
	@tests/tools/install-deps
	@tests/tools/test-under-systemd

# Storms first, then kills at every named place. QUEUE reaches the tests only when it was asked for: every third storm goes over Kafka otherwise.
soak: ## random kills for SOAK_SECONDS=600 (SOAK_SEED replays a run, QUEUE=kafka or embedded keeps to one queue)
	@tests/tools/install-deps kafka
	@tests/tools/install-kafka
	@cargo test --locked --features failpoints --test it --no-run
	SOAK_SECONDS=$(SOAK_SECONDS) cargo test --locked --features failpoints --test it -- --nocapture --test-threads 1 soak::
	cargo test --locked --features failpoints --test it -- --nocapture --test-threads 1 crash::failpoints:: crash::commands::

fuzz: ## every fuzz target for FUZZ_SECONDS=30 each
	@tests/tools/install-deps
	@tests/tools/fuzz $(FUZZ_SECONDS)

bench: ## figures against PostgreSQL's own subscription, into docs/benchmarks.md
	@tests/tools/install-deps kafka
	@tests/tools/install-kafka
	@tests/tools/bench

bench-quick: ## the same with smaller numbers, printed only
	@tests/tools/install-deps kafka
	@tests/tools/install-kafka
	@tests/tools/bench --quick

lint: ## format and lints only
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings

install: ## binary, systemd unit, user, folders and sample configuration on this machine (DESTDIR for packages); asks sudo itself
	@tests/tools/install-deps only-build
	@cargo build --locked --release --bin millstream
	@deploy/install

deps: ## installs what building and testing needs
	@tests/tools/install-deps kafka prometheus systemd lint
