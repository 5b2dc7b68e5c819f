#!/usr/bin/env bash
# From raw text to a pretrained Bloom: clean, shard, tokenise, pretrain, convert, continue a text.
#
#   examples/pretrain_bloom.sh [FOLDER]        (default: pretraining; it must not exist)
#
# A tiny model on two CPU processes, text that a seeded script makes, no download; a minute or two.
# Of your own, only the first two steps are others: put text into FOLDER/raw and a model into
# FOLDER/hf, and choose the preset of that model.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-pretraining}
preset=tiny-bloom
export PATH="$here/../.venv/bin:$PATH" CUDA_VISIBLE_DEVICES=

if [ -e "$folder" ]; then
  echo "error: $folder exists already; give another folder" >&2
  exit 2
fi
mkdir -p "$folder"
cd "$folder"

say() { printf '\n$ %s\n' "$*" >&2; "$@"; }

say python "$here/raw_text.py" text raw
say python "$here/raw_text.py" model hf

say alignctl prepare clean raw --output clean
say alignctl prepare shard clean --output shards --shuffle
say alignctl prepare tokenize shards --tokenizer hf --output data/stories --append-eod
say alignctl prepare inspect data/stories --tokenizer hf --samples 1

say alignctl convert-hf2mg --preset "$preset" --load hf --save mg --verify fast
say alignctl pretrain --preset "$preset" --load mg --data data/stories --output run \
  train.log_interval=10 data.cross_document_attention=false
say alignctl convert-mg2hf --load run --save hf-pretrained

say python "$here/raw_text.py" continue hf
say python "$here/raw_text.py" continue hf-pretrained
say python "$here/raw_text.py" perplexity run
