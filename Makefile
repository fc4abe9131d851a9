# Everything a person or CI does with this repository. `make help` lists it.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
S3_READY := .venv-s3/.ready
CHART := charts/capstan
FUZZ_SECONDS ?= 60
CODE := operator trainer_images tests scripts benchmarks examples

.PHONY: help setup demo demo-serving demo-bench demo-down chaos test test-full torture fuzz check audit generate verify format
.PHONY: bench images e2e-kind clean lock

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(READY) ## Create .venv with every pinned dependency (the other targets do it for you)

$(READY): requirements.lock pyproject.toml scripts/setup.sh
	@PYTHON=$(PYTHON) scripts/setup.sh $(VENV)
	@touch $@

$(S3_READY): requirements-s3.lock scripts/setup_s3.sh
	@PYTHON=$(PYTHON) scripts/setup_s3.sh
	@touch $@

demo: $(READY) ## Start the embedded cluster and train the examples on it, with a live table
	@$(BIN)/python examples/demo.py

demo-serving: $(READY) ## Serve a model on it and replace it under load: by a better one, and by a bad one
	@$(BIN)/python examples/serving.py

demo-bench: $(READY) ## Run every example Benchmark on it, with a live table; prints where the reports are
	@$(BIN)/python examples/bench.py

demo-down: $(READY) ## Stop the embedded cluster
	@$(BIN)/capstan local down

chaos: $(READY) ## A storm of injected faults on both frameworks; it must end with the undisturbed run's loss
	@$(BIN)/python examples/chaos.py

torture: $(READY) ## Break checkpoints in 10,000 ways and kill their writers anywhere; prints what was noticed
	@$(BIN)/python -m tests.torture

fuzz: $(READY) ## Give every parser broken data, led by coverage, for FUZZ_SECONDS each; prints what was found
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

test: $(READY) $(S3_READY) ## Run all tests; with KUBEBUILDER_ASSETS set, against a real kube-apiserver too
	@$(BIN)/python scripts/run_tests.py

test-full: $(READY) $(S3_READY) ## Run what takes minutes as well: images are built and run, takeovers are repeated
	@$(BIN)/python scripts/run_tests.py -m "full or not full"

check: $(READY) audit ## Format, lint, types, import rules, and what is known to be unsafe
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy operator/capstan_operator operator/capstan_local trainer_images/capstan_runtime
	@$(BIN)/lint-imports
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive operator trainer_images scripts examples

audit: $(READY) ## Ask PyPI for known vulnerabilities of everything that is pinned
	@$(BIN)/python scripts/audit.py requirements.lock requirements-s3.lock

generate: $(READY) ## Write the files that come from the models
	@$(BIN)/python -m capstan_operator.crdgen crds
	@$(BIN)/python -m capstan_operator.crdgen $(CHART)/files/crds
	@$(BIN)/python -m capstan_operator.rbacgen $(CHART)/files/rights.yaml
	@$(BIN)/python scripts/chart_docs.py $(CHART)
	@$(BIN)/python scripts/argocd_config.py
	@$(BIN)/python scripts/reference_docs.py
	@$(BIN)/python -m scripts.support_matrix
	@$(BIN)/python scripts/command_docs.py
	@$(BIN)/python scripts/metric_docs.py
	@$(BIN)/python scripts/dashboards.py $(CHART)/files/dashboards
	@$(BIN)/python scripts/pictures.py

verify: $(READY) ## Prove that generated files and the environment are what they should be
	@$(BIN)/python -m capstan_operator.crdgen --check crds
	@$(BIN)/python -m capstan_operator.crdgen --check $(CHART)/files/crds
	@$(BIN)/python -m capstan_operator.rbacgen --check $(CHART)/files/rights.yaml
	@$(BIN)/python scripts/chart_docs.py --check $(CHART)
	@$(BIN)/python scripts/argocd_config.py --check
	@$(BIN)/python scripts/reference_docs.py --check
	@$(BIN)/python -m scripts.support_matrix --check
	@$(BIN)/python scripts/command_docs.py --check
	@$(BIN)/python scripts/metric_docs.py --check
	@$(BIN)/python scripts/dashboards.py --check $(CHART)/files/dashboards
	@$(BIN)/python scripts/pictures.py --check
	@$(BIN)/python scripts/check_lock.py requirements.lock

format: $(READY) ## Format and sort imports
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix $(CODE)

bench: $(READY) ## Measure; prints a table with the command behind each figure
	@$(BIN)/python -m benchmarks

images: $(READY) ## Build the five images with Docker or buildah: BASE, VARIANT, REGISTRY, TAG, IMAGES; see docs/images.md
	@$(BIN)/python scripts/build_images.py --base "$(BASE)" --variant "$(or $(VARIANT),cpu)" --registry "$(REGISTRY)" \
		--deepspeed-ops "$(DEEPSPEED_OPS)" $(if $(TAG),--tag "$(TAG)") $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)") $(IMAGES)

e2e-kind: $(READY) ## With Docker, kind, kubectl and helm: from nothing to a finished job on kind; not run in CI
	@PYTHON=$(BIN)/python scripts/e2e_kind.sh

lock: ## Resolve the newest versions pyproject.toml allows into requirements*.lock
	@PYTHON=$(PYTHON) scripts/lock.sh
	@PYTHON=$(PYTHON) scripts/setup_s3.sh --lock

clean: ## Remove the environment and caches (not ~/.capstan)
	rm -rf $(VENV) .venv-s3 .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
