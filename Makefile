# make demo   hear words: the microphone if there is one, else a recording
# make test   everything that is tested, on real audio devices where they can be had
# make check  the same, with format, lint and types first
# make man    manual pages, into build/man
# make deb    a Debian package, into build

PYTHON ?= python3
# Processes that test. Most tests wait for a daemon that hears in real time, so there may be more than cores.
TESTERS ?= 3
VENV := .venv
BIN := $(VENV)/bin
# Ubuntu has it as a snap alone; the tests take what browser there is, or skip.
CHROMIUM = $(if $(shell apt-cache policy chromium 2>/dev/null | grep 'Candidate: [0-9]'),chromium)
ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: demo test check lint format man deb clean

demo: $(VENV)/.installed
	@sh tests/demo.sh $(BIN)/kwsd

# They start kwsd some two thousand times: where Python is told to write no bytecode, each would compile all of it.
# They hear in real time, beside each other: where one fails, a machine that stood still may be to blame. What fails
# alone as well is at fault.
test: $(VENV)/.tested
	@$(BIN)/python -m compileall -q kwsd
	@$(BIN)/python -m pytest --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder || { \
		status=$$?; test $$status = 1 || exit $$status; \
		echo 'make test: what failed, once more and alone'; \
		$(BIN)/python -m pytest --last-failed --last-failed-no-failures none --exitfirst --verbose; }

check: lint test

lint: $(VENV)/.tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.tested
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

man: $(VENV)/.tested
	$(BIN)/python package/man.py build/man

deb:
	$(call debian,python3 python3-venv gcc libc6-dev)
	sh package/deb.sh build

$(VENV)/.installed: setup.cfg setup.py pyproject.toml $(wildcard kwsd/*.c kwsd/engines/*.[ch])
	$(call debian,libportaudio2 gcc libc6-dev $(if $(shell $(PYTHON) -c 'import ensurepip' 2>&1),python3-venv))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(call debian,libportaudio2 libasound2-plugins pulseaudio pulseaudio-utils socat jq util-linux strace libfaketime \
		mosquitto openssl $(CHROMIUM) man-db zsh fish espeak-ng flite)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	touch $@

# Install the Debian packages that are missing. On other systems, say which are wanted and go on.
define debian
	@missing=; for package in $(1); do dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -z "$$missing" ]; then :; \
	elif ! command -v apt-get >/dev/null; then echo "not a Debian; please install what it calls:$$missing"; \
	else $(ROOT) apt-get update -qq && \
		$(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi
endef

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
