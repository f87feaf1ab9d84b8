# make run          set up what is missing and boot a guest on /dev/kvm, showing its exits
# make test         set up what is missing and run lint, types and the tests of every day
# make test-boot    real kernels and firmware on this machine's /dev/kvm
# make test-nested  kernels and the tests of /dev/kvm where it behaves as on SVM hardware: inside a
#                   VM of QEMU's software CPU; test-nested-all runs all that can run there
# make test-slow    what takes tens of minutes: Debian's own kernel on an emulating /dev/kvm
PY = .venv/bin/python

.PHONY: run test test-boot test-nested test-nested-all test-slow linux setup lint types format guests native bench docs clean

run: setup
	@$(PY) -m pykvm doctor --brief || true
	@echo
	@$(PY) -m pykvm trace hello64

test: setup lint types
	$(PY) -m pytest -q

# Kernels and initial RAM disks, made once and kept in ~/.cache/pykvm.
LINUX_PACKAGES = gcc binutils libc6-dev make perl flex bison bc lz4 xz-utils libelf-dev e2fsprogs \
	debian-archive-keyring
linux: setup
	@.ci/need $(LINUX_PACKAGES)
	$(PY) guests/linux/assets.py

test-boot: linux
	$(PY) -m pytest -q --timeout 600 -m "boot and not (nested or slow)" tests/boot

test-nested: linux
	$(PY) tests/nested/run.py -q -m "not slow" @tests/nested/selection

test-nested-all: linux
	$(PY) tests/nested/run.py -q -m "not slow" tests/kvm tests/boot tests/cli tests/property

test-slow: linux
	$(PY) -m pytest -q -s --timeout 0 -m "slow and not nested" tests/boot tests/kvm/test_power_cut.py tests/unit/test_lab_report_page.py

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
