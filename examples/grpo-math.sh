#!/usr/bin/env bash
# Llama 2: demonstrations -> a policy whose sums a rule checks (GRPO) -> Hugging Face.
#
#   bash examples/grpo-math.sh                # SIZE=tiny: a minute or two on two CPU processes
#   SIZE=7b bash examples/grpo-math.sh        # 8 GPUs of 80 GB
#
# 7b wants the model, rows in DATA/sft, and problems in DATA/math, such as GSM8K's files:
#   hf download meta-llama/Llama-2-7b-hf --local-dir models/llama2-7b
# REWARD is a reward model that scores beside the rule, as the tutorial's does; none by default.
# ASKED is the file of prompts that the result is asked; default: DATA/math/validation.jsonl.
# OUT is where runs and models go; KNOBS are for every training command ("train.steps=20").
# Started again, it goes on where it stopped.
set -euo pipefail

case "${SIZE:=tiny}" in
  tiny)
    export CUDA_VISIBLE_DEVICES=
    out="${OUT:-runs/tiny-grpo-math}"
    preset=tiny-llama model="$out/inputs/model" data="$out/inputs" problems="$out/inputs/prompts"
    python "$(dirname "$0")/tiny_inputs.py" "$out/inputs" --preset "$preset"
    asked="$out/inputs/prompts/validation.jsonl" asking=(max_new_tokens=40)
    ;;
  7b)
    out="${OUT:-runs/llama2-7b-grpo-math}"
    preset=llama2-7b model="${MODEL:-models/llama2-7b}" data="${DATA:-data}" problems="$data/math"
    asked="${ASKED:-$problems/validation.jsonl}" asking=()
    ;;
  *)
    echo "error: SIZE is tiny or 7b, not $SIZE" >&2
    exit 2
    ;;
esac
read -ra knobs <<< "${KNOBS:-}"
settings=(--preset "$preset" "${knobs[@]}")
reward=()
[ -z "${REWARD:-}" ] || reward=(--reward-load "$REWARD" score.source=merge)

[ -e "$out/mg" ] || alignctl convert-hf2mg --load "$model" --save "$out/mg" --preset "$preset"
alignctl sft --load "$out/mg" --data "$data/sft" --output "$out/sft" "${settings[@]}"
alignctl grpo --load "$out/sft" --data "$problems" --output "$out/grpo" "${settings[@]}" \
  "${reward[@]}"
[ -e "$out/hf" ] || alignctl convert-mg2hf --load "$out/grpo" --save "$out/hf"
alignctl generate --load "$out/hf" --data "$asked" --output "$out/answers.jsonl" "${asking[@]}"
[ -e "$out/math/result.json" ] || alignctl eval math "$out/sft" "$out/grpo" --data "$asked" \
  --output "$out/math" "${asking[@]}"
alignctl report "$out/sft" "$out/grpo" --output "$out/report.html"
