#!/bin/sh
# The study of README.md: ResNet-20 on CIFAR-10 from sensitivities to a report.
#
#   examples/mixed_precision/run.sh resnet20.pt2 cifar10/train.npz test_a.npz study [LOG]
#
# Float model, labelled train images, labelled test images, folder for everything that is made, and
# a tuning log for this CPU. What is there is not made again, so the same command goes on.
set -eu
model=$1 train=$2 test=$3 out=$4 log=${5:-$4/tuned.jsonl}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TVM_NUM_THREADS="${TVM_NUM_THREADS:-1}"
mkdir -p "$out"

once() { # FILE COMMAND...: run a command that writes FILE, unless it is there
    file=$1
    shift
    [ -e "$file" ] || { echo "+ $*" >&2; "$@"; }
}

# 1. What each layer costs in accuracy, and in time on this CPU.
once "$out/sensitivity.json" tvm-q4 sensitivity "$model" --data "$train" --activations \
    --images 256 -o "$out/sensitivity.json"
for config in uniform8 uniform4; do
    once "$out/ptq_$config.pt2" tvm-q4 quantize "$model" --config $config --calibrate "$train" \
        -o "$out/ptq_$config.pt2"
    tvm-q4 tune "$out/ptq_$config.pt2" --batch 1 --threads 1 --minutes 3 --log "$log"
done
once "$out/latency.json" tvm-q4 latency "$model" --batch 1 --log "$log" -o "$out/latency.json"

# 2. Bits of every layer for seven budgets of BOPs; the first is uniform4, the last uniform8.
once "$out/plans" tvm-q4 plan --table "$out/sensitivity.json" "$out/latency.json" --sweep bops \
    --points 7 -o "$out/plans"

# 3. Each of them trained quantization-aware, and W4A8 besides.
for config in uniform8 w4a8 uniform4 "$out"/plans/bops_[1-5].json; do
    name=$(basename "$config" .json)
    once "$out/qat_$name.pt2" tvm-q4 quantize "$model" --config "$config" --calibrate "$train" \
        --train "$train" --epochs 1 --distill 0.9 --workdir "$out/work_$name" \
        -o "$out/qat_$name.pt2"
done

# 4. Compiled, verified, timed in turn and evaluated: after training, and quantization-aware.
compare() { # DIR CONFIG...
    report=$1
    shift
    tvm-q4 compare "$model" "$@" --calibrate "$train" --data "$test" --log "$log" \
        --table "$out/sensitivity.json" --table "$out/latency.json" --batch 1 --threads 1 \
        -o "$report"
}
set -- --config float --config uniform8 --config w4a8 --config uniform4
for config in "$out"/plans/bops_[1-5].json; do set -- "$@" --config "$config"; done
compare "$out/ptq" "$@"
set -- --config float
for file in "$out"/qat_*.pt2; do
    name=$(basename "$file" .pt2)
    set -- "$@" --config "${name#qat_}=$file"
done
compare "$out/qat" "$@"
