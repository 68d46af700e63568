# Each target sets up its own environment: a fresh machine needs Python 3.10 to 3.14 and a C++ compiler.
# Development uses the active virtual environment, or .venv-dev if none is active.

PYTHON ?= python3
DEMO := .venv
DEV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv-dev)
RUN := PYTHONSAFEPATH=1 $(DEV)/bin/python -m
COMPAT := .venv-compat
NANO := packages/nano/pyproject.toml blip2rt/models/nano/blip2rt.json
EXPORTED := tests/export
CORE := $(sort $(shell find engines -name '*.cpp' -o -name '*.h' -o -name '*.cu'))
SOURCES := $(CORE) $(wildcard tests/engines/native/*.cpp tests/c/native/*.c*)
MARKDOWN := $(wildcard *.md) docs examples benchmarks recipes  # except nano's card, whose hash is in the bundle

# Without what needs Python's headers, or those of image libraries.
PLAIN_CORE := $(filter-out engines/python/% $(patsubst %,engines/media/%.cpp,jpeg png webp),$(filter %.cpp,$(CORE)))
KNOWN := c++ g++-11 g++-12 g++-13 g++-14 clang++ clang++-14 clang++-19 aarch64-linux-gnu-g++
COMPILERS := $(shell for c in $(KNOWN); do p=$$(command -v $$c) && echo $$(readlink -f $$p) $$c; done | awk '!seen[$$1]++ {print $$2}')
WARNINGS = -std=c++17 -Wall -Wextra -Werror -Wno-psabi -Iengines -Iengines/c/include -DBLIP2RT_VERSION='"0"' -DBLIP2RT_NANO='"nano"'
ORT_LIBRARY = $(shell $(DEV)/bin/python -c "from blip2rt.backends.ort import find_library; print(find_library())")

.PHONY: demo install-dev web test-web test test-fast test-changed test-cuda-bindings test-locked test-lowest test-slow parity parity-lowest parity-newest parity-next test-compat lint docs dist format lock sbom sdist test-sdist wheels test-wheels check-dist release-files release workflows old-processors \
  old-arm-processors test-newest test-onnxruntimes bench \
  sanitize fuzz compilers clean

demo: $(DEMO)/installed  ## install the runtime as a user does and caption a photograph
	$(DEMO)/bin/blip2rt caption docs/photo.jpg

# A test that hangs prints its stack and fails; on a busy machine the longest takes minutes.
HANGS := --max-worker-restart 1 -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true
TESTS := OMP_NUM_THREADS=1 $(DEV)/bin/pytest -n auto --dist loadfile --no-loadscope-reorder $(HANGS)

install-dev: $(DEV)/blip2rt-installed  ## install the development environment, and blip2rt as built from this checkout

test: $(DEV)/blip2rt-installed  ## all tests but the slow ones: one process per core, one file at a time, the longest first
	$(TESTS)

BASE ?= HEAD
test-changed: $(DEV)/blip2rt-installed  ## the tests that the changes since BASE, a commit, may break
	files="$$($(RUN) tests.changed $(BASE))" && test -z "$$files" || $(TESTS) $$files

# Skips files marked `long`, whose measured seconds on one core are in the mark.
test-fast: $(DEV)/blip2rt-installed  ## the quick tests, about two minutes
	$(TESTS) -m "not slow and not gpu and not long"

parity: $(DEV)/blip2rt-installed  ## compare every architecture with transformers, as tiny models; writes docs/inside/parity.md
	OMP_NUM_THREADS=1 $(RUN) tests.parity --report docs/inside/parity.md

test-slow: $(DEV)/blip2rt-installed
	$(DEV)/bin/pytest -m slow

test-compat: $(COMPAT)/blip2rt-installed  ## test the exporter with the oldest supported transformers
	$(COMPAT)/bin/pytest $(EXPORTED)

# The report in build/ names the cases that another release changes or breaks.
PARITY_lowest := "transformers==5.0.*"
PARITY_newest := --upgrade transformers tokenizers onnx onnxscript onnxruntime
PARITY_next := --pre $(PARITY_newest)
parity-lowest parity-newest parity-next: parity-%:  ## make parity with other releases of the compared packages
	test -x .venv-parity-$*/bin/python || $(PYTHON) -m venv .venv-parity-$*
	.venv-parity-$*/bin/python -m pip install --quiet ".[export]" pytest
	.venv-parity-$*/bin/python tests/importable.py
	.venv-parity-$*/bin/python -m pip install --quiet $(PARITY_$*)
	OMP_NUM_THREADS=1 PYTHONSAFEPATH=1 .venv-parity-$*/bin/python -m tests.parity --report build/parity-$*.md

# The types of the native core for mypy and editors, as the bindings declare them.
blip2rt/_native.pyi: $(DEV)/blip2rt-installed
	cd build && $(abspath $(DEV))/bin/python -m nanobind.stubgen --quiet --module blip2rt._native --output-file ../$@

lint: blip2rt/_native.pyi
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	! grep -rnE '^ *(from|import) (train|export)\>' blip2rt train export tests benchmarks recipes --include='*.py'  # installed, they have other names
	$(RUN) mypy
	$(DEV)/bin/lint-imports
	$(DEV)/bin/clang-format --dry-run --Werror $(SOURCES)
	$(RUN) pymarkdown scan --recurse $(MARKDOWN)

docs: $(DEV)/blip2rt-installed  ## build the documentation site, with the API reference, into build/site
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

format: $(DEV)/blip2rt-installed
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(DEV)/bin/clang-format -i $(SOURCES)

dist: $(DEV)/blip2rt-installed  ## pack libblip2rt with ONNX Runtime into build/dist: see docs/c.md
	engines/c/dist.sh $(ORT_LIBRARY) build/dist

# Without any other library, and compiled by zig. Debian has the sources of the image libraries; nasm makes JPEG faster.
PORTABLE := x86_64-linux-musl aarch64-linux-musl x86_64-windows-gnu aarch64-windows-gnu
.PHONY: static windows $(PORTABLE:%=portable-%)
static: portable-x86_64-linux-musl  ## build blip2rt-c as one static program, and caption in an empty root
windows: portable-x86_64-windows-gnu  ## build blip2rt.dll, and compare it with `static` in wine
portable-aarch64-linux-musl portable-x86_64-windows-gnu: portable-x86_64-linux-musl  # whose texts theirs are compared with
$(PORTABLE:%=portable-%): portable-%: .venv-release/installed  ## build the C library for another system: see docs/c.md
	engines/c/portable.sh $*

# The engine needs emscripten (Debian's 3.1.69), the rest Node 20. Debian's emscripten looks for its acorn in the folder
# of Debian's Node; another Node does not.
web:  ## build the static page, the package and nano in pieces into build/web: see docs/web.md
	emcmake cmake -S . -B build/wasm
	cmake --build build/wasm --parallel $(shell nproc)
	mkdir -p packages/web/wasm && cp build/wasm/blip2rt.js build/wasm/blip2rt.wasm build/wasm/blip2rt-threads.* packages/web/wasm/
	node packages/web/build.js blip2rt/models/nano build/web

test-web: $(DEV)/blip2rt-installed web  ## test the package and the page in Node, Chromium and Firefox
	cd packages/web && npm ci --no-audit --no-fund && npm run types && npm run check && npm test

bench: $(DEV)/blip2rt-installed  ## measure speed and memory of nano on this machine
	$(DEV)/bin/blip2rt-bench --image docs/photo.jpg

# Builds the core and the C library with each sanitizer, runs both stress programs, every call of the C library in 64
# threads, and the tests of the core. ASan ends a process that runs out of memory or address space, so tests that limit
# these are left out by name.
LIMITING_MEMORY := memory or no_allowed_operator_ends_the_process
sanitize: $(DEV)/blip2rt-installed  ## test the core under ASan, UBSan and TSan
	rm -rf build/tiny; $(RUN) tests.tiny.bundle build/tiny
	set -e; export TSAN_OPTIONS="suppressions=tests/engines/native/tsan.supp report_mutex_bugs=0"; \
	for kind in address,undefined thread; do \
	  folder=build/sanitize-$${kind%,*}; \
	  cmake -S . -B $$folder -DPython_EXECUTABLE=$(abspath $(DEV))/bin/python -DBLIP2RT_SANITIZE=$$kind >/dev/null; \
	  cmake --build $$folder --target stress --parallel $(shell nproc); \
	  cmake -S . -B $$folder/c -DBLIP2RT_C=ON -DBLIP2RT_C_TESTS=ON -DBLIP2RT_SANITIZE=$$kind \
	    -DBLIP2RT_CORE=$(abspath .)/$$folder/libblip2rt_core.a >/dev/null; \
	  cmake --build $$folder/c --target all_calls blip2rt --parallel $(shell nproc); \
	  for runtime in $(ORT_LIBRARY) core; do \
	    $$folder/stress $$runtime build/tiny 4 100; \
	    $$folder/c/all_calls build/tiny $$runtime docs/photo.jpg 60 64; \
	  done; \
	done
	cmake --build build/sanitize-address --parallel $(shell nproc)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
	  BLIP2RT_NATIVE="$$(ls build/sanitize-address/_native*.so)" BLIP2RT_C=build/sanitize-address/c/libblip2rt.so \
	  $(RUN) pytest tests/engines --ignore tests/engines/test_memory.py --ignore tests/engines/test_kernels.py \
	  -k "not ($(LIMITING_MEMORY))" \
	  tests/runtime/bundle/test_bundle.py tests/runtime/test_pipeline.py tests/runtime/test_batching.py tests/runtime/test_fuzz.py

# An hour per target by default; FUZZ_SECONDS=60 for a quick run, -j2 for two cores. Findings go to build/fuzz.
FUZZ_SECONDS ?= 3600
FUZZED := fuzz-core fuzz-text fuzz-pool fuzz-nodes fuzz-operators fuzz-calls fuzz-manifest fuzz-image fuzz-checkpoint fuzz-bundle
.PHONY: $(FUZZED)
fuzz: $(FUZZED)  ## fuzz options and untrusted files
fuzz-operators: $(DEV)/blip2rt-installed
	$(RUN) tests.fuzz.operators --seconds $(FUZZ_SECONDS)
fuzz-nodes: $(DEV)/blip2rt-installed  # with the oldest supported ONNX Runtime and the installed one
	test -d build/onnxruntime-1.23 || \
	  $(RUN) pip install --quiet --no-deps --target build/onnxruntime-1.23 "onnxruntime==1.23.*"
	PYTHONPATH=build/onnxruntime-1.23 $(RUN) tests.fuzz.nodes --seconds $(FUZZ_SECONDS)
	$(RUN) tests.fuzz.nodes --seconds $(FUZZ_SECONDS)
fuzz-calls fuzz-image fuzz-checkpoint fuzz-bundle: fuzz-%: $(DEV)/blip2rt-installed
	$(RUN) tests.fuzz.files $* --seconds $(FUZZ_SECONDS)

FUZZER ?= $(or $(shell command -v clang++),$(shell command -v clang++-14))
FUZZED_graph_walker := tests/fuzz/graph_walker.cpp \
  $(filter engines/base/% engines/graphs/%,$(filter-out %/session.cpp %/ort_graph.cpp,$(PLAIN_CORE))) build/fuzz/kernels.o

FUZZED_tokenizer_reader := tests/fuzz/tokenizer_reader.cpp $(filter engines/base/% engines/text/%,$(PLAIN_CORE))

FUZZED_manifest_reader := tests/fuzz/manifest_reader.cpp $(filter engines/base/% engines/bundle/% engines/ort/% %/onnx_graph.cpp,$(filter-out %/bundle.cpp,$(PLAIN_CORE)))

FUZZED_pool_reader := tests/fuzz/pool_reader.cpp engines/search/guide.cpp \
  engines/english/answer_words.cpp engines/english/text_forms.cpp engines/runtime/caption_pool.cpp \
  $(filter engines/base/% engines/kernels/int8/%,$(PLAIN_CORE))

fuzz-core: ENTRY := graph_walker
fuzz-core: SEEDS := graphs
fuzz-text: ENTRY := tokenizer_reader
fuzz-text: SEEDS := tokenizer
fuzz-pool: ENTRY := pool_reader
fuzz-pool: SEEDS := pool
fuzz-manifest: ENTRY := manifest_reader
fuzz-manifest: SEEDS := manifest
fuzz-core fuzz-text fuzz-pool fuzz-manifest:  ## fuzz the core's readers of untrusted files with libFuzzer, if clang has it
	@if echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, long) { return 0; }' | \
	  $(FUZZER) -x c++ -fsanitize=fuzzer,address - -o /dev/null 2>/dev/null; then \
	  $(MAKE) build/fuzz/$(ENTRY) && mkdir -p build/fuzz/$(SEEDS) && \
	  build/fuzz/$(ENTRY) -max_total_time=$(FUZZ_SECONDS) -max_len=20000 -timeout=20 -rss_limit_mb=4096 \
	    -seed=$${BLIP2RT_TEST_SEED:-0} -verbosity=0 -artifact_prefix=build/fuzz/ build/fuzz/$(SEEDS) tests/corpus/$(SEEDS); \
	else echo "$@ is skipped, because libFuzzer is not installed: apt-get install clang-14 libclang-rt-14-dev"; fi

# A graph only names kernels: they are not sanitized, and linked last, so that functions they share with the rest are.
KERNELS := $(filter engines/kernels/%,$(PLAIN_CORE))
build/fuzz/kernels.o: $(CORE)
	mkdir -p build/fuzz
	$(FUZZER) -std=c++17 -Iengines -nostdlib -r $(KERNELS) -o $@

build/fuzz/graph_walker: $(FUZZED_graph_walker) $(CORE)
build/fuzz/tokenizer_reader: $(FUZZED_tokenizer_reader) $(CORE)
build/fuzz/pool_reader: $(FUZZED_pool_reader) $(CORE)
build/fuzz/manifest_reader: $(FUZZED_manifest_reader) $(CORE)
build/fuzz/graph_walker build/fuzz/tokenizer_reader build/fuzz/pool_reader build/fuzz/manifest_reader:
	mkdir -p build/fuzz
	$(FUZZER) -std=c++17 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -Iengines \
	  $(FUZZED_$(notdir $@)) -o $@

compilers:  ## check the core with every installed compiler and for aarch64
	@test -n "$(PLAIN_CORE)" || { echo "no sources found under engines/: fix PLAIN_CORE in the Makefile"; exit 1; }
	@test -n "$(COMPILERS)" || { echo "no compiler found: install one, such as g++"; exit 1; }
	set -e; for compiler in $(COMPILERS); do \
	  echo "$$compiler: $(words $(PLAIN_CORE)) files"; printf '%s\n' $(PLAIN_CORE) | xargs -P $(shell nproc) -n 4 $$compiler $(WARNINGS) -fsyntax-only; \
	done
	$(if $(strip $(ZIG_TARGETS)),$(MAKE) $(addprefix zig-,$(ZIG_TARGETS)))

# Tools of releases, among them zig's compiler, which has the headers of other systems.
ZIG_TARGETS ?= x86_64-windows-gnu aarch64-windows-gnu x86_64-macos aarch64-macos x86_64-linux-musl aarch64-linux-musl
TOOLS := .venv-release/bin
ZIG := $(TOOLS)/python -m ziglang c++ -fno-sanitize=undefined
.venv-release/installed: packages/requirements.txt
	$(PYTHON) -m venv .venv-release
	$(TOOLS)/python -m pip install --quiet -r packages/requirements.txt
	touch $@

zig-%: .venv-release/installed  ## check the core with zig for another system, such as aarch64-macos
	@echo "zig for $*: $(words $(PLAIN_CORE)) files"
	@mkdir -p build/zig/$*  # zig looks for an object even after -fsyntax-only
	@set -e; for source in $(PLAIN_CORE); do \
	  $(ZIG) -target $* $(WARNINGS) -O0 -c $$source -o build/zig/$*/$$(echo $$source | tr / -).o; done

$(DEMO)/installed: pyproject.toml CMakeLists.txt $(CORE) $(shell find blip2rt -name '*.py') $(NANO)
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet . ./packages/nano
	touch $@

EXTRAS := dev trt-check trt-cu13
$(DEV)/dependencies-installed: pyproject.toml tests/importable.py
	test -x $(DEV)/bin/python || $(PYTHON) -m venv $(DEV)
	$(RUN) pip install --quiet 'uv>=0.5'
	UV_FIND_LINKS="$${UV_FIND_LINKS-$$PIP_FIND_LINKS}" $(RUN) uv pip install --quiet --python $(DEV)/bin/python -r pyproject.toml $(EXTRAS:%=--extra %)
	$(DEV)/bin/python tests/importable.py
	touch $@

PYTHON_SOURCES := $(shell find blip2rt train export recipes -name '*.py' -o -name '*.yaml' -o -name '*.html' -o -name '*.css' -o -name '*.js' -o -name '*.txt')
WHEEL := $(RUN) pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheels
INSTALL := $(RUN) pip install --quiet --no-deps --no-index --force-reinstall

# As users have it: built and installed, so that the tests find what a wheel lacks.
$(DEV)/blip2rt-installed: $(DEV)/dependencies-installed $(DEV)/nano-installed CMakeLists.txt $(CORE) $(PYTHON_SOURCES)
	rm -f build/wheels/blip2rt-*.whl
	$(WHEEL) --config-settings=build-dir=build/core --config-settings=cmake.define.BLIP2RT_WERROR=ON .
	$(INSTALL) build/wheels/blip2rt-*.whl
	touch $@

$(DEV)/nano-installed: $(DEV)/dependencies-installed $(NANO)
	$(WHEEL) ./packages/nano
	$(INSTALL) build/wheels/blip2rt_nano-*.whl
	touch $@

$(COMPAT)/blip2rt-installed: pyproject.toml CMakeLists.txt $(CORE)
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python -m pip install --quiet ".[export]" pytest "transformers==5.0.*"
	$(COMPAT)/bin/python tests/importable.py
	touch $@

LOCK := uv pip compile --universal --python-version 3.10 --no-annotate --quiet --upgrade --custom-compile-command "make lock"
lock: $(DEV)/blip2rt-installed  ## update requirements/*.txt from pyproject.toml, with hashes
	$(RUN) $(LOCK) --generate-hashes pyproject.toml --output-file requirements/runtime.txt
	$(RUN) $(LOCK) --generate-hashes requirements/build.in --output-file requirements/build.txt
	$(RUN) $(LOCK) --resolution lowest-direct pyproject.toml --output-file requirements/lowest.txt

# Builds the wheel with the locked packages only, each checked against its hash.
build/locked/built: pyproject.toml CMakeLists.txt $(CORE) $(shell find blip2rt -name '*.py') $(NANO) requirements/build.txt
	rm -rf build/locked
	$(PYTHON) -m venv build/locked/venv
	build/locked/venv/bin/python -m pip install --quiet --require-hashes -r requirements/build.txt
	build/locked/venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation \
	  --config-settings=build-dir=build/locked/core --config-settings=cmake.define.BLIP2RT_WERROR=ON \
	  --wheel-dir build/locked .
	build/locked/venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/locked ./packages/nano
	touch $@

test-locked: build/locked/built  ## install from the locked requirements only and caption a photograph
	$(PYTHON) -m venv --clear .venv-locked
	.venv-locked/bin/python -m pip install --quiet --require-hashes -r requirements/runtime.txt
	.venv-locked/bin/python -m pip install --quiet --no-deps build/locked/*.whl
	.venv-locked/bin/blip2rt caption docs/photo.jpg

LOWEST := tests/runtime/test_pipeline.py tests/runtime/test_text.py tests/runtime/test_image.py \
  tests/runtime/bundle/test_bundle.py tests/engines/test_untrusted_graphs.py
test-lowest: build/locked/built  ## test the runtime on the oldest supported releases
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet -r requirements/lowest.txt pytest tokenizers==0.20.0 "onnx<1.18"
	.venv-lowest/bin/python -m pip install --quiet --no-deps build/locked/*.whl
	.venv-lowest/bin/python tests/importable.py
	CI= .venv-lowest/bin/pytest -p no:cacheprovider $(LOWEST) \
	  --deselect tests/engines/test_untrusted_graphs.py::test_no_allowed_operator_ends_the_process  # draws types of newer onnx

# No cache: the newest releases of everything.
test-newest:  ## test the runtime on the newest releases of its dependencies
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager . ./packages/nano pytest onnx tokenizers
	.venv-newest/bin/python tests/importable.py
	CI= .venv-newest/bin/pytest -p no:cacheprovider $(LOWEST)

# ONNX Runtime's other packages hold the same library, built for more devices; blip2rt uses its CPU part.
ONNXRUNTIMES := onnxruntime-gpu onnxruntime-openvino
test-onnxruntimes: build/locked/built  ## caption with onnxruntime-gpu and others in place of onnxruntime
	set -e; for package in $(ONNXRUNTIMES); do \
	  $(PYTHON) packages/test_wheels.py build/locked --python $$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') \
	    --replace $$package; done

# Emulated processors without AVX2, without AVX, and ARM without the dot product. OpenBLAS must choose its kernels itself.
OLD := unset OPENBLAS_CORETYPE; OMP_NUM_THREADS=1 BLIP2RT_NUM_THREADS=1
old-processors: $(DEMO)/installed  ## caption on emulated x86-64 processors without AVX2 and without AVX
	set -e; wanted="$$($(DEMO)/bin/blip2rt caption docs/photo.jpg)"; for cpu in SandyBridge Nehalem; do \
	  said="$$($(OLD) qemu-x86_64 -cpu $$cpu $(DEMO)/bin/python -m blip2rt caption docs/photo.jpg)"; echo "$$cpu: $$said"; \
	  test "$$said" = "$$wanted"; \
	done

# A Debian of ARM, without its scripts run, holds Python; the packages come from the index, and ours is built by zig.
ARM := build/arm64
old-arm-processors: .venv-release/installed  ## caption on an emulated Cortex-A53, which has no dot product
	mkdir -p $(ARM)/dist
	test -e $(ARM)/root/lib || { mmdebstrap --architectures=arm64 --variant=extract --include=python3.13,libstdc++6 trixie \
	  $(ARM)/root && ln -s usr/lib $(ARM)/root/lib; }
	PATH="$(abspath $(TOOLS)):$$PATH" $(TOOLS)/python packages/build_wheels.py --arch aarch64 --python 3.12 --out $(ARM)/dist
	rm -rf $(ARM)/site
	$(TOOLS)/python -m pip install --quiet --target $(ARM)/site --only-binary :all: --ignore-requires-python --python-version 3.13 \
	  $(addprefix --platform ,manylinux_2_28_aarch64 manylinux_2_27_aarch64 manylinux2014_aarch64 manylinux_2_17_aarch64) \
	  $(ARM)/dist/blip2rt-*.whl
	set -e; wanted="a cup of coffee sitting on a table"; for cpu in cortex-a53 max; do \
	  said="$$($(OLD) PYTHONPATH=$(ARM)/site qemu-aarch64 -L $(ARM)/root -cpu $$cpu \
	    $(ARM)/root/usr/bin/python3.13 -m blip2rt caption docs/photo.jpg --model blip2rt/models/nano)"; echo "$$cpu: $$said"; \
	  test "$$said" = "$$wanted"; \
	done

# dist/ receives what is published; build/release/ what accompanies it.
wheels: .venv-release/installed  ## build the wheels that this machine can: x86-64, aarch64 and blip2rt-nano
	PATH="$(abspath $(TOOLS)):$$PATH" $(TOOLS)/python packages/build_wheels.py --out dist --nano

test-wheels:  ## install the wheels of dist/ in new environments, and caption without compiler, network and home
	$(PYTHON) packages/test_wheels.py dist

sdist: .venv-release/installed  ## build the source distribution
	$(TOOLS)/python -m build --quiet --sdist --outdir dist .

test-sdist: .venv-release/installed  ## build a wheel from the source distribution, without an index
	rm -rf build/sdist && mkdir -p build/sdist
	$(PYTHON) -m venv build/sdist/venv
	build/sdist/venv/bin/python -m pip install --quiet --require-hashes -r requirements/build.txt
	build/sdist/venv/bin/python -m pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir build/sdist dist/blip2rt-*.tar.gz

check-dist: .venv-release/installed  ## check the files in dist/ as an index and other tools see them
	$(TOOLS)/twine check --strict dist/*
	$(TOOLS)/check-wheel-contents dist/*.whl
	$(TOOLS)/abi3audit --strict dist/blip2rt-*abi3*.whl

release-files: check-dist sbom  ## write release notes, checksums and the bill of materials into build/release
	mkdir -p build/release
	$(PYTHON) packages/release_notes.py > build/release/notes.md
	cp build/sbom.json build/release/
	cd dist && sha256sum -- * > ../build/release/SHA256SUMS

release: workflows  ## everything of a release that can be done on this machine
	rm -rf dist build/release
	$(MAKE) sdist test-sdist wheels test-wheels release-files

workflows: .venv-release/installed  ## check .github/workflows with actionlint
	$(TOOLS)/actionlint

sbom: .venv-release/installed  ## write a CycloneDX bill of materials of the runtime
	mkdir -p build
	$(TOOLS)/cyclonedx-py requirements requirements/runtime.txt --pyproject pyproject.toml --output-file build/sbom.json

clean:
	rm -rf build dist .venv .venv-release .venv-dev .venv-compat .venv-parity-* .venv-locked .venv-lowest .venv-newest
