#!/usr/bin/env bash
# Llama 2: demonstrations -> a policy that learns preferences by DPO -> Hugging Face.
#
#   bash examples/llama2-dpo.sh               # SIZE=tiny: a minute or two on two CPU processes
#   SIZE=7b bash examples/llama2-dpo.sh       # 8 GPUs of 80 GB
#
# 7b wants the model, and rows in DATA/sft, DATA/pairs and DATA/prompts (README, Data):
#   hf download meta-llama/Llama-2-7b-hf --local-dir models/llama2-7b
# ASKED is the file of prompts that the result is asked; default: DATA/prompts/validation.jsonl.
# OUT is where runs and models go; KNOBS are for every training command ("train.steps=20").
# Started again, it goes on where it stopped.
set -euo pipefail

case "${SIZE:=tiny}" in
  tiny)
    export CUDA_VISIBLE_DEVICES=
    out="${OUT:-runs/tiny-llama2-dpo}"
    preset=tiny-llama model="$out/inputs/model" data="$out/inputs"
    python "$(dirname "$0")/tiny_inputs.py" "$out/inputs" --preset "$preset"
    asked="$out/inputs/prompts/validation.jsonl" asking=(max_new_tokens=40)
    ;;
  7b)
    out="${OUT:-runs/llama2-7b-dpo}"
    preset=llama2-7b model="${MODEL:-models/llama2-7b}" data="${DATA:-data}"
    asked="${ASKED:-$data/prompts/validation.jsonl}" asking=()
    ;;
  *)
    echo "error: SIZE is tiny or 7b, not $SIZE" >&2
    exit 2
    ;;
esac
read -ra knobs <<< "${KNOBS:-}"
settings=(--preset "$preset" "${knobs[@]}")

[ -e "$out/mg" ] || alignctl convert-hf2mg --load "$model" --save "$out/mg" --preset "$preset"
alignctl sft --load "$out/mg" --data "$data/sft" --output "$out/sft" "${settings[@]}"
alignctl dpo --load "$out/sft" --data "$data/pairs" --output "$out/dpo" "${settings[@]}"
[ -e "$out/hf" ] || alignctl convert-mg2hf --load "$out/dpo" --save "$out/hf"
alignctl generate --load "$out/hf" --data "$asked" --output "$out/answers.jsonl" "${asking[@]}"
alignctl report "$out/sft" "$out/dpo" --output "$out/report.html"
