# Recipes for the active environment; .ci/run runs the same checks in a fresh one.

# lint, types and tests
check: lint types test

# style and formatting
lint:
    ruff check .
    ruff format --check .

# static types
types:
    mypy

# unit and numerics tests of what is fast, on two processes: under 2 minutes
quick:
    OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile -m "not slow and not distributed" tests/unit tests/numerics

# the whole suite on two processes
test:
    OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile

# the whole chain on embedded tasks, into caskd-demo/
demo:
    caskd demo

# every benchmark; results go to benchmarks/results/
bench:
    for file in benchmarks/bench_*.py; do python "$file"; done

# every step of the GPU suite at toy sizes, on any machine
gpu-toy out="gpu-toy":
    python benchmarks/gpu_suite.py --toy --out {{out}}

# everything that needs a GPU, in about eight minutes
gpu out="gpu-results":
    python benchmarks/gpu_suite.py --out {{out}}

# docs/architecture.svg, from the imports; docs/pictures/
picture:
    python docs/draw_architecture.py
    python docs/draw_pictures.py

# the documentation site, into site/; warnings are errors
docs:
    python docs/site/build.py --out site

# sdist, and a wheel built from it
package:
    python -m build

# docs/models.md: what capture, training, export and prediction do with every class of transformers
models:
    OMP_NUM_THREADS=1 python tests/architectures/table.py

# every class of transformers, the fault tests at their large counts, 200 prompts a token rule, into benchmarks/results/faults.csv
nightly:
    CASKD_ARCHITECTURES=all OMP_NUM_THREADS=1 nice -n 10 pytest tests/architectures
    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/bench_faults.py
    CASKD_SAVE_KILLS=200 nice -n 10 pytest --timeout 14400 tests/integration/test_train_kills.py
    CASKD_RANKS=1,2,4 CASKD_CASES="0:float32 1:float32 2:float32 3:float32 0:bfloat16 2:bfloat16 3:bfloat16" nice -n 10 pytest --timeout 14400 tests/distributed/test_resize.py
    CASKD_SCHEDULES=1000 CASKD_KILLS=200 nice -n 10 pytest --timeout 14400 tests/integration/test_s3_faults.py
    CASKD_CAPTURE_KILLS=100 nice -n 10 pytest --timeout 3600 tests/integration/test_capture_kills.py
    CASKD_BROWSER=${CASKD_BROWSER:-chromium} nice -n 10 pytest -m browser -rs tests/integration/test_report_browser.py
    nice -n 10 pytest --timeout 1800 -m nightly -rs tests/integration # in an environment with caskd[vllm]
    CASKD_PROMPTS=200 nice -n 10 pytest tests/unit/models/test_token_cascade_decoding.py
