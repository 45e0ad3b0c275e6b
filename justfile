# The recipes are what .ci/run runs, on the environment that is active.

# lint, types and tests
check: lint types test

# style and formatting
lint:
    ruff check .
    ruff format --check .

# static types
types:
    mypy

# the whole suite on two processes
test:
    OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile

# the whole story on embedded tasks, into caskd-demo/
demo:
    caskd demo

# every benchmark; results go to benchmarks/results/
bench:
    for file in benchmarks/bench_*.py; do python "$file"; done

# sdist, and a wheel built from it
package:
    python -m build

# the large counts of the fault tests, into benchmarks/results/faults.csv
nightly:
    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/bench_faults.py
    CASKD_SAVE_KILLS=200 nice -n 10 pytest --timeout 14400 tests/integration/test_train_kills.py
    CASKD_RANKS=1,2,4 CASKD_CASES="0:float32 1:float32 2:float32 3:float32 0:bfloat16 2:bfloat16 3:bfloat16" nice -n 10 pytest --timeout 14400 tests/distributed/test_resize.py
    CASKD_SCHEDULES=1000 CASKD_KILLS=200 nice -n 10 pytest --timeout 14400 tests/integration/test_s3_faults.py
    CASKD_CAPTURE_KILLS=100 nice -n 10 pytest --timeout 3600 tests/integration/test_capture_kills.py
