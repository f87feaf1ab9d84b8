# make run    set up what is missing and boot a guest on /dev/kvm, showing its exits
# make test   set up what is missing and run lint, types and all tests
PY = .venv/bin/python

.PHONY: run test setup lint types format guests native bench docs clean

run: setup
	@$(PY) -m pykvm doctor --brief || true
	@echo
	@$(PY) -m pykvm trace hello64

test: setup lint types
	$(PY) -m pytest -q

setup:
	@.ci/setup

lint:
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types:
	$(PY) -m mypy

format:
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

native:
	rm -f .venv/.pykvm-setup
	.ci/setup

guests: setup
	$(PY) guests/build.py

bench: setup
	$(PY) benchmarks/run.py --install

docs: setup
	$(PY) -W ignore -m pdoc --docformat markdown -o docs/api $$($(PY) docs/modules.py)

clean:
	rm -rf build dist .venv pykvm/*.so pykvm/images/*.elf pykvm/images/*.bin pykvm/images/manifest.* docs/api
