# Every target makes .venv on first use, and again when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

# More threads than free cores make small models slower, not faster.
test slow fuzz mutate lint typecheck: export OMP_NUM_THREADS = 1

fuzz: NUMBER ?= 2000
mutate: NUMBER ?= 300
SEED ?= 0

.PHONY: demo docs test slow fuzz mutate bench bench-decode bench-samplers bench-train figures real vla-mt10 vla-tables lint typecheck clean

demo: $(READY)
	$(BIN)/mmdiff demo vqa

# The pages as a site, site/index.html, which is opened from disk or served; neither needs a network.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Two processes; a file of tests stays with one of them, unless the other has nothing left to do.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu"

# Mutations of everything that the product reads, as in `make fuzz NUMBER=500 SEED=3`.
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --number $(NUMBER) --seed $(SEED)

# Hours: single changes of the code, and whether the tests notice: make mutate NUMBER=300
mutate: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[mutate]'
	$(BIN)/python -m tests.fuzz.mutants --number $(NUMBER) --seed $(SEED)

# Decoding against the published procedures: time ratios, agreement, a table and a picture of them under runs/.
bench-decode: $(READY)
	mkdir -p runs
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/decoding.py --json runs/decoding.json --png runs/decoding.png

# Tokens per forward against accuracy on three small tasks: some ten minutes of one core; finished runs are taken as they are.
bench-samplers: $(READY)
	mkdir -p runs
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/learning/which_sampler.py --json runs/which-sampler.json --png docs/which-sampler.png

# A training step against the plain way: ratios of time and memory, under runs/.
bench-train: $(READY)
	mkdir -p runs
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training.py --json runs/training.json

# Whether models still learn: all demonstrations, about an hour; fails where a figure misses its threshold.
figures: $(READY)
	mkdir -p runs
	$(BIN)/python benchmarks/figures.py --json runs/figures.json

# Trained weights, of folders in $MMDIFF_REAL_WEIGHTS (or runs/real): some half an hour of one core; skipped where there are none.
real: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/real.py --json runs/real.json

bench: $(READY)
	set -e; for file in benchmarks/*.py benchmarks/*/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

vla-mt10: $(READY)
	$(BIN)/mmdiff demo vla-mt10

vla-tables: $(READY)
	$(BIN)/mmdiff demo vla-tables

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) typecheck

# The built package, because type checkers do not know that encoders/ is mmdiff.encoders.
typecheck: $(READY)
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/typecheck .
	$(BIN)/mypy

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[vision,audio,protein,vla,metaworld,text,structured,harness,serve,docs,dev]'
	touch $@
