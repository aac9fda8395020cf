#!/usr/bin/env bash
# Speed on a GPU of vit-jax, timm (compiled) and big_vision, in turns: `bash benchmarks/gpu.sh [RESULT.json]`.
# Installs into .gpu/ what it needs, then measures for at most ten minutes. BIG_VISION=CHECKOUT names an existing clone.
set -euo pipefail
cd "$(dirname "$0")/.."
result=${1:-benchmarks/results/gpu.json}
folder=$PWD/.gpu
mkdir -p "$folder"

# Two environments: torch and JAX ask for different versions of CUDA's libraries.
install() {
  local name=$1
  shift
  [[ -x $folder/$name/bin/python ]] || python3 -m venv "$folder/$name"
  "$folder/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
install jax '.[train,cuda13]' &
install torch torch torchvision timm
wait $!

checkout=${BIG_VISION:-$folder/big_vision}
[[ -d $checkout ]] || git clone --quiet --depth 1 https://github.com/google-research/big_vision "$checkout"

exec timeout 600 "$folder/jax/bin/python" benchmarks/gpu.py \
  --torch-python "$folder/torch/bin/python" --big-vision "$checkout" --json "$result"
