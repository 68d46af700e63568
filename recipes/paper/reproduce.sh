#!/usr/bin/env bash
# Evaluate the published checkpoints as the paper does, and fill the table of docs/evaluation.md (or PAGE).
#
#   recipes/paper/reproduce.sh MODELS DATA [OUT] [PAGE]
#
#   MODELS  checkpoints in folders named as on the hub: blip2-opt-2.7b, blip2-opt-2.7b-coco, ...
#   DATA    annotations under their published names, and images in val2014, nocaps, gqa and flickr30k-images
#   OUT     totals and predictions (default: reproduced); the next run resumes from them
#
# Nothing is downloaded. What is missing is named in one line, and its rows stay empty.
set -euo pipefail
(($# >= 2)) || { echo "reproduce.sh: error: the folders are missing: reproduce.sh MODELS DATA [OUT] [PAGE]" >&2; exit 2; }
models=$1 data=$2 out=${3:-reproduced} page=${4:-$(dirname "$0")/../../docs/evaluation.md} missing=()
export HF_HUB_OFFLINE=1
mkdir -p "$out"

need() { # FILE...: remember which files are missing
  local file absent=0
  for file; do
    [[ -e $file ]] || { missing+=("$file"); absent=1; }
  done
  return $absent
}

row() { # BENCHMARK MODEL MEASURES TASK LIST IMAGES [OPTION...]: evaluate, then write the measures into the table
  local benchmark=$1 model=$2 totals="$out/$1-$2.json" ours word files=("$models/$2" "$data/$5" "$data/$6")
  for word in "${@:7}"; do
    [[ $word != "$data"/* ]] || files+=("$word")
  done
  need "${files[@]}" || return 0
  [[ -e $totals ]] || blip2rt-train evaluate "$4" --model "$models/$model" --data "$data/$5" --images "$data/$6" \
    --json "$totals" "${@:7}" || exit
  ours=$(python3 - "$totals" "$3" <<'PY'
import functools, json, sys
totals = json.load(open(sys.argv[1]))
print(" / ".join(f"{functools.reduce(dict.get, name.split(':'), totals):.1f}" for name in sys.argv[2].split()))
PY
  )
  sed -i "s#^\(| $benchmark | $model |[^|]*|\)[^|]*|#\1 $ours |#" "$page"
}

answers=(vqa v2_OpenEnded_mscoco_val2014_questions.json val2014 --annotations "$data/v2_mscoco_val2014_annotations.json")
outside=(vqa OpenEnded_mscoco_val2014_questions.json val2014 --annotations "$data/mscoco_val2014_annotations.json")
domains="in-domain:cider near-domain:cider out-domain:cider cider"
recalls="itm_i2t_r@1 itm_i2t_r@5 itm_i2t_r@10 itm_t2i_r@1 itm_t2i_r@5 itm_t2i_r@10"
for model in blip2-{opt-2.7b,opt-6.7b,flan-t5-xl}-coco; do
  row COCO $model "cider bleu4" caption dataset_coco.json val2014 --prompt "a photo of" --min-new-tokens 8
  row NoCaps $model "$domains" caption nocaps_val_4500_captions.json nocaps --prompt "a photo of" \
    --max-new-tokens 80 --min-new-tokens 10
done
for model in blip2-{opt-2.7b,opt-6.7b,flan-t5-xl,flan-t5-xxl}; do
  row VQAv2 $model accuracy "${answers[@]}"
  row OK-VQA $model accuracy "${outside[@]}"
  row GQA $model exact_match vqa testdev_balanced_questions.json gqa
done
row COCO-retrieval blip2-itm-vit-g-coco "$recalls" retrieval dataset_coco.json val2014
row Flickr30k blip2-itm-vit-g-coco "$recalls" retrieval dataset_flickr30k.json flickr30k-images
if ((${#missing[@]})); then
  printf '%s\n' "${missing[@]}" | sort -u | paste -sd, | sed 's/,/, /g; s/^/reproduce.sh: missing: /' >&2
  exit 1
fi
