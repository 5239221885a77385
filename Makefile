# SPDX-License-Identifier: Apache-2.0
# Thin front door over CMake; everything lands in build/.
#   make          library, program, tests
#   make demo     text from models/tiny-gpt-oss, its experts' load, agreement with the reference
#   make check    builds, then runs every test
#   make install  PREFIX=/usr/local

BUILD  ?= build
PREFIX ?= /usr/local
JOBS   ?= $(shell nproc)

all: configure
	@cmake --build $(BUILD) -j $(JOBS) > $(BUILD)/build.log 2>&1 \
	    || { cat $(BUILD)/build.log; exit 1; }

configure: packages
	@mkdir -p $(BUILD)
	@cmake -S . -B $(BUILD) -DCMAKE_INSTALL_PREFIX=$(PREFIX) $(CMAKE_ARGS) > $(BUILD)/configure.log 2>&1 \
	    || { cat $(BUILD)/configure.log; exit 1; }

packages:
	@tools/packages.sh

demo: configure # the program alone, no GPU code
	@cmake --build $(BUILD) -j $(JOBS) --target moe_cli > $(BUILD)/build.log 2>&1 \
	    || { cat $(BUILD)/build.log; exit 1; }
	@$(BUILD)/moe generate models/tiny-gpt-oss "It is a truth universally acknowledged, that" \
	    --max-tokens 100 --temperature 0.7 --top-p 0.9 --seed 4 --heat-map
	@$(BUILD)/moe check --model models/tiny-gpt-oss --quick > $(BUILD)/demo.log 2>&1 \
	    || { cat $(BUILD)/demo.log; exit 1; }
	@echo "agreement with transformers: $$(tail -n 1 $(BUILD)/demo.log)"

# AMD's compiler is asked for before the build is configured, and only here.
check:
	@tools/packages.sh --amd
	@$(MAKE) --no-print-directory all
	@ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS) $(CTEST_ARGS)

install: all
	@cmake --install $(BUILD)

clean:
	@rm -rf $(BUILD)

.PHONY: all configure packages demo check install clean
