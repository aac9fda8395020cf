#!/usr/bin/env bash
# A working day with the installed package: photographs to a trained, extended, evaluated, compared and exported model.
# Usage: working_day.sh PYTHON FOLDER; FOLDER is created.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$1
vit_jax=$(dirname "$python")/vit-jax
mkdir "$2"
cd "$2"

step() { printf '\n$ %s\n' "$*"; "$@"; }
train() {
  "$vit_jax" train --model=vit --data=folder:photos --data.image-size=32 --augment.flip --batch-size=32 \
    --no-report --model-args depth=2 "$@"
}

step "$python" "$here/photographs.py" photos
step train --epochs=4 --workdir=runs/day | tee train.txt
grep -q 'done: .*accuracy' train.txt
step train --epochs=4 --workdir=runs/day | tee resumed.txt
grep -q 'continues after step' resumed.txt
step train --epochs=8 --workdir=runs/day --extend=stretch | tee extended.txt
grep -q '^extended' extended.txt
step train --epochs=8 --workdir=runs/other-seed --seed=1
step "$vit_jax" evaluate --workdir=runs/day --out=evaluation
step "$vit_jax" report --workdir=runs/day
step "$vit_jax" compare runs/day runs/other-seed --out=compare.html
step "$vit_jax" predict --workdir=runs/day photos --out=predictions.csv
step "$vit_jax" export --workdir=runs/day --out=exported --formats safetensors stablehlo onnx
step "$python" "$here/check_exports.py" predictions.csv exported
test -s runs/day/report.html -a -s compare.html -a -s evaluation/metrics.json
