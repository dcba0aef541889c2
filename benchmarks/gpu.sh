#!/usr/bin/env bash
# Everything that needs a GPU, in one go: build, tests, sanitizers, benchmark suite. Reaches no network.
#
#   benchmarks/gpu.sh --out DIR [--slice NAME] [--quick] [--dry-run]
#
# --slice    build | tests | ops | sanitize | encode | triton | kmeans | forward; without it all, one after the other. A
#            slice ends within 8 minutes; each first builds what is not built yet (in build/gpu, or SAERL_GPU_PLACE).
# --quick    smaller shapes and fewer rounds
# --dry-run  on a machine without a GPU: nothing is compiled, tests are collected only, shapes are tiny
#
# DIR gets at most 8 files; the last, summary.txt, has one line a step, and ends the output too. Ends with 1 where a step
# failed. A tool that is not there or refuses the device is a line in the summary, not a failure.
# PYTHON (python3) needs torch, transformers, scikit-learn, pytest, hypothesis, setuptools, pybind11 and pip.
set -uo pipefail

usage() { sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2; }

out="" slice=all size="" dry=""
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out="${2:-}"; shift ;;
    --slice) slice="${2:-}"; shift ;;
    --quick) size=--quick ;;
    --dry-run) dry=1 size=--tiny ;;
    *) usage ;;
  esac
  shift
done
[ -n "$out" ] || usage
case "$slice" in all | build | tests | ops | sanitize | encode | triton | kmeans | forward) ;; *) usage ;; esac

mkdir -p "$out" && out="$(cd "$out" && pwd)"
root="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-python3}"
place="${SAERL_GPU_PLACE:-$root/build/gpu${dry:+-dry}}"
summary="$out/summary.txt"
failed=0
LONGEST="${SAERL_GPU_LONGEST:-475}"

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
# tests/conftest.py takes a machine without /dev/nvidia* for one without a GPU, and a container may hide them
[ -n "$dry" ] || export TRITON_INTERPRET=0
# what one slice has compiled is there for the next, and outlives a build: it is kept by what it was compiled from
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$place.triton}"
export PYTHONPATH="$place/site${PYTHONPATH:+:$PYTHONPATH}"

note() { printf '%s\n' "$*" >>"$summary"; }

# step NAME SECONDS LOG COMMAND...: one line in the summary, the output in LOG
step() {
  local name="$1" seconds="$2" log="$out/$3" began=$SECONDS code
  shift 3
  # what a build has taken of a slice's time is gone
  if [ "$slice" != all ] && [ "$seconds" -gt $((LONGEST - SECONDS)) ]; then seconds=$((LONGEST - SECONDS)); fi
  printf '\n== %s: %s\n' "$name" "$*" >>"$log"
  timeout --kill-after=10 "$seconds" "$@" >>"$log" 2>&1
  code=$?
  case $code in
    0) note "$name: ok, $((SECONDS - began)) s" ;;
    124 | 137) note "$name: FAILED, not done after $seconds s; $(basename "$log")" ;;
    *) note "$name: FAILED with $code after $((SECONDS - began)) s; $(basename "$log"): $(tail -n 1 "$log" | cut -c1-200)" ;;
  esac
  [ $code -eq 0 ] || failed=1
  return $code
}

sources() { (cd "$root" && find csrc saerl_fast setup.py pyproject.toml tests -type f -not -name '*.pyc' -not -name '*.so' |
  LC_ALL=C sort | xargs sha256sum | sha256sum); }

# what is compiled there stays, for the next build; the clone is left as it is. setuptools before 77 refuses a
# pyproject.toml that names its licence as this one does
copy_sources() {
  mkdir -p "$place.sources"
  rm -rf "$place.sources/csrc" "$place.sources/saerl_fast"
  (cd "$root" && cp -rp csrc saerl_fast setup.py pyproject.toml README.md "$place.sources")
  sed -i '/^license/d' "$place.sources/pyproject.toml"
}

# the package into a folder of its own, and the tests beside it: inside the clone they would import the clone's package
build() {
  local stamp
  stamp="$(sources)"
  if [ "$(cat "$place/stamp" 2>/dev/null)" = "$stamp" ]; then
    note "build: there already"
    return 0
  fi
  rm -rf "$place" && mkdir -p "$place/run"
  SAERL_BUILD="${dry:+none}" && export SAERL_BUILD="${SAERL_BUILD:-cuda}"
  copy_sources
  (cd "$place.sources" && step build 450 build.log "$python" -m pip install --no-index --no-build-isolation --no-deps \
    --no-compile --quiet --target "$place/site" .) || { failed=1; return 1; }
  cp -r "$root/tests" "$root/pyproject.toml" "$place/run/"
  printf '%s\n' "$stamp" >"$place/stamp"
}

gpu_tests() { (cd "$place/run" && grep -rlE 'mark\.gpu' tests --include='test_*.py' | LC_ALL=C sort); }

# tests NAME [-v]: those of the operations (-v: all others), apart, as each compiles kernels until the cache is warm
tests() {
  local files
  mapfile -t files < <(gpu_tests | grep ${2:-} '^tests/ops/')
  cd "$place/run" || return 1
  step "$1" 470 tests.log "$python" -m pytest -m gpu -rs --durations=10 ${dry:+--collect-only} "${files[@]}"
  cd "$root" || return 1
}

sanitize() {
  local tool sanitizer
  sanitizer="$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)"
  cd "$place/run" || return 1
  for tool in memcheck racecheck initcheck synccheck; do
    if [ -z "$sanitizer" ]; then
      note "$tool: not run, compute-sanitizer is not installed"
      continue
    fi
    check_with "$sanitizer" "$tool"
  done
  cd "$root" || return 1
}

# check_with SANITIZER TOOL: every operation on its plain sample; torch's own cache of memory would hide bad accesses
check_with() {
  local log="$out/tests.log" part="$place/$2.log" clean='ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' code
  local seconds=85
  if [ "$slice" != all ] && [ $seconds -gt $((LONGEST - SECONDS)) ]; then seconds=$((LONGEST - SECONDS)); fi
  if [ $seconds -lt 10 ]; then
    note "$2: FAILED, no time was left for it; run the slice again, what was built stays"
    failed=1
    return
  fi
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout --kill-after=10 $seconds "$1" --tool "$2" --error-exitcode 86 \
    "$python" -m pytest -m gpu tests/ops/test_op_table_gpu.py -k 'test_bits and plain and contiguous' >"$part" 2>&1
  code=$?
  { printf '\n== %s\n' "$2"; cut -c1-400 "$part" | tail -n 400; } >>"$log"
  if grep -qiE 'device not supported|unable to (attach|find)|not supported on this' "$part"; then
    note "$2: not run, it refuses the device: $(grep -iE -m 1 'not supported|unable to' "$part" | cut -c1-160)"
  elif [ $code -eq 0 ] && grep -qE "$clean" "$part" && ! grep -E 'SUMMARY: [0-9]' "$part" | grep -qvE "$clean"; then
    note "$2: ok, $(grep -cE "$clean" "$part") summaries without an error; $(tail -n 5 "$part" | grep -E 'passed' | cut -c1-120)"
  else
    note "$2: FAILED with $code; tests.log: $(grep -E 'SUMMARY: [0-9]|failed|Error' "$part" | grep -vE -m 1 "$clean" | cut -c1-160)"
    failed=1
  fi
}

# suite NAME ROWS: the rows of a slice; their lines go to the summary too
suite() {
  cd "$place/run" || return 1
  step "$1" 470 bench.log "$python" -m saerl_fast.cli bench --suite gpu $size --only "$2" --json "$out/$1.json"
  awk -v head="== $1: " 'index($0, head) == 1 { on = 1; next } /^== / { on = 0 } on && /^[a-z_0-9]+ [a-z_]+=/ { print "  " $0 }' \
    "$out/bench.log" | cut -c1-300 >>"$summary"
  cd "$root" || return 1
}

started() {
  if SAERL_COMMIT="$(git rev-parse HEAD 2>/dev/null)"; then
    [ -z "$(git status --porcelain -- saerl_fast csrc setup.py)" ] || SAERL_COMMIT="$SAERL_COMMIT + changes"
    export SAERL_COMMIT
  fi
  note "== slice $slice${size:+ $size}, $(date -u +%Y-%m-%dT%H:%M:%SZ), ${SAERL_COMMIT:-no clone}"
  note "$("$python" -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device")' 2>&1 | tail -n 1)"
}

cd "$root" || exit 1
started
if build; then
  case "$slice" in tests | all) tests tests -v ;; esac
  case "$slice" in ops | all) tests ops ;; esac
  case "$slice" in sanitize | all) sanitize ;; esac
  case "$slice" in encode | all) suite encode encode_over_gemm,encode,encode_published,select,threshold_encode ;; esac
  case "$slice" in triton | all) suite triton encode_triton_over_gemm,encode_triton,threshold_encode_triton ;; esac
  case "$slice" in kmeans | all) suite kmeans kmeans_iter,kmeans_iter_dense ;; esac
  case "$slice" in forward | all) suite forward capture,capture_packed,mfu,featurize,featurize_over_forward,capture_compiled ;; esac
fi
cat "$summary"
exit $failed
