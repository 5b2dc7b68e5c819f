#!/usr/bin/env bash
# Bloom: demonstrations -> preferences -> a policy that a reward model teaches -> Hugging Face.
#
#   bash examples/bloom-rlhf.sh               # SIZE=tiny: some minutes on two CPU processes
#   SIZE=7b bash examples/bloom-rlhf.sh       # 8 GPUs of 80 GB
#
# 7b wants the model, and rows in DATA/sft, DATA/pairs and DATA/prompts (README, Data):
#   hf download bigscience/bloom-7b1 --local-dir models/bloom-7b
# ASKED is the file of prompts that the result is asked; default: DATA/prompts/validation.jsonl.
# OUT is where runs and models go; KNOBS are for every training command ("train.steps=20").
# Started again, it goes on where it stopped.
set -euo pipefail

case "${SIZE:=tiny}" in
  tiny)
    export CUDA_VISIBLE_DEVICES=
    out="${OUT:-runs/tiny-bloom-rlhf}"
    preset=tiny-bloom model="$out/inputs/model" data="$out/inputs"
    # vLLM on a CPU wants heads of 32 or more; the preset's are 8 wide.
    heads=(model.num_attention_heads=4 model.num_query_groups=4)
    python "$(dirname "$0")/tiny_inputs.py" "$out/inputs" --preset "$preset" --heads 4
    asked="$out/inputs/prompts/validation.jsonl" asking=(max_new_tokens=40)
    ;;
  7b)
    out="${OUT:-runs/bloom-7b-rlhf}"
    preset=bloom-7b model="${MODEL:-models/bloom-7b}" data="${DATA:-data}"
    heads=()
    asked="${ASKED:-$data/prompts/validation.jsonl}" asking=()
    ;;
  *)
    echo "error: SIZE is tiny or 7b, not $SIZE" >&2
    exit 2
    ;;
esac
read -ra knobs <<< "${KNOBS:-}"
settings=(--preset "$preset" "${heads[@]}" "${knobs[@]}")

[ -e "$out/mg" ] || alignctl convert-hf2mg --load "$model" --save "$out/mg"
alignctl sft --load "$out/mg" --data "$data/sft" --output "$out/sft" "${settings[@]}"
alignctl reward --load "$out/sft" --data "$data/pairs" --output "$out/reward" "${settings[@]}"
alignctl rlhf --load "$out/sft" --reward-load "$out/reward" --data "$data/prompts" \
  --output "$out/rlhf" "${settings[@]}"
[ -e "$out/hf" ] || alignctl convert-mg2hf --load "$out/rlhf" --save "$out/hf"
alignctl generate --load "$out/hf" --data "$asked" --output "$out/answers.jsonl" "${asking[@]}"
[ -e "$out/wins/result.json" ] || alignctl eval preference "$out/rlhf" --baseline "$out/sft" \
  --reward-load "$out/reward" --data "$asked" --output "$out/wins" "${asking[@]}"
alignctl report "$out/sft" "$out/reward" "$out/rlhf" --output "$out/report.html"
