#!/bin/sh
# Judge a quantized model in CI, whatever runs it:
#
#   sh recipes/ci/gate.sh model.onnx model-int8.onnx test.npz --max-drop 1 --confidence 95 --no-float-layers
#
# What follows the images are gates: pdq-export validate --help has them all. Written are gates.xml (JUnit), gates.md
# (Markdown) and gates.json (everything). The exit code is 0 where all gates hold, 1 where one fails, and another where
# the model could not be judged.
set -u
if [ "$#" -lt 4 ]; then
    echo "usage: gate.sh FP32.onnx QUANT.onnx IMAGES GATE..." >&2
    exit 2
fi
model=$1 quantized=$2 images=$3
shift 3

rm -f gates.xml gates.md gates.json # of an earlier run: nobody shall read its verdict as this one's
pdq-export validate "$model" "$quantized" --data "$images" "$@" \
    --junit gates.xml --markdown gates.md --report gates.json --overwrite
status=$?

case $status in
0 | 1)
    # GitHub shows this below the job; GitLab and Jenkins read gates.xml, which their configuration names.
    if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then cat gates.md >>"$GITHUB_STEP_SUMMARY"; fi
    ;;
*) echo "gate.sh: $quantized could not be judged" >&2 ;;
esac
exit "$status"
