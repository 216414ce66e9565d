# The only task list: people and CI call these targets. `make` explains itself from the comments after `##`.

PYTHON ?= python3
DATA ?=
PIPELINE ?= pipeline.toml
JOBS ?= 2
PYTHONS ?= 3.11 3.12 3.13
LOG ?=
IMAGE ?= millrace:dev
TURNS ?= 20
CLUSTER ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/millrace/cluster-1.35.4
KAFKA_HOME ?=
JARS = $(if $(KAFKA_HOME),$(KAFKA_HOME)/libs,.kafka/jars)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run up test test-fast test-llm test-pythons lint format clients bench-ridge bench-loop bench-serve bench-fresh bench-rollback
.PHONY: bench-pipeline bench-labels bench-drift bench-analytic bench-continual bench-memory bench-draft bench-llm calibrate lock proto reference clean kafka faults charts
.PHONY: image cluster test-cluster cluster-faults

# The interpreter that is there is used; none is downloaded.
export UV_PYTHON_DOWNLOADS := never
# Certificates are those of the machine, as pip uses them.
export UV_SYSTEM_CERTS := true

LOCKS := deploy/requirements
UV := .tools/bin/uv
INSTALL := $(UV) pip install --quiet --no-deps --compile-bytecode --build-constraints $(LOCKS)/uv.txt --python
SYNC := $(UV) pip sync --quiet --require-hashes --compile-bytecode --python
RESOLVE := $(UV) pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command 'make lock' --python-version 3.11
TEST := .venv-test/bin
# A release of Python as pyenv has it, else as the path has it; nothing where neither does.
python_of = $(firstword $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/$(1).*/bin/python$(1)) $(shell python$(1) -c 'import sys; print(sys.executable)' 2>/dev/null))
SHARED := PYTHONPATH=tests/services/support:tests/streams/support # what tests and benchmarks share
MAVEN_COPY := org.apache.maven.plugins:maven-dependency-plugin:3.6.0:copy-dependencies
# Go programs for the chart, by version and outside the checkout: made once a machine. Tests read here which.
CHART_TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/millrace/tools
CHART_PROGRAMS := helm-3.22.0/helm helm-4.3.2/helm helm-unittest-1.1.2/helm-unittest
GRPCURL := github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4
SHIPPED := avro backbone kafka mlflow onnx parquet serve torch # every extra but the demo's and those of language models: what an image may hold
TESTED := $(SHIPPED) demo llm # every extra but llm-cpu and llm-gpu, which both own the module vllm and pin older releases
comma := ,
WANTED := $(subst $(comma), ,$(EXTRAS))
ROOMS := learners streams services
# The folders are listed too: their time changes when a module is removed.
SOURCES := $(shell find $(ROOMS) -not -path '*__pycache__*' \( -type d -o -name '*.py' -o -name '*.pyi' -o -name '*.proto' -o -name py.typed \) 2>/dev/null)

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

setup: .venv/.ready .venv/.parquet .venv/.kafka $(addprefix .venv/.,$(filter-out demo,$(WANTED)))  ## make the environment that `make run` needs, with the clients of Parquet and Kafka (.venv, editable; EXTRAS=serve,avro)

run: .venv/.serve $(if $(DATA),.venv/.parquet) $(if $(LOG),.venv/.kafka $(if $(KAFKA_HOME),,.kafka/.ready))  ## watch a model learn and answer, be killed, resume and prove it (DATA=name for another stream, LOG=kafka)
	.venv/bin/python -m millrace.services.demo.story $(if $(DATA),--data $(DATA)) $(if $(LOG),--kafka $(JARS))

up: .venv/.serve  ## learn and answer over HTTP and gRPC until Ctrl-C (PIPELINE=file.toml)
	.venv/bin/millrace up $(PIPELINE)

test: lint  ## test the installed package: lint, types, doctests, all tests
	-@$(MAKE) clients
	-@$(if $(shell command -v go),$(MAKE) charts,echo "no Go here: the tests that run helm are skipped")
	-@$(if $(shell command -v mvn),$(MAKE) .kafka/.ready,echo "no mvn here: the tests on a Kafka broker are skipped")
	$(TEST)/pytest --doctest-modules --pyargs $(addprefix millrace.,$(ROOMS)) --ignore-glob '*/llm/engine.py'
	MILLRACE_INSTALLED=1 $(TEST)/pytest -n $(JOBS) --dist loadgroup tests
	$(MAKE) test-llm

test-llm: .venv-llm/.installed  ## the tests on a real vLLM, in an environment of its own (6 GB), one engine at a time
	MILLRACE_INSTALLED=1 MILLRACE_LLM=1 .venv-llm/bin/pytest -m llm tests/services/llm

test-fast: .venv-test/.installed  ## the unit tests alone
	MILLRACE_INSTALLED=1 $(TEST)/pytest -n $(JOBS) --dist loadgroup -m "not slow" tests

test-pythons:  ## the unit tests alone with each release of Python that is there (PYTHONS="3.12 3.13")
	@$(foreach release,$(PYTHONS),$(if $(call python_of,$(release)),$(MAKE) test-python-$(release),echo "no Python $(release) here: not run") &&) true

test-python-%: .venv-test-%/.installed
	MILLRACE_INSTALLED=1 .venv-test-$*/bin/pytest -n $(JOBS) --dist loadgroup -m "not slow" tests

cluster:  ## build a real Kubernetes of one node, once, outside the checkout, as root (20 minutes of one core; CLUSTER=folder)
	nice tests/cluster/cluster.sh build $(CLUSTER)

test-cluster: .venv-test/.installed $(if $(shell command -v go),$(CHART_TOOLS)/helm-3.22.0/helm)  ## build the image and run the tests of it and of the chart on the cluster of `make cluster`, as root
	-@$(if $(shell command -v mvn),$(MAKE) .kafka/.ready,echo "no mvn here: the test on a Kafka broker is skipped")
	MILLRACE_INSTALLED=1 MILLRACE_CLUSTER=$(CLUSTER) $(TEST)/pytest -s -m cluster tests/cluster

cluster-faults: .venv-test/.installed $(if $(shell command -v go),$(CHART_TOOLS)/helm-3.22.0/helm)  ## twenty seeded kills in a pod, and twenty moves of one under load, on the cluster of `make cluster`, as root (TURNS=5)
	MILLRACE_INSTALLED=1 MILLRACE_CLUSTER=$(CLUSTER) MILLRACE_TURNS=$(TURNS) $(TEST)/pytest -s -m cluster tests/cluster/test_killed.py tests/cluster/test_moved.py

faults: .venv-test/.installed .kafka/.ready  ## twenty seeded kills each, in a pod too, then every fault on a real broker with what was seen of each invariant
	MILLRACE_INSTALLED=1 $(TEST)/pytest -m faults tests
	$(MAKE) cluster-faults
	PYTHONPATH=tests/faults:tests/services/support:tests/streams/support $(TEST)/python tests/faults/faults.py

lint: .venv-test/.installed  ## ruff and mypy --strict
	$(TEST)/ruff check $(ROOMS) tests examples deploy
	$(TEST)/ruff format --check $(ROOMS) tests examples deploy
	$(TEST)/mypy --strict $(addprefix -p millrace.,$(ROOMS))
	$(TEST)/mypy --strict examples/own_learner.py deploy/image/bill.py

format: .venv-test/.ready  ## let ruff lay out the code and mend what it can
	$(TEST)/ruff check --fix $(ROOMS) tests examples deploy
	$(TEST)/ruff format $(ROOMS) tests examples deploy

clients: .venv-clients/.ready $(if $(shell command -v go),.tools/bin/grpcurl)  ## make what the tests call us with: other people's clients

charts: $(addprefix $(CHART_TOOLS)/,$(CHART_PROGRAMS))  ## make helm 3, helm 4 and helm-unittest for the chart's tests (Go; once a machine)

kafka: .venv/.kafka $(if $(KAFKA_HOME),,.kafka/.ready)  ## run a Kafka broker of one's own until Ctrl-C (KAFKA_HOME=folder of one that is there)
	.venv/bin/python -m millrace.services.demo.broker --jars $(JARS)

image: $(UV)  ## build the container image with buildah or docker (IMAGE=name, BASE=image, EXTRAS=serve,kafka); its papers go to build/image
	BASE=$(BASE) EXTRAS=$(EXTRAS) deploy/image/build.sh $(IMAGE) build/image

bench-ridge: .venv-test/.installed  ## ridge against the machine's own dsyrk and the textbook recursion
	$(TEST)/python tests/bench/bench_ridge.py

bench-loop: .venv-test/.installed  ## the whole worker against a bare read of the same log (PROCESSOR=1: by the processor's time, on a busy machine)
	$(TEST)/python tests/bench/bench_loop.py $(if $(PROCESSOR),--processor-time --repeats 9)

bench-labels: .venv-test/.installed  ## a served prediction and its late label against a plain row
	$(TEST)/python tests/bench/bench_labels.py

bench-pipeline: .venv-test/.installed $(if $(KAFKA_HOME),,.kafka/.ready)  ## the whole worker on Kafka against kafka-python, a parser and a matrix
	$(TEST)/python tests/bench/bench_pipeline.py --jars $(JARS)

bench-serve: .venv-test/.installed .venv-peers/.ready  ## requests/s and latency against MLServer, bare FastAPI and bare grpc.aio (LOG=kafka: on Kafka beside SQLite; MEMORY=1: with an error memory beside without)
	$(SHARED) $(TEST)/python tests/bench/bench_serve.py $(if $(LOG),--log $(LOG) --jars $(JARS)) $(if $(MEMORY),--memory)

bench-fresh: .venv-test/.installed  ## from an event's append to answers that know it, while 1,000 rows/s are learned (LOG=kafka: there too)
	$(SHARED) $(TEST)/python tests/bench/bench_fresh.py $(if $(LOG),--log $(LOG) --jars $(JARS))

bench-rollback: .venv-test/.installed  ## from the rollback command to the last replica that has gone back, under load
	$(SHARED) $(TEST)/python tests/bench/bench_rollback.py

# The folder is the package to protoc too, so that the files import each other by the name they have once installed.
proto: .venv-test/.ready  ## make the message classes from services/protocol/*.proto
	rm -rf build/proto && mkdir -p build/proto
	$(TEST)/python -m grpc_tools.protoc -Imillrace/services/protocol=services/protocol --python_out=build/proto --pyi_out=build/proto \
		$(addprefix millrace/,$(wildcard services/protocol/*.proto))
	mv build/proto/millrace/services/protocol/* services/protocol/

reference: .venv-test/.installed  ## write anew what docs/reference and the chart have from the code
	PYTHONPATH=tests $(TEST)/python tests/reference_pages.py
	PYTHONPATH=tests:tests/deploy/support $(TEST)/python tests/deploy/support/values_schema.py

bench-drift: .venv-test/.installed  ## false alarms against their budgets, detection delays, cost of a row beside bare river
	$(TEST)/python tests/bench/bench_drift.py

bench-analytic: .venv-test/.installed  ## the analytic family on imbalanced digits beside a plain ridge; what balancing costs
	$(TEST)/python tests/bench/bench_analytic.py

bench-continual: .venv-test/.installed $(if $(MAMMOTH),.venv-continual/.ready)  ## every learner on split MNIST and CIFAR-10; goes on where it was stopped (QUICK=1; MAMMOTH=clone of aimagelab/mammoth)
	$(TEST)/python tests/bench/bench_continual.py $(if $(QUICK),--quick) $(if $(MAMMOTH),--mammoth $(MAMMOTH))

bench-memory: .venv-test/.installed  ## answers with an error memory and without, on five streams whose labels come late (QUICK=1; an hour)
	$(SHARED) $(TEST)/python tests/bench/bench_memory.py $(if $(QUICK),--quick)

bench-draft: .venv-llm/.installed  ## what a draft gains by learning from what it serves, beside ngram, OSD and a draft that stays (QUICK=1: 25 minutes)
	$(strip $(SHARED)):tests/learners/support .venv-llm/bin/python tests/bench/bench_draft.py $(if $(QUICK),--quick)

bench-llm: .venv-llm/.installed  ## distilling and serving beside bare torch and bare vLLM, on what bench-draft stored (QUICK=1: minutes; PARTS="learning swap")
	$(strip $(SHARED)):tests/learners/support .venv-llm/bin/python tests/bench/bench_llm.py $(PARTS) $(if $(QUICK),--quick)

calibrate: .venv-test/.installed  ## measure the table of learners/drift/calibration.py anew (half an hour)
	$(TEST)/python tests/bench/calibrate_drift.py

lock: $(UV)  ## resolve the requirements anew
	$(RESOLVE) -o $(LOCKS)/uv.txt $(LOCKS)/uv.in
	$(RESOLVE) $(addprefix --extra ,$(TESTED)) --group test -o $(LOCKS)/test.txt pyproject.toml
	$(RESOLVE) --extra demo -c $(LOCKS)/test.txt -o $(LOCKS)/run.txt pyproject.toml
	$(RESOLVE) --extra demo --extra serve -c $(LOCKS)/test.txt -o $(LOCKS)/serve.txt pyproject.toml
	$(RESOLVE) $(addprefix --extra ,$(SHIPPED)) -c $(LOCKS)/test.txt -o $(LOCKS)/image.txt pyproject.toml
	$(RESOLVE) --extra serve --extra kafka --extra parquet --extra llm-cpu --group test --override $(LOCKS)/llm-override.in -o $(LOCKS)/llm.txt pyproject.toml
	$(RESOLVE) -o $(LOCKS)/clients.txt $(LOCKS)/clients.in
	$(RESOLVE) -o $(LOCKS)/peers.txt $(LOCKS)/peers.in
	$(RESOLVE) --override $(LOCKS)/continual-override.in -o $(LOCKS)/continual.txt $(LOCKS)/continual.in

clean:  ## remove the environments and everything built
	rm -rf .tools .venv .venv-test .venv-test-3.* .venv-clients .venv-llm .venv-peers .venv-continual .kafka build dist *.egg-info
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(ROOMS) tests -name __pycache__ -prune -exec rm -rf {} +

$(UV): $(LOCKS)/uv.txt
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCKS)/uv.txt
	@touch $@

.venv/.ready: $(UV) $(LOCKS)/run.txt pyproject.toml
	$(UV) venv --quiet --clear --python $(PYTHON) .venv
	$(SYNC) .venv $(LOCKS)/run.txt
	$(INSTALL) .venv --editable .
	@touch $@

# The first run of all does not wait for Ray,
.venv/.serve: .venv/.ready $(LOCKS)/serve.txt
	$(UV) pip install --quiet --no-deps --require-hashes --compile-bytecode --python .venv -r $(LOCKS)/serve.txt
	@touch $@

# nor for what other extras bring, in the versions that the tests have.
$(addprefix .venv/.,$(filter-out demo serve,$(TESTED))): .venv/.%: .venv/.ready $(LOCKS)/test.txt
	$(UV) pip install --quiet --require-hashes --compile-bytecode --python .venv --constraints $(LOCKS)/test.txt --extra $* -r pyproject.toml
	@touch $@

.venv/.%:
	@echo "EXTRAS=$*: there is no such extra here. Take of $(sort $(TESTED)); for a language model on a processor run make .venv-llm/.installed." >&2; exit 1

.venv-test/.ready: $(UV) $(LOCKS)/test.txt
	$(UV) venv --quiet --clear --python $(PYTHON) .venv-test
	$(SYNC) .venv-test $(LOCKS)/test.txt
	@touch $@

.venv-test-3.%/.ready: $(UV) $(LOCKS)/test.txt
	$(UV) venv --quiet --clear --python $(call python_of,3.$*) $(@D)
	$(SYNC) $(@D) $(LOCKS)/test.txt
	@touch $@

# The same wheel as the other tests have.
.venv-test-3.%/.installed: .venv-test-3.%/.ready .venv-test/.installed
	$(INSTALL) $(@D) --reinstall dist/learning_millrace-*.whl
	@touch $@

.venv-llm/.installed: .venv-llm/.ready .venv-test/.installed
	$(INSTALL) .venv-llm --reinstall dist/learning_millrace-*.whl
	@touch $@

# These ask for an older protobuf than Ray does, and none of them is ever in a process of ours. vLLM asks for an older NumPy.
.venv-clients/.ready .venv-peers/.ready .venv-continual/.ready .venv-llm/.ready: .venv-%/.ready: $(UV) $(LOCKS)/%.txt
	$(UV) venv --quiet --clear --python $(PYTHON) .venv-$*
	$(SYNC) .venv-$* $(LOCKS)/$*.txt
	@touch $@

# A Go program, for whoever has Go; its module's checksum is in Go's own database.
.tools/bin/grpcurl: $(UV)
	GOBIN=$(abspath .tools/bin) go install $(GRPCURL)
	@touch $@

$(CHART_TOOLS)/helm-3.%/helm:
	GOBIN=$(@D) nice go install -ldflags '-s -w' helm.sh/helm/v3/cmd/helm@v3.$*

$(CHART_TOOLS)/helm-4.%/helm:
	GOBIN=$(@D) nice go install -ldflags '-s -w' helm.sh/helm/v4/cmd/helm@v4.$*

# Its module replaces another, which `go install` refuses; so it is built where it lies.
$(CHART_TOOLS)/helm-unittest-%/helm-unittest:
	cd "$$(go mod download -json github.com/helm-unittest/helm-unittest@v$* | sed -n 's/.*"Dir": "\(.*\)",/\1/p')" && nice go build -ldflags '-s -w' -o $@ ./cmd/helm-unittest

# Apache Kafka as it is published, by its Maven coordinates; where they come from is Maven's own setting.
.kafka/.ready: deploy/kafka/pom.xml
	mvn --quiet --batch-mode --file $< $(MAVEN_COPY) -DoutputDirectory=$(abspath .kafka/jars) -DincludeScope=runtime
	@touch $@

# First the sdist, then the wheel from it: a wheel built straight from the tree can ship modules deleted long ago.
.venv-test/.installed: .venv-test/.ready $(SOURCES) pyproject.toml README.md LICENSE
	rm -rf dist
	$(UV) build --quiet --require-hashes --build-constraints $(LOCKS)/uv.txt --python .venv-test/bin/python -o dist
	$(INSTALL) .venv-test --reinstall dist/learning_millrace-*.whl
	@touch $@
